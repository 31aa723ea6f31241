"""`--wait`: shows the results of jobs in SLURM's queue as they come. Leaving it leaves the jobs alone."""

import time

from slurm.display import Display, Snapshot
from slurm.graph import Graph
from slurm.job_state import JobState, headline, log_of, read_states
from slurm.submissions import queued_jobs
from whitebench.errors import Interrupted

EVERY_S = 5.0


def watch(graph: Graph) -> dict[str, str]:
    """Until nothing of the graph is in the queue any more; the state in which it left every job."""
    display = Display()
    shown: set[str] = set()
    try:
        while True:
            queued = queued_jobs()
            states = read_states(graph, queued)
            _show_news(graph, states, shown, display)
            display.refresh(_snapshot(graph, states))
            if graph.leaderboard.key not in queued and not any(found.active for found in states.values()):
                return {key: found.state for key, found in states.items()}
            time.sleep(EVERY_S)
    except KeyboardInterrupt as stop:
        raise Interrupted("the jobs go on without us; --status shows how far they are") from stop
    finally:
        display.close()


def _show_news(graph: Graph, states: dict[str, JobState], shown: set[str], display: Display) -> None:
    for job in graph.work:
        found = states[job.key]
        if job.key in shown or found.record is None or found.state not in ("done", "failed"):
            continue
        shown.add(job.key)
        if found.state == "done":
            display.finished(job, headline(found.record), float(found.record.cost.get("wall_s") or 0.0))
        else:
            display.failed(job, found.record.error or "", log_of(job.folder) or str(job.folder))


def _snapshot(graph: Graph, states: dict[str, JobState]) -> Snapshot:
    now = time.time()
    running = [
        (job, states[job.key].last, now - states[job.key].last.get("time", now))
        for job in graph.work
        if states[job.key].state == "running"
    ]
    counted = [found.state for found in states.values()]
    return Snapshot(running, {state: counted.count(state) for state in set(counted)}, len(counted))
