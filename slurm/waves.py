"""Jobs that exceeded the queue's limit are submitted as others end: python -m slurm.waves SWEEP_FOLDER.

The launcher leaves `waiting.json` in the sweep's folder. The batch script of every job calls this where that exists.
The leaderboard's job, which waits for all others, is the last that may do so, and tries for a while.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from slurm.clusters import Preset
from slurm.graph import Graph, load_graph
from slurm.job_queue import queued_jobs
from slurm.job_state import JobState, read_states
from slurm.launch_lock import launch_lock
from slurm.slurm_info import read_limits
from slurm.submissions import sweeps_folder
from slurm.submit import Launch
from slurm.waiting import WAITING, leave_waiting, read_waiting
from whitebench.errors import UserError

PATIENCE_S = 1800.0
PAUSE_S = 20.0


def jobs_to_run(graph: Graph, states: dict[str, JobState], retry_failed: bool) -> set[str]:
    """Keys of jobs that are not done or under way, and have not failed (unless to be retried), nor a need of theirs."""
    todo: set[str] = set()
    for job in graph.work:
        state = states[job.key].state
        runnable = state in ("new", "interrupted", "blocked") or (state == "failed" and retry_failed)
        if runnable and all(states[need].state == "done" or states[need].active or need in todo for need in job.needs):
            todo.add(job.key)
    return todo


def submit_waiting(folder: Path) -> int:
    """Queues as many of the waiting jobs as there is room for; how many still wait."""
    with launch_lock(sweeps_folder() / ".lock", wait=True, what="another launcher is submitting"):
        note = read_waiting(folder)
        if not note:
            return 0
        graph, preset, code = load_graph(folder.name), _preset(note["preset"]), Path(note["code"])
        queued = queued_jobs()
        states = read_states(graph, queued)
        todo = jobs_to_run(graph, states, retry_failed=True) & set(note["keys"])
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
            leave_waiting(graph, todo - set(launch.submitted), preset, code, str(error))
            raise
        leave_waiting(graph, remaining, preset, code, launch.refusal)
        print(f"queued {len(launch.submitted)} jobs that had waited for room; {len(remaining)} still wait", flush=True)
        return len(remaining)


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
    is_last = os.environ.get("SLURM_JOB_NAME", "").endswith(":leaderboard")
    end = time.monotonic() + (PATIENCE_S if is_last else 0.0)
    while True:
        waiting = submit_waiting(folder)
        if not waiting or time.monotonic() >= end or not is_last:
            return 0
        if any(state.active for state in read_states(load_graph(folder.name), queued_jobs()).values()):
            return 0
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except UserError as error:
        print(f"jobs that wait for room in the queue were not queued: {error}", flush=True)
