"""The estimate at the end of `--dry-run`: what the jobs that are to run will cost."""

import os
from collections import Counter
from typing import TYPE_CHECKING

from slurm.cost.hardware import Hardware, hardware
from slurm.cost.sweep import SweepCost, point_name, sweep_cost
from slurm.cost.table import sweep_rows
from slurm.sweep import cells
from whitebench.errors import UserError

if TYPE_CHECKING:
    from slurm.graph import Graph
    from slurm.sweep import Sweep

ASSUMED_CARD = "h100"
MOST_NETWORKS, MOST_POINTS = 6, 100
MOST_CELLS = 2000
"""Beyond it a dry run estimates nothing and stays within its seconds and memory: counting needs torchvision."""
MOST_ROWS = 24


def cost_preview(graph: "Graph", sweep: "Sweep", todo: set[str]) -> list[str]:
    """Lines of text; one that says why where nothing can be estimated."""
    if not todo:
        return ["estimated: nothing to run"]
    if len(graph.cells()) > MOST_CELLS:
        return [f"estimated: not for more than {MOST_CELLS:,} cells; `whitebench plan --sweep` does"]
    gpus = {job.resources.gpu_type for job in graph.work if job.resources.gpus}
    named = sorted(gpus - {""})
    card = named[0] if named else ASSUMED_CARD if gpus else "cpu"
    names = {str(cell): point_name(cell.recipe, cell.point) for cell in cells(sweep)}
    jobs = Counter((names[job.cell], job.column.partition(":")[0]) for job in graph.work if job.key in todo)
    try:
        plan = sweep_cost(sweep, _host(card), todo=jobs, most_networks=MOST_NETWORKS, most_points=MOST_POINTS)
    except UserError as error:
        return [f"estimated: not possible: {error}"]
    return [*_head(plan, named, bool(gpus)), *sweep_rows(plan, MOST_ROWS)]


def _host(card: str) -> Hardware:
    return hardware(card, cores=os.cpu_count() if card == "cpu" else None)


def _head(plan: SweepCost, named: list[str], on_gpus: bool) -> list[str]:
    title = plan.hardware.card.title if plan.hardware.card else "CPU"
    assumed = "" if named or not on_gpus else " (assumed: gpus: type:number, or `whitebench plan --gpu`, says which)"
    return [f"estimated on {title}{assumed}; intervals in brackets, `whitebench plan --sweep` says more:"]
