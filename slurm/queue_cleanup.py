"""Before a launch: the queue as it will be once what is ending has ended, without jobs that can never run.

Otherwise a launch right after a cancellation would take for queued what is about to leave the queue, and lose it.
"""

import subprocess
import time

from slurm.graph import Graph
from slurm.job_queue import Queued, queued_jobs
from slurm.slurm_command import TIMEOUT_S, SlurmUnavailable, clean_environment
from whitebench.errors import UserError
from whitebench.records import read_record

ENDING_S = 90.0
POLL_S = 1.0


def settled_queue(graph: Graph) -> dict[str, Queued]:
    """What the queue holds, by key; jobs of the graph that wait for what will never be done are cancelled there."""
    queued = _without_ending(graph)
    lost = _never_to_run(graph, queued)
    if lost:
        cancel([job for key in lost for job in queued[key].ids])
    return {key: job for key, job in queued.items() if key not in lost}


def cancel(ids: list[str]) -> None:
    """Takes jobs off the queue, or stops them. It is not an error if some have left it meanwhile.

    Raises:
        UserError: SLURM refuses, in its own words. SlurmUnavailable: it does not answer.
    """
    for first in range(0, len(ids), 100):
        command = ["scancel", "--quiet", *ids[first : first + 100]]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=clean_environment())
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SlurmUnavailable(f"SLURM does not answer: {error}") from error
        if answer.returncode:
            raise UserError(f"scancel: {' '.join(answer.stderr.split())}")


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
        entry = queued.get(job.key)
        if entry is None or entry.state != "PENDING":
            continue
        met = all((need in queued and need not in lost) or _is_done(graph, need) for need in job.needs)
        if not (met and entry.can_run):
            lost.add(job.key)
    return lost


def _is_done(graph: Graph, key: str) -> bool:
    record = read_record(graph[key].folder)
    return record is not None and record.status == "done"
