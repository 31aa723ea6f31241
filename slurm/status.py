"""`--status`: the state of a sweep as text or as JSON."""

import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slurm.attempts import LEADERBOARD_STATE
from slurm.graph import Graph
from slurm.job_queue import Queued, final_states, queued_jobs
from slurm.job_state import JobState, log_of, read_states
from slurm.slurm_command import SlurmUnavailable, is_installed
from slurm.stages import LEADERBOARD
from slurm.status_table import cell_table, leaderboard_line, notes, problems, running_lines, stage_table, summary
from slurm.submissions import Ledger, read_ledger
from slurm.waiting import read_waiting
from whitebench.errors import describe
from whitebench.slow_files import read_all

MOST_CELLS = 200
"""With more cells, the table has a line per stage instead of a line per cell."""
WIDTH = 160
TRANSIENT_ERRORS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ENOTCONN, errno.EHOSTDOWN}
    | {errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET, errno.EREMOTEIO, errno.ENOMEM}
)
"""Of a network file system, or a busy host: the next look may succeed."""


@dataclass(frozen=True)
class Status:
    """What is known of a sweep at one moment."""

    graph: Graph
    states: dict[str, JobState]
    queued: Mapping[str, Queued] = field(default_factory=dict)
    """By key, all jobs of these runs that are in SLURM's queue."""
    orphans: Mapping[str, Queued] = field(default_factory=dict)
    """Jobs of earlier launches of this sweep with other settings that are in the queue."""
    queue_unknown: bool = False
    """Jobs were submitted to SLURM, whose commands this machine does not have."""

    @property
    def leaderboard(self) -> dict[str, Any]:
        """`state`, and `job`, `error` or `out` where they apply."""
        queued = self.queued.get(self.graph.leaderboard.key)
        if queued is not None:
            state = "running" if queued.state == "RUNNING" else "queued"
            return {"state": state, "job": queued.id}
        record = _read_json(self.graph.leaderboard.folder / LEADERBOARD_STATE)
        return {
            "state": record.get("status", "new"),
            **{key: record[key] for key in ("error", "out", "time") if record.get(key)},
        }


def read_status(graph: Graph) -> Status:
    """Asks SLURM's queue only where something was ever submitted to it.

    Raises:
        SlurmUnavailable: it does not answer.
    """
    ledger = read_ledger()
    if not ledger.arrays or not is_installed():
        return Status(graph, read_states(graph, {}), queue_unknown=bool(ledger.arrays))
    queued = queued_jobs(ledger)
    states = read_states(graph, queued, ledger, final_states)
    return Status(graph, states, queued, orphans_of(graph, queued, ledger))


def status_or_reason(graph: Graph) -> Status | str:
    """The status; where SLURM or the file system has no answer for now, the reason: whoever watches asks again."""
    try:
        return read_status(graph)
    except SlurmUnavailable as error:
        return str(error)
    except OSError as error:
        if error.errno not in TRANSIENT_ERRORS:
            raise
        return describe(error) or str(error)


def orphans_of(graph: Graph, queued: Mapping[str, Queued], ledger: Ledger) -> dict[str, Queued]:
    """Jobs in the queue that launches of this sweep's name have submitted, but the present one does not contain."""
    sweeps = {key: entry.sweep for entry in ledger.arrays.values() for key in entry.keys}
    return {key: job for key, job in queued.items() if key not in graph.jobs and sweeps.get(key) == graph.name}


def status_json(status: Status) -> str:
    rows: list[dict[str, Any]] = []
    logs = read_all(log_of, (job.folder for job in status.graph.work))
    for job, log in zip(status.graph.work, logs):
        state = status.states[job.key]
        record = state.record
        row = {
            "cell": job.cell,
            "stage": job.stage,
            "seed": job.task.seed,
            "id": job.task.id,
            "state": state.label,
            "why": state.stalled or state.queue_reason,
            "slurm_job": state.queue_id,
            "node": state.node or None,
            "attempts": state.attempts,
            "progress": state.last,
            "metrics": record.metrics if record else {},
            "error": state.error or None,
            "folder": str(job.folder),
            "log": log or state.log,
            "resources": asdict(job.resources),
        }
        rows.append(row)
    orphans = [{"key": key, "slurm_jobs": job.ids, "state": job.state} for key, job in status.orphans.items()]
    waiting = read_waiting(status.graph.leaderboard.folder)
    content = {
        "sweep": status.graph.name,
        "jobs": rows,
        LEADERBOARD: status.leaderboard,
        "orphans": orphans,
        "waiting_for_room": len(waiting.get("keys") or []),
    }
    return json.dumps(content, indent=1)


def status_text(status: Status, width: int | None = None) -> str:
    """A line per cell (per stage, where there are many); below it what runs where, what waits and why, what failed.

    Args:
        width: characters per line; None: the terminal's, or 160.
    """
    width = width or shutil.get_terminal_size((WIDTH, 24)).columns
    graph, states = status.graph, status.states
    many = len(graph.cells()) > MOST_CELLS
    table = stage_table(graph, states) if many else cell_table(graph, states, width)
    waiting = read_waiting(graph.leaderboard.folder)
    parts = [
        *table,
        "",
        summary(states),
        *leaderboard_line(status.leaderboard),
        *running_lines(graph, states),
        *notes(graph, states, status.orphans, waiting, status.queued, status.queue_unknown),
        *problems(graph, states),
    ]
    return "\n".join(parts)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
