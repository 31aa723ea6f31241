"""The graph of jobs that a sweep becomes: pretrain -> {linear, knn}; pretrain -> convert -> detect x seeds; tables."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.command import UserError
from results.record import content_hash, write_json
from slurm.stages import LEADERBOARD, OWN_STAGE, STAGES, Task, find_stage, load_recipe

if TYPE_CHECKING:
    from pretrain.recipe import Recipe
    from slurm.clusters import Preset
    from slurm.sweep import Cell, StageSpec, Sweep

PLAN = "plan.json"


@dataclass(frozen=True)
class Resources:
    """What one job is given."""

    nodes: int = 1
    processes: int = 1
    """Per node."""
    threads: int = 1
    """Intra-op threads of a process (part of what determines the result)."""
    cpus: int = 1
    """Per process."""
    gpus: int = 0
    """Per node."""
    memory_gb: float | None = None
    hours: float | None = None

    @property
    def cores(self) -> int:
        """Per node."""
        return self.processes * self.cpus


@dataclass(frozen=True)
class Job:
    """One node of the graph."""

    key: str
    """`<stage>/<id>`: also the place of its folder below the runs."""
    column: str
    """The stage, with the stage's own seed where there are several: `detect:1`."""
    cell: str
    """For the eye; empty for the leaderboard."""
    needs: tuple[str, ...]
    """Keys of the jobs that must be done before; the leaderboard only waits for them to end."""
    resources: Resources
    task: Task

    @property
    def stage(self) -> str:
        return self.task.stage

    @property
    def folder(self) -> Path:
        return self.task.folder


class Graph:
    """Jobs by key, each after all that it needs."""

    def __init__(self, name: str, jobs: Iterable[Job]) -> None:
        self.name = name
        self.jobs = {job.key: job for job in jobs}
        self.dependants: dict[str, list[str]] = {key: [] for key in self.jobs}
        for job in self.jobs.values():
            for need in job.needs:
                self.dependants[need].append(job.key)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs.values())

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, key: str) -> Job:
        return self.jobs[key]

    @property
    def work(self) -> list[Job]:
        """All but the leaderboard."""
        return [job for job in self if job.stage != LEADERBOARD]

    @property
    def leaderboard(self) -> Job:
        return next(job for job in self if job.stage == LEADERBOARD)

    def columns(self) -> list[str]:
        """In the order of need."""
        return list(dict.fromkeys(job.column for job in self.work))

    def cells(self) -> dict[str, list[Job]]:
        found: dict[str, list[Job]] = {}
        for job in self.work:
            found.setdefault(job.cell, []).append(job)
        return found

    def hours_ahead(self) -> dict[str, float]:
        """Hours from the start of each job to the end of the longest chain that it begins (as far as limits tell)."""
        ahead: dict[str, float] = {}
        for job in reversed(self.work):
            after = [ahead[key] for key in self.dependants[job.key] if key in ahead]
            ahead[job.key] = (job.resources.hours or 1.0) + max(after, default=0.0)
        return ahead

    def save(self, cluster: str, launched: str) -> None:
        """Writes the plan beside the runs, for `--status`, which must not import what planning needs."""
        plan = {"name": self.name, "cluster": cluster, "launched": launched, "jobs": [asdict(job) for job in self]}
        write_json(self.leaderboard.folder / PLAN, plan)


def graph_from_plan(plan: dict[str, Any]) -> Graph:
    """What `Graph.save` wrote."""
    return Graph(plan["name"], (_job_from_plan(raw) for raw in plan["jobs"]))


def _job_from_plan(raw: dict[str, Any]) -> Job:
    resources, task = Resources(**raw["resources"]), Task(**raw["task"])
    return Job(raw["key"], raw["column"], raw["cell"], tuple(raw["needs"]), resources, task)


def build_graph(sweep: "Sweep", preset: "Preset") -> Graph:
    """Every cell's jobs with their ids, which tell what is done already.

    Raises:
        UserError: a cycle or gap in what stages need, a recipe or option that cannot work, two cells that are the same.
    """
    from slurm.sweep import cells

    order = stage_order(sweep)
    jobs: list[Job] = []
    owners: dict[str, str] = {}
    for cell in cells(sweep):
        for job in _cell_jobs(sweep, cell, order, preset):
            if job.key in owners:
                raise UserError(
                    f"sweep {sweep.name}: the cells '{owners[job.key]}' and '{cell}' are one and the same run "
                    f"({job.key}): what the grid changes does not determine the result"
                )
            owners[job.key] = str(cell)
            jobs.append(job)
    spec = sweep.stages.get(LEADERBOARD)
    task = Task(LEADERBOARD, recipe="", id=sweep.name, options=spec.options if spec else {})
    resources = _resources(preset, LEADERBOARD, spec, processes=1, threads=1)
    last = Job(f"{LEADERBOARD}/{sweep.name}", LEADERBOARD, "", tuple(job.key for job in jobs), resources, task)
    return Graph(sweep.name, [*jobs, last])


def stage_order(sweep: "Sweep") -> dict[str, tuple[str, ...]]:
    """The sweep's stages and what they need (`convert` joins where `detect` does), each after its needs."""
    needs: dict[str, tuple[str, ...]] = {}
    waiting = [name for name in sweep.stages if name != LEADERBOARD]
    while waiting:
        name = waiting.pop(0)
        if name not in needs:
            needs[name] = _needs(name, sweep.stages.get(name))
            waiting += needs[name]
    try:
        order = list(TopologicalSorter({name: needs[name] for name in needs}).static_order())
    except CycleError as error:
        raise UserError(
            f"sweep {sweep.name}: stages need each other in a circle: {' -> '.join(error.args[1])}"
        ) from error
    return {name: needs[name] for name in sorted(order, key=lambda name: _rank(name, needs))}


