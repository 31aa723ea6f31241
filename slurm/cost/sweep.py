"""What a sweep costs: every stage of every cell, on one kind of card."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from slurm.cost.estimate import Estimate, energy_kwh, estimate
from slurm.cost.hardware import Hardware
from slurm.cost.quantity import Quantity, total
from slurm.cost.stages import detect_hours, knn_hours, linear_hours, semi_hours
from slurm.cost.work import work_key
from slurm.resource_requests import is_per_process, parse_gpus
from slurm.sweep import Cell, StageSpec, Sweep, cells
from whitebench.errors import UserError

if TYPE_CHECKING:
    from pretrain.recipe import Recipe

FREE = frozenset({"convert", "leaderboard"})
"""Stages of minutes, without a GPU."""
MOST_NETWORKS = 64
"""Different networks of which a sweep is estimated; each takes about a second to count."""
MOST_POINTS = 2000
"""Recipes, at points of the grid, that are read; a hundred take a second."""


@dataclass(frozen=True)
class Row:
    """The jobs of one stage of one recipe at one point of the grid."""

    recipe: str
    stage: str
    jobs: int
    gpus: int
    """Per job, over all its nodes; 0 on a CPU."""
    hours: Quantity | None
    """Of one job; None: not known (a user's stage)."""
    detail: Estimate | None = None

    @property
    def gpu_hours(self) -> Quantity:
        """Of all the row's jobs."""
        return (self.hours or Quantity.exact(0.0)) * float(self.jobs * self.gpus)


@dataclass(frozen=True)
class SweepCost:
    name: str
    hardware: Hardware
    rows: tuple[Row, ...]
    errors: tuple[str, ...]
    """Why parts could not be estimated."""

    @property
    def gpu_hours(self) -> Quantity:
        return total([row.gpu_hours for row in self.rows])

    @property
    def kwh(self) -> Quantity | None:
        return energy_kwh(self.gpu_hours, self.hardware)

    @property
    def unknown(self) -> list[str]:
        return sorted({row.stage for row in self.rows if row.hours is None})

    def as_json(self) -> dict[str, Any]:
        return {
            "sweep": self.name,
            "card": self.hardware.card.name if self.hardware.card else "cpu",
            "gpu_hours": self.gpu_hours.as_list(),
            "kwh": self.kwh.as_list() if self.kwh else None,
            "rows": [
                {
                    "recipe": row.recipe,
                    "stage": row.stage,
                    "jobs": row.jobs,
                    "gpus": row.gpus,
                    "hours": row.hours.as_list() if row.hours else None,
                    "gpu_hours": row.gpu_hours.as_list(),
                    "pretraining": row.detail.as_json() if row.detail else None,
                }
                for row in self.rows
            ],
            "not_estimated": [*self.unknown, *self.errors],
        }


def sweep_cost(
    sweep: Sweep,
    hardware: Hardware,
    images: int | None = None,
    todo: Mapping[tuple[str, str], int] | None = None,
    most_networks: int = MOST_NETWORKS,
    most_points: int = MOST_POINTS,
) -> SweepCost:
    """Every stage of a sweep; stages ask for GPUs as the sweep says, pretrainings else for their recipe's world size.

    Args:
        hardware: of its numbers only card, cores, network and disk count; cores are those of a node.
        todo: by (`point_name`, stage), how many jobs are still to be run; None: all.
        most_networks, most_points: how many different networks are counted, and settings read; what is beyond is
            named as not estimated.
    Raises:
        UserError: a recipe that cannot work.
    """
    points: dict[str, list[Cell]] = {}
    for cell in cells(sweep):
        points.setdefault(point_name(cell.recipe, cell.point), []).append(cell)
    rows, errors, networks = [], [], set[str]()
    skipped = 0
    for number, (name, alike) in enumerate(points.items()):
        if number >= most_points:
            skipped += len(points) - number
            break
        recipe = _recipe(alike[0])
        networks.add(work_key(recipe, recipe.batch))
        if len(networks) > most_networks:
            skipped += 1
            continue
        for stage, spec in sweep.stages.items():
            jobs = len(alike) * len(spec.seeds or (None,))
            jobs = jobs if todo is None else todo.get((name, stage), 0)
            runs = spec.recipes is None or alike[0].recipe in spec.recipes
            if (spec.stage or stage) in FREE or not jobs or not runs:
                continue
            try:
                rows.append(_row(name, stage, spec, recipe, hardware, jobs, images))
            except UserError as error:
                errors.append(str(error))
    if skipped:
        errors.append(
            f"{skipped} of {len(points)} settings: over {most_networks} different networks or {most_points} settings"
        )
    return SweepCost(sweep.name, hardware, tuple(rows), tuple(dict.fromkeys(errors)))


def point_name(recipe: str, point: Mapping[str, Any]) -> str:
    return " ".join([recipe, *(f"{key}={json.dumps(value)}" for key, value in point.items())])


def _recipe(cell: Cell) -> "Recipe":
    from pretrain.recipe import load

    return load(cell.recipe, cell.overrides)


def _row(
    name: str, stage: str, spec: StageSpec, recipe: "Recipe", hardware: Hardware, jobs: int, images: int | None
) -> Row:
    stated = spec.gpus is not None and not is_per_process(spec.gpus)
    gpus = parse_gpus(spec.gpus, f"stages.{stage}.gpus")[0] if stated else 0
    cpus = spec.cpus * int(spec.options.get("processes", 1)) if spec.cpus else None
    own = replace(hardware, gpus=gpus or 1, nodes=spec.nodes, cores=hardware.cores or cpus)
    if stage == "pretrain" and not spec.function:
        processes = gpus or max(1, recipe.processes // spec.nodes)
        workers = recipe.machine.workers * processes
        own = replace(own, gpus=processes, cores=hardware.cores or (spec.cpus * processes if spec.cpus else workers))
        plan = estimate(recipe, own, images)
        return Row(name, stage, jobs, own.processes if own.card else 0, plan.hours, plan)
    if spec.function:
        return Row(name, stage, jobs, gpus, None)
    hours = _stage_hours(spec.stage or stage, recipe, own, spec.options, images)
    return Row(name, stage, jobs, (gpus or 1) * spec.nodes if own.card else 0, hours)


def _stage_hours(
    stage: str, recipe: "Recipe", hardware: Hardware, options: dict[str, Any], images: int | None
) -> Quantity | None:
    if stage == "detect":
        return detect_hours(hardware, options)
    estimates = {"linear": linear_hours, "knn": knn_hours, "semi": semi_hours}
    return estimates[stage](recipe, hardware, options, images) if stage in estimates else None
