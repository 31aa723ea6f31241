"""Before a launch: the queue as it will be once what is ending has ended, without jobs that can never run.

Otherwise a launch right after a cancellation would take for queued what is about to leave the queue, and lose it.
"""

import subprocess
import time

from slurm.graph import Graph
from slurm.submissions import Queued, queued_jobs
from whitebench.errors import UserError
from whitebench.records import read_record

ENDING_S = 90.0
POLL_S = 1.0


def settled_queue(graph: Graph) -> dict[str, Queued]:
    """What the queue holds of the graph, by key; jobs that wait for what will never be are cancelled there."""
    queued = _without_ending(graph)
    lost = _never_to_run(graph, queued)
    if lost:
        cancel([queued[key].id for key in lost])
    return {key: found for key, found in queued.items() if key not in lost}


def cancel(ids: list[str]) -> None:
    """Takes jobs off the queue, or stops them.

    Raises:
        UserError: SLURM refuses, in its own words; jobs that have left the queue meanwhile are none of its reasons.
    """
    for first in range(0, len(ids), 100):
        told = subprocess.run(["scancel", "--quiet", *ids[first : first + 100]], capture_output=True, text=True)
        if told.returncode:
            raise UserError(f"scancel: {told.stderr.strip()}")


def _without_ending(graph: Graph) -> dict[str, Queued]:
    """Waits, within reason, for jobs that are just ending: they may come back, or be gone."""
    end = time.monotonic() + ENDING_S
    while True:
        queued = queued_jobs()
        ending = [key for key, job in queued.items() if key in graph.jobs and job.state == "COMPLETING"]
        if all(_is_done(graph, key) for key in ending) or time.monotonic() > end:
            return queued
        time.sleep(POLL_S)


def _never_to_run(graph: Graph, queued: dict[str, Queued]) -> set[str]:
    """Pending jobs of which a need has failed or is gone; they would be cancelled by SLURM sooner or later."""
    lost: set[str] = set()
    for job in graph.work:  # needs come before what needs them
        waiting = queued.get(job.key)
        if waiting is None or waiting.state != "PENDING":
            continue
        met = all((need in queued and need not in lost) or _is_done(graph, need) for need in job.needs)
        if not (met and waiting.can_run):
            lost.add(job.key)
    return lost


def _is_done(graph: Graph, key: str) -> bool:
    record = read_record(graph[key].folder)
    return record is not None and record.status == "done"