def _needs(name: str, spec: "StageSpec | None") -> tuple[str, ...]:
    if spec is not None and spec.needs is not None:
        return spec.needs
    return STAGES.get(name, OWN_STAGE).needs


def _rank(name: str, needs: dict[str, tuple[str, ...]]) -> int:
    """Length of the longest chain of needs below a stage: pretrain 0, linear 1, detect 2."""
    return 1 + max((_rank(need, needs) for need in needs[name]), default=-1)


def _cell_jobs(sweep: "Sweep", cell: "Cell", order: dict[str, tuple[str, ...]], preset: "Preset") -> Iterator[Job]:
    recipe, overrides = _recipe(sweep, cell, preset)
    made: dict[str, list[Job]] = {}
    for name, needs in order.items():
        spec = _spec(name, order, sweep)
        if spec.recipes is not None and cell.recipe not in spec.recipes:
            continue
        missing = [need for need in needs if need not in made]
        if missing:
            raise UserError(f"sweep {sweep.name}: {name} needs {missing[0]}, which is not run for {cell.recipe}")
        made[name] = []
        for seed in spec.seeds or (None,):
            job = _job(
                sweep, cell, name, spec, seed, recipe, overrides, [j for need in needs for j in made[need]], preset
            )
            made[name].append(job)
            yield job


def _spec(name: str, order: dict[str, tuple[str, ...]], sweep: "Sweep") -> "StageSpec":
    """What the sweep says of a stage; one that only serves others (`convert`) runs for their recipes."""
    from slurm.sweep import StageSpec

    spec = sweep.stages.get(name) or StageSpec()
    if spec.recipes is not None or name not in STAGES or not STAGES[name].serves:
        return spec
    served = [sweep.stages[other] for other, needs in order.items() if name in needs and other in sweep.stages]
    if not served or any(other.recipes is None for other in served):
        return spec
    return replace(spec, recipes=tuple(recipe for other in served for recipe in other.recipes or ()))


def _recipe(sweep: "Sweep", cell: "Cell", preset: "Preset") -> tuple["Recipe", dict[str, Any]]:
    """The cell's recipe, its device decided by the GPUs that its job gets, so that it does not hang on who launches."""
    overrides = dict(cell.overrides)
    recipe = load_recipe(Task("pretrain", cell.recipe, overrides))
    if recipe.device == "auto":
        overrides["device"] = "cuda" if _gpus(preset, "pretrain", sweep.stages["pretrain"]) else "cpu"
        recipe = replace(recipe, device=overrides["device"])
    return recipe, overrides


def _job(
    sweep: "Sweep",
    cell: "Cell",
    name: str,
    spec: "StageSpec",
    seed: int | None,
    recipe: "Recipe",
    overrides: dict[str, Any],
    parents: list[Job],
    preset: "Preset",
) -> Job:
    many = len(spec.seeds or ()) > 1
    processes = recipe.world_size if name == "pretrain" and not spec.function else 1
    threads = spec.options.get("threads", recipe.threads)
    resources = _resources(preset, name, spec, processes, threads, where=f"sweep {sweep.name}: {cell}")
    named = {key: value for key, value in overrides.items() if key != "seed"}
    described = {
        "recipe": recipe.name,
        "method": recipe.method_name,
        "seed": recipe.seed,
        "dataset": recipe.data.dataset,
        "sweep": sweep.name,
        "overrides": named,
    }
    ancestors = {stage: parent for job in parents for stage, parent in job.task.parents.items()}
    task = Task(
        stage=name,
        recipe=cell.recipe,
        overrides=overrides,
        device="cuda" if resources.gpus else "cpu",
        parents={**ancestors, **{job.column: job.task.id for job in parents}},
        seed=seed,
        options=spec.options,
        function=spec.function,
        cell=described,
        setting=content_hash({key: value for key, value in recipe.identity().items() if key != "seed"}),
    )
    task = replace(task, id=find_stage(task).plan(task, recipe))
    column = f"{name}:{seed}" if many else name
    return Job(f"{name}/{task.id}", column, str(cell), tuple(job.key for job in parents), resources, task)


def _resources(
    preset: "Preset", name: str, spec: "StageSpec | None", processes: int, threads: int, where: str = ""
) -> Resources:
    nodes, gpus = spec.nodes if spec else 1, _gpus(preset, name, spec)
    if processes % nodes:
        raise UserError(
            f"{where}: stages.{name}.nodes: {processes} processes (world_size) do not divide over {nodes} nodes"
        )
    if name == "pretrain" and not (spec and spec.function) and gpus and gpus * nodes != processes:
        raise UserError(
            f"{where}: stages.pretrain: {gpus} GPUs on {nodes} node(s), but the recipe has world_size={processes} "
            f"(one process a GPU); say world_size={gpus * nodes}, or gpus: {max(1, processes // nodes)}"
        )
    share = preset.share(name)
    return Resources(
        nodes=nodes,
        processes=processes // nodes,
        threads=threads,
        cpus=(spec.cpus if spec else None) or share.cpus or threads,
        gpus=gpus,
        memory_gb=(spec.memory_gb if spec else None) or share.memory_gb,
        hours=(spec.hours if spec else None) or share.hours,
    )


def _gpus(preset: "Preset", name: str, spec: "StageSpec | None") -> int:
    """Per node: as the sweep says, or else the preset; conversion and tables take one only where it is said of them."""
    if spec is not None and spec.gpus is not None:
        return spec.gpus
    share = preset.stages.get(name)
    if name in ("convert", LEADERBOARD):
        return (share.gpus if share else None) or 0
    return preset.share(name).gpus or 0
