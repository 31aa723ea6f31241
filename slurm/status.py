"""`--status`: how far a sweep is, as a table of cells by stages, or as JSON."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slurm.clusters import slurm_answers
from slurm.graph import PLAN, Graph, graph_from_plan
from slurm.job_state import JobState, headline, log_of, problems, progress, read_states
from slurm.submissions import LEDGER, queued_jobs, sweeps_folder
from whitebench.errors import UserError

SHORT = {"interrupted": "stopped", "new": "-"}


def load_graph(name: str) -> Graph:
    """The graph of the last launch of a sweep.

    Raises:
        UserError: it was not launched yet.
    """
    path = sweeps_folder() / name / PLAN
    try:
        return graph_from_plan(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise UserError(f"the sweep '{name}' was not launched yet (in {sweeps_folder().parent})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable plan ({error}); launching again writes it anew") from error


def current_states(graph: Graph) -> dict[str, JobState]:
    """Asks SLURM's queue only where something was ever submitted to it."""
    submitted = (sweeps_folder() / LEDGER).exists()
    return read_states(graph, queued_jobs() if submitted and slurm_answers() else {})


def status_json(graph: Graph, states: Mapping[str, JobState]) -> str:
    rows: list[dict[str, Any]] = []
    for job in graph.work:
        found = states[job.key]
        record = found.record
        row = {
            "cell": job.cell,
            "stage": job.stage,
            "seed": job.task.seed,
            "id": job.task.id,
            "state": found.shown,
            "why": found.stalled or found.queue_reason,
            "slurm_job": found.queue_id,
            "progress": found.last,
            "metrics": record.metrics if record else {},
            "error": record.error if record and found.state == "failed" else None,
            "folder": str(job.folder),
            "log": log_of(job.folder),
            "resources": asdict(job.resources),
        }
        rows.append(row)
    return json.dumps({"sweep": graph.name, "jobs": rows}, indent=1)


def status_text(graph: Graph, states: Mapping[str, JobState], width: int | None = None) -> str:
    """A row a cell, a column a stage; below it what failed, why, and where its log is.

    Args:
        width: characters a line; None: the terminal's, or 160. Where columns need more, their text is wrapped.
    """
    columns = graph.columns()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for name in ("", *columns):
        table.add_column(name, overflow="fold")
    for cell, jobs in graph.cells().items():
        shown = {job.column: _cell_text(states[job.key]) for job in jobs}
        table.add_row(*(Text(text) for text in (cell, *(shown.get(column, "") for column in columns))))
    console = Console(file=StringIO(), width=width or shutil.get_terminal_size((160, 24)).columns, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([*lines, "", summary(states), *problems(graph, states)])


def summary(states: Mapping[str, JobState]) -> str:
    """`sweep: 12 done, 2 running, 3 new`."""
    counted = [found.shown for found in states.values()]
    names = ("done", "running", "stalled", "queued", "failed", "blocked", "interrupted", "new")
    counts = [f"{counted.count(state)} {state}" for state in names if state in counted]
    return f"{len(counted)} jobs: {', '.join(counts)}"


def _cell_text(found: JobState) -> str:
    if found.state == "done" and found.record is not None:
        return headline(found.record) or "done"
    if found.state == "running":
        return f"stalled: {found.stalled}" if found.stalled else progress(found.last) or "running"
    if found.state == "queued":
        usual = found.queue_reason in ("", "None", "Dependency", "Priority", "Resources", "BeginTime")
        return f"queued {found.queue_id}" + ("" if usual else f" ({found.queue_reason})")
    return SHORT.get(found.state, found.state)
