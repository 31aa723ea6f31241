"""Jobs that exceeded the queue's limit are submitted as others end: python -m slurm.waves SWEEP_FOLDER.

The launcher leaves `waiting.json` in the sweep's folder. The batch script of every job calls this where that exists.
Submitting reads the records of many runs, so it is done for many jobs at a time: when enough of the queue has ended,
and by one job at a time; the others leave it to those that end after them. The leaderboard's job, which waits for all
others, is the last that may do so, and tries for a while.
"""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from slurm.clusters import Preset
from slurm.graph import Graph, load_graph
from slurm.job_queue import count_jobs, queued_jobs
from slurm.job_state import JobState, read_states
from slurm.launch_lock import Busy, launch_lock
from slurm.slurm_info import read_limits
from slurm.stages import LEADERBOARD
from slurm.submissions import sweeps_folder
from slurm.submit import Launch
from slurm.waiting import WAITING, in_order, leave_waiting, read_waiting
from whitebench.errors import UserError

PATIENCE_S = 1800.0
PAUSE_S = 20.0
MOST_AT_A_TIME = 5000
"""Waiting jobs that are considered at a time: more than there is ever room for, and few of a large sweep's."""
WAVES_PER_QUEUE = 20
"""Jobs are submitted when this part of the sweep's jobs in the queue has ended since the last submission."""


def jobs_to_run(graph: Graph, states: dict[str, JobState], retry_failed: bool) -> set[str]:
    """Keys of jobs that are not done or under way, and have not failed (unless to be retried), nor a need of theirs."""
    todo: set[str] = set()
    for job in graph.work:
        state = states[job.key].state
        runnable = state in ("new", "interrupted", "blocked") or (state == "failed" and retry_failed)
        if runnable and all(states[need].state == "done" or states[need].active or need in todo for need in job.needs):
            todo.add(job.key)
    return todo


def submit_waiting(folder: Path, is_last: bool) -> int:
    """Queues as many of the waiting jobs as there is room for; how many still wait.

    Args:
        is_last: no other job will do it: submits whatever there is room for, and waits for others that submit.
    Raises:
        Busy: another launcher is submitting. UserError: SLURM refuses, or does not answer.
    """
    with launch_lock(sweeps_folder() / ".lock", wait=is_last, what="another launcher is submitting"):
        note = read_waiting(folder)
        if not note or not (is_last or enough_room(note)):
            return len(note.get("keys") or [])
        preset, code = _preset(note["preset"]), Path(note["code"])
        queued = queued_jobs()
        considered, later = note["keys"][:MOST_AT_A_TIME], note["keys"][MOST_AT_A_TIME:]
        graph = load_graph(folder.name, {*considered, *queued})
        states = read_states(graph, queued)
        todo = jobs_to_run(graph, states, retry_failed=True) & set(considered)
        leaderboard = queued.get(graph.leaderboard.key)
        launch = Launch(
            graph=graph,
            states=states,
            preset=preset,
            folder=launch_folder(graph),
            code=code,
            limits=read_limits(),
            leaderboard_id=leaderboard.id if leaderboard and leaderboard.state == "PENDING" else None,
        )
        try:
            remaining = launch.submit(todo)
        except UserError as error:
            leave_waiting(graph, [*in_order(graph, todo - set(launch.submitted)), *later], preset, code, str(error))
            raise
        waiting = [*in_order(graph, remaining), *later]
        leave_waiting(graph, waiting, preset, code, launch.refusal, launch.fill())
        print(f"queued {len(launch.submitted)} jobs that had waited for room; {len(waiting)} still wait", flush=True)
        return len(waiting)


def enough_room(note: Mapping[str, Any]) -> bool:
    """Whether so many jobs have ended since the last submission that the next one is worth its cost."""
    if not note.get("fill"):
        return True
    in_queue, of_sweep = note["fill"]
    return in_queue - count_jobs() >= min(len(note["keys"]), max(1, of_sweep // WAVES_PER_QUEUE))


def launch_folder(graph: Graph) -> Path:
    """Of this launch alone: submitit finds results by job id, and ids come again."""
    return graph.leaderboard.folder / "launches" / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}"


def _preset(raw: dict[str, Any]) -> Preset:
    from whitebench.config import validated

    return validated(Preset, raw, where=WAITING)


def main(folder: Path) -> int:
    """A job counts towards the queue's limit until it has ended, so the last one has to try for a while."""
    note = read_waiting(folder)
    os.chdir(note.get("cwd", "."))
    if os.environ.get("SLURM_JOB_NAME", "").endswith(f":{LEADERBOARD}"):
        return _submit_patiently(folder)
    with suppress(Busy):  # whoever is submitting, or the next job that ends, sees to it
        submit_waiting(folder, is_last=False)
    return 0


def _submit_patiently(folder: Path) -> int:
    """Until none waits, or something of the sweep is in the queue that will go on with it."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            if not submit_waiting(folder, is_last=True):
                return 0
            if any(state.active for state in read_states(load_graph(folder.name), queued_jobs()).values()):
                return 0
        except UserError as error:
            if time.monotonic() >= end:
                raise
            print(f"{error}; trying again", flush=True)
        if time.monotonic() >= end:
            return 0
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except UserError as error:
        print(f"jobs that wait for room in the queue were not queued: {error}", flush=True)
