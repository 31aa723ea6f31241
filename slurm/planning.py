"""From a sweep to the graph of its jobs, each with the id of the run that it will leave."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pretrain.evaluate.kept import kept_epochs
from pretrain.recipe import Recipe
from results.aggregate import RESULTS
from slurm.clusters import Preset, Share, expand
from slurm.graph import Graph, Job, Resources
from slurm.progress import Progress
from slurm.resource_requests import LIGHT_MEMORY_GB, PER_PROCESS, is_per_process, option_name, parse_gpus
from slurm.stages import LEADERBOARD, STAGES, USER_STAGE, Task, find_stage, forget_plans, load_recipe
from slurm.sweep import Cell, StageSpec, Sweep, cells
from whitebench.errors import UserError
from whitebench.hashing import content_hash
from whitebench.records import runs_root


def build_graph(sweep: Sweep, preset: Preset) -> Graph:
    """Every cell's jobs, and the leaderboard after them all.

    Raises:
        UserError: a cycle or gap in what stages need, a recipe or option that cannot work, two cells that are the same.
    """
    from pretrain.repeatable import planning_for_elsewhere

    forget_plans()
    planner = Planner(sweep, preset)
    jobs: dict[str, Job] = {}
    all_cells = cells(sweep)
    progress = Progress("planned", len(all_cells), "cells")
    with planning_for_elsewhere():
        for job in (job for cell in progress.over(all_cells) for job in planner.jobs(cell)):
            if job.key in jobs:
                raise UserError(f"sweep {sweep.name}: {_why_the_same(jobs[job.key], job)}")
            jobs[job.key] = job
    return Graph(sweep.name, [*jobs.values(), planner.leaderboard(tuple(jobs))])


def _why_the_same(first: Job, second: Job) -> str:
    if first.cell == second.cell:
        return f"stages.{second.column} is the same run as stages.{first.column} ({first.key}): give it other options"
    return (
        f"the cells '{first.cell}' and '{second.cell}' are one and the same run ({first.key}): the keys of the grid do "
        "not change the result"
    )


def stage_order(sweep: Sweep) -> dict[str, tuple[str, ...]]:
    """The sweep's stages and what they need (`convert` joins where `detect` does), each after its needs."""
    needs: dict[str, tuple[str, ...]] = {}
    waiting = [name for name in sweep.stages if name != LEADERBOARD]
    while waiting:
        name = waiting.pop(0)
        if name not in needs:
            needs[name] = _needs(name, sweep.stages.get(name))
            waiting += needs[name]
    try:
        order = TopologicalSorter(needs).static_order()
        ranks: dict[str, int] = {}
        for name in order:
            ranks[name] = 1 + max((ranks[need] for need in needs[name]), default=-1)
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise UserError(f"sweep {sweep.name}: stages need each other in a circle: {circle}") from error
    return {name: needs[name] for name in sorted(needs, key=lambda name: ranks[name])}


def _needs(name: str, spec: StageSpec | None) -> tuple[str, ...]:
    if spec is not None and spec.needs is not None:
        return spec.needs
    built_in = spec.stage if spec is not None and spec.stage else name
    return STAGES.get(built_in, USER_STAGE).needs


@dataclass(frozen=True)
class PlannedCell:
    """A cell with its recipe, resolved once for all its stages."""

    name: str
    source: str
    """Name or path of the recipe's file."""
    recipe: Recipe
    overrides: dict[str, Any]
    setting: str
    """Hash of the recipe without its seed; empty where no user's stage needs it."""
    described: dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One of the jobs (or one per seed) that a stage of a cell becomes."""

    stage: str
    dataset: str | None
    """Of `datasets`, where the sweep names several for the stage."""
    epoch: int | None
    """Of a backbone that the pretraining keeps; None: its last."""

    def __str__(self) -> str:
        return "@".join(str(part) for part in (self.stage, self.dataset, self.epoch) if part is not None)

    def options(self, spec: StageSpec) -> dict[str, Any]:
        """The stage's, for this variant."""
        own = {"dataset": self.dataset, "epoch": self.epoch}
        shared = {key: value for key, value in spec.options.items() if key != "datasets" or spec.function}
        return {**shared, **{key: value for key, value in own.items() if value is not None}}


