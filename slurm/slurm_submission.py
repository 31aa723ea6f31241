"""A launch on SLURM: reads the queue, submits a sweep's remaining jobs, and notes those beyond the queue's limit."""

import time
from collections.abc import Callable

from slurm.clusters import Preset
from slurm.graph import Graph
from slurm.job_queue import Queued, final_states
from slurm.job_state import JobState, read_states
from slurm.launch_lock import launch_lock
from slurm.preview import warnings
from slurm.queue_cleanup import settled_queue
from slurm.slurm_info import read_limits
from slurm.snapshot import take_snapshot
from slurm.status import orphans_of
from slurm.status_table import orphan_lines, summary
from slurm.submissions import read_ledger, sweeps_folder
from slurm.submit import Launch
from slurm.waiting import forget_waiting, in_order, leave_waiting
from slurm.waves import jobs_to_run, launch_folder
from whitebench.errors import UserError

Rerun = Callable[[Graph, dict[str, JobState]], bool]


def submit_sweep(graph: Graph, preset: Preset, retry_failed: bool, rerun: Rerun) -> tuple[dict[str, JobState], bool]:
    """Submits all jobs that are not done and not under way.

    Args:
        rerun: sets runs aside that are to be run again; whether it did.
    Returns:
        The states before the launch, and whether anything of the sweep is in the queue now.
    Raises:
        UserError: SLURM refuses, or does not answer. What was submitted stays, and launching again adds the rest.
    """
    with launch_lock(sweeps_folder() / ".lock", wait=True, what="another launcher is submitting"):
        limits = read_limits()
        queued, states = _read(graph)
        if rerun(graph, states):
            queued, states = _read(graph)
        todo = jobs_to_run(graph, states, retry_failed)
        graph.save(cluster="slurm", launched=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        forget_waiting(graph, graph.jobs)  # the note of an earlier launch: what waited is among `todo`
        print(f"sweep {graph.name}: {summary(states)}", flush=True)
        for line in orphan_lines(orphans_of(graph, queued, read_ledger())):
            print(line)
        if not todo:
            return states, any(state.active for state in states.values())
        for text in warnings(graph, preset, limits):
            print(f"note: {text}")
        pending = queued.get(graph.leaderboard.key)
        launch = Launch(
            graph=graph,
            states=dict(states),
            preset=preset,
            folder=launch_folder(graph),
            code=take_snapshot(sweeps_folder() / "code"),
            limits=limits,
            leaderboard_id=pending.id if pending and pending.state == "PENDING" else None,
        )
        waiting = launch.submit(todo)
        _report(launch, todo, waiting)
        return states, True


def _read(graph: Graph) -> tuple[dict[str, Queued], dict[str, JobState]]:
    queued = settled_queue(graph)
    return queued, read_states(graph, queued, read_ledger(), final_states)


def _report(launch: Launch, todo: set[str], waiting: set[str]) -> None:
    """Prints what was submitted, and leaves the note about what waits for room."""
    under_way = launch.submitted or any(state.active for state in launch.states.values())
    if waiting and not under_way:
        raise UserError(
            f"SLURM takes no more jobs ({launch.refusal}), and none of this sweep is queued; launch again later"
        )
    fill = launch.fill() if waiting else None
    keys = in_order(launch.graph, waiting)
    leave_waiting(launch.graph, keys, launch.preset, launch.code, launch.refusal, fill)
    board = " and the leaderboard" if launch.submitted else ""
    print(f"submitted {len(launch.submitted)} jobs{board} by {len(launch.ids)} calls of sbatch: {_listed(launch.ids)}")
    if waiting:
        print(f"{len(waiting)} jobs wait for room in SLURM's queue ({launch.refusal}); jobs that end queue them")
    print(f"they run this code as it is now: snapshot {launch.code.name}")


def _listed(ids: list[str]) -> str:
    return ", ".join(ids) if len(ids) <= 12 else f"{', '.join(ids[:12])}, ..."
