"""`--wait`: shows the results of jobs in SLURM's queue as they come. Leaving it does not touch the jobs."""

import time

from slurm.display import Display, Snapshot
from slurm.graph import Graph
from slurm.job_state import JobState, headline, log_of
from slurm.status import Status, status_or_reason
from slurm.waiting import read_waiting
from whitebench.errors import Interrupted

EVERY_S = 5.0
LATE_S = 60.0
"""How long a network file system may take to show what a job has written before it ended."""


def watch(graph: Graph) -> dict[str, str]:
    """Until nothing of the graph is in the queue any more; the state in which it left every job.

    An answer of SLURM or of the file system that does not come is reported, and asked for again.
    """
    display = Display()
    reported: set[str] = set()
    ended_at: float | None = None
    try:
        while True:
            status = status_or_reason(graph)
            if isinstance(status, str):
                display.say(f"{status}; asking again")
                time.sleep(EVERY_S)
                continue
            _show_results(graph, status.states, reported, display)
            display.refresh(_snapshot(graph, status.states))
            if _is_active(status):
                ended_at = None
            else:
                ended_at = ended_at or time.monotonic()
                if not _is_late(status) or time.monotonic() - ended_at > LATE_S:
                    return {key: state.state for key, state in status.states.items()}
            time.sleep(EVERY_S)
    except KeyboardInterrupt as stop:
        raise Interrupted("the jobs go on without this command; --status shows how far they are") from stop
    finally:
        display.close()


def _is_active(status: Status) -> bool:
    if read_waiting(status.graph.leaderboard.folder):
        return True
    active = any(state.active for state in status.states.values())
    return active or status.leaderboard["state"] in ("queued", "running")


def _is_late(status: Status) -> bool:
    """Whether a job that has left the queue is still recorded as running: its end may not be visible here yet."""
    states = status.states.values()
    return any(s.state == "interrupted" and s.record is not None and s.record.status == "running" for s in states)


def _show_results(graph: Graph, states: dict[str, JobState], reported: set[str], display: Display) -> None:
    for job in graph.work:
        state = states[job.key]
        if job.key in reported or state.state not in ("done", "failed"):
            continue
        reported.add(job.key)
        if state.state == "done" and state.record is not None:
            display.finished(job, headline(state.record), float(state.record.cost.get("wall_s") or 0.0))
        else:
            display.failed(job, state.error, log_of(job.folder) or state.log or str(job.folder))


def _snapshot(graph: Graph, states: dict[str, JobState]) -> Snapshot:
    running = [
        (job, states[job.key].last, states[job.key].seconds) for job in graph.work if states[job.key].state == "running"
    ]
    labels = [state.state for state in states.values()]
    return Snapshot(running, {label: labels.count(label) for label in set(labels)}, len(labels))