class Planner:
    def __init__(self, sweep: Sweep, preset: Preset) -> None:
        self.sweep, self.preset = sweep, preset
        self.order = stage_order(sweep)
        self.specs = {name: self._spec(name) for name in self.order}
        self.has_user_stages = any(spec.function for spec in self.specs.values())
        self._recipes: dict[tuple[str, str], Recipe] = {}
        self._requests: dict[tuple[str, int, int], Resources] = {}

    def jobs(self, cell: Cell) -> Iterator[Job]:
        """The cell's jobs, each after its needs."""
        planned = self._cell(cell)
        jobs_by_stage: dict[str, list[Job]] = {}
        for name, needs in self.order.items():
            spec = self.specs[name]
            if spec.recipes is not None and cell.recipe not in spec.recipes:
                continue
            missing = [need for need in needs if need not in jobs_by_stage]
            if missing:
                raise UserError(
                    f"sweep {self.sweep.name}: {name} needs {missing[0]}, which is not run for {cell.recipe}"
                )
            parents = [job for need in needs for job in jobs_by_stage[need]]
            variants = list(self._variants(planned.recipe, name))
            jobs_by_variant = {
                v: [self._job(planned, v, seed, parents) for seed in spec.seeds or (None,)] for v in variants
            }
            jobs_by_stage[name] = [
                job for variant, jobs in jobs_by_variant.items() if variant.epoch is None for job in jobs
            ]
            yield from (job for jobs in jobs_by_variant.values() for job in jobs)

    def _variants(self, recipe: Recipe, name: str) -> Iterator[Variant]:
        """A stage once, or once per dataset, and for each backbone that the pretraining keeps."""
        spec = self.specs[name]
        sets = None if spec.function else spec.options.get("datasets")
        if sets is not None and not (isinstance(sets, list) and sets and all(isinstance(one, str) for one in sets)):
            raise UserError(f"sweep {self.sweep.name}: stages.{name}.datasets: not a list of names: {sets!r}")
        during = not spec.function and (spec.stage or name) in DURING_TRAINING and "epoch" not in spec.options
        epochs = kept_epochs(recipe.schedule.epochs, recipe.machine.keep_every) if during else []
        for epoch in (None, *epochs):
            yield from (Variant(name, dataset, epoch) for dataset in sets or (None,))

    def leaderboard(self, needs: tuple[str, ...]) -> Job:
        spec = self.sweep.stages.get(LEADERBOARD) or StageSpec()
        options = {"out": str(_tables_folder()), **spec.options}
        options["out"] = expand(str(options["out"]), f"sweep {self.sweep.name}: stages.{LEADERBOARD}.out")
        task = Task(LEADERBOARD, recipe="", id=self.sweep.name, options=options)
        resources = self._resources(LEADERBOARD, spec, processes=1, threads=1, where=self.sweep.name)
        return Job(f"{LEADERBOARD}/{self.sweep.name}", LEADERBOARD, "", needs, resources, task)

    def _spec(self, name: str) -> StageSpec:
        """What the sweep says of a stage; one that only serves others (`convert`) runs for their recipes."""
        spec = self.sweep.stages.get(name) or StageSpec()
        if spec.recipes is not None or name not in STAGES or not STAGES[name].serves:
            return spec
        served = [self.sweep.stages.get(other) for other, needs in self.order.items() if name in needs]
        if not served or any(other is None or other.recipes is None for other in served):
            return spec
        return replace(spec, recipes=tuple(recipe for other in served if other for recipe in other.recipes or ()))

    def _cell(self, cell: Cell) -> PlannedCell:
        """The device follows from the GPUs that the job gets, and not from the machine that launches."""
        overrides = dict(cell.overrides)
        recipe = self._recipe(cell)
        if recipe.device == "auto":
            overrides["device"] = "cuda" if self._gpus("pretrain", self.specs["pretrain"])[0] else "cpu"
            recipe = replace(recipe, device=overrides["device"])
        described = {
            "recipe": recipe.name,
            "method": recipe.method_name,
            "seed": recipe.seed,
            "dataset": recipe.data.dataset,
            "sweep": self.sweep.name,
            "overrides": {key: value for key, value in overrides.items() if key != "seed"},
        }
        identity = recipe.identity() if self.has_user_stages else {}
        setting = content_hash({key: value for key, value in identity.items() if key != "seed"}) if identity else ""
        return PlannedCell(str(cell), cell.recipe, recipe, overrides, setting, described)

    def _recipe(self, cell: Cell) -> Recipe:
        """Read and checked once for all seeds of a recipe's grid point."""
        key = cell.recipe, repr({name: value for name, value in cell.overrides.items() if name != "seed"})
        if key not in self._recipes:
            self._recipes[key] = load_recipe(Task("pretrain", cell.recipe, cell.overrides))
        return replace(self._recipes[key], seed=cell.seed)

    def _job(self, cell: PlannedCell, variant: Variant, seed: int | None, parents: list[Job]) -> Job:
        name = variant.stage
        spec, recipe = self.specs[name], cell.recipe
        stage = spec.stage or name
        processes = _processes(name, spec, recipe)
        threads = spec.options.get("threads", recipe.threads)
        resources = self._resources(name, spec, processes, threads, where=f"sweep {self.sweep.name}: {cell.name}")
        ancestors = {stage: parent for job in parents for stage, parent in job.task.parents.items()}
        task = Task(
            stage=stage,
            recipe=cell.source,
            overrides=cell.overrides,
            device="cuda" if resources.gpus else "cpu",
            parents={**ancestors, **{job.column: job.task.id for job in parents}},
            seed=seed,
            options=variant.options(spec),
            function=spec.function,
            cell=cell.described,
            setting=cell.setting,
        )
        plan = find_stage(task).plan
        assert plan is not None, "stages of cells have ids"
        task = replace(task, id=plan(task, recipe))
        column = f"{variant}:{seed}" if len(spec.seeds or ()) > 1 else str(variant)
        return Job(f"{stage}/{task.id}", column, cell.name, tuple(job.key for job in parents), resources, task)

    def _resources(self, name: str, spec: StageSpec, processes: int, threads: int, where: str) -> Resources:
        """One object for all jobs of a stage that ask for the same: a sweep may have 50,000 of them."""
        key = name, processes, threads
        if key not in self._requests:
            self._requests[key] = self._new_resources(name, spec, processes, threads, where)
        return self._requests[key]

    def _new_resources(self, name: str, spec: StageSpec, processes: int, threads: int, where: str) -> Resources:
        stage = spec.stage or name
        nodes, (gpus, gpu_type), share = spec.nodes, self._gpus(name, spec), self.preset.share(stage)
        per_process = is_per_process(spec.gpus if spec.gpus is not None else share.gpus)
        if per_process and not _one_process_per_gpu(name, spec):
            raise UserError(f"{where}: stages.{name}.gpus: {PER_PROCESS} is for pretrain; set a number, or world_size")
        if processes % nodes:
            raise UserError(f"{where}: stages.{name}: world_size={processes} does not divide over {nodes} nodes")
        gpus = processes // nodes if per_process else gpus
        if gpus and gpus * nodes != processes and _one_process_per_gpu(name, spec):
            whose = "the recipe has" if name == "pretrain" else "the stage has"
            key = "world_size=" if name == "pretrain" else f"stages.{name}.world_size="
            raise UserError(
                f"{where}: stages.{name}: {gpus} GPUs on {nodes} node(s), but {whose} world_size={processes} "
                f"(one process per GPU); say {key}{gpus * nodes}, or gpus: {max(1, processes // nodes)}"
            )
        own = self.preset.stages.get(stage, Share())
        memory_gb = gpus * share.memory_per_gpu_gb if gpus and share.memory_per_gpu_gb else share.memory_gb
        if stage in LIGHT and memory_gb and not own.memory_gb:
            memory_gb = min(memory_gb, LIGHT_MEMORY_GB)
        return Resources(
            nodes=nodes,
            processes=processes // nodes,
            threads=threads,
            cpus=spec.cpus or (own if stage in LIGHT else share).cpus or threads,
            gpus=gpus,
            gpu_type=gpu_type,
            memory_gb=spec.memory_gb or memory_gb,
            hours=spec.hours or share.hours,
            sbatch={option_name(key): value for key, value in spec.sbatch.items()},
        )

    def _gpus(self, name: str, spec: StageSpec) -> tuple[int, str]:
        """Per node, and their type: the sweep's, else the preset's; light stages have some only where it names them."""
        if spec.gpus is not None:
            return parse_gpus(spec.gpus, f"stages.{name}.gpus")
        stage = spec.stage or name
        share = self.preset.stages.get(stage) if stage in LIGHT else self.preset.share(stage)
        return parse_gpus(share.gpus if share else None, f"stages.{name}.gpus")


def _processes(name: str, spec: StageSpec, recipe: Recipe) -> int:
    """How many one job of the stage runs."""
    if spec.function:
        return 1
    if name == "pretrain":
        return recipe.processes
    processes = spec.options.get("world_size", 1)
    # another value is refused with the other options
    return processes if isinstance(processes, int) and processes > 0 else 1


def _one_process_per_gpu(name: str, spec: StageSpec) -> bool:
    """Whether the number of processes has to be that of the GPUs; one process may leave others unused."""
    return not spec.function and (name == "pretrain" or "world_size" in spec.options)


DURING_TRAINING = ("linear", "knn")
"""Stages that evaluate the backbones that a pretraining keeps (`machine.keep_every`), as these appear."""
LIGHT = ("convert", LEADERBOARD)
"""Stages that take minutes on one core: a preset's GPUs and cores for all stages are not for them."""


def _tables_folder() -> Path:
    """Of this checkout, not of the snapshot that a job runs; of the runs where this user may not write there."""
    return RESULTS if os.access(RESULTS, os.W_OK) else runs_root().absolute() / "tables"
