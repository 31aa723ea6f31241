"""On SLURM, evaluations of kept backbones begin while their pretraining runs: as each backbone appears.

They are submitted with the sweep and wait for the pretraining's end. Rank 0 of the pretraining takes that dependency
from those whose backbone is there; where SLURM does not answer, they wait for the end.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from slurm.graph import load_graph
from slurm.job_queue import queued_jobs
from slurm.slurm_command import SlurmUnavailable, ask
from slurm.stages import Task
from whitebench.errors import UserError

EVERY_S = 30.0


@contextmanager
def releasing_kept(task: Task, enabled: bool) -> Iterator[None]:
    """Meanwhile, evaluations of what `task`, a pretraining, keeps are released."""
    if task.stage != "pretrain" or not enabled:
        yield
        return
    stop, released = threading.Event(), set[str]()

    def watch() -> None:
        while not stop.wait(EVERY_S):
            try:
                released.update(release_kept(task, released))
            except (SlurmUnavailable, UserError, OSError) as error:
                print(f"evaluations of kept backbones wait for the end: {error}", flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


def release_kept(task: Task, released: set[str]) -> set[str]:
    """Takes the dependency from the jobs of a pretraining whose kept backbone is there; their keys.

    Args:
        released: keys of jobs that were released before.
    Raises:
        SlurmUnavailable: SLURM does not answer.
    """
    graph = load_graph(str(task.cell["sweep"]))
    ready = {
        job.key
        for job in graph.work
        if job.key not in released
        and job.task.parents.get("pretrain") == task.id
        and (kept := job.task.kept_backbone) is not None
        and kept.exists()
    }
    if not ready:
        return set()
    for key, job in queued_jobs().items():
        if key in ready and job.state == "PENDING":
            ask("scontrol", "update", f"jobid={job.id}", "dependency=", timeout=30.0)
            print(f"{key}: its backbone is there; it may begin", flush=True)
    return ready
