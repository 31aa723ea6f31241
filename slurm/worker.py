"""What runs in a job's process: one task, from wherever it stopped, until it is done or asked to stop.

On the signal that announces a time limit or preemption (SIGUSR2, from SLURM by way of submitit) the stage saves its
state and raises `Interrupted`; only then is the job put back into the queue. Locally the launcher sends SIGTERM, and
the process ends. The pickle that submitit keeps holds a `Task` and nothing of the progress.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from slurm.scratch import use_scratch
from slurm.stages import Task, run_task
from whitebench.errors import INTERRUPTED, Interrupted
from whitebench.files import write_json
from whitebench.locks import LEASE_S, Held, Lock, is_taken
from whitebench.records import Record, read_record
from whitebench.signals import handling

ATTEMPTS = "attempts.jsonl"
PREDECESSOR_S = LEASE_S + 30.0
"""More than SLURM's usual KillWait (30 s), and than a dead holder on another machine keeps its lock."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass
class Worker:
    """The callable that submitit pickles."""

    task: Task
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> None:
        os.environ.update(self.environment)
        _note_attempt(self.task.folder)
        _join_ranks()
        _let_predecessor_end(self.task.folder)
        try:
            with interruptible():
                use_scratch(self.task)
                run_task(self.task)
        except Interrupted as stop:
            print(f"interrupted: {stop}", flush=True)
            _give_way()
        except Exception as error:
            leave_failure(self.task, f"{type(error).__name__}: {error}")
            raise

    def checkpoint(self) -> Any:
        """What runs when the job is queued again: the same, since all state is on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Worker(self.task, self.environment))


def job_environment(threads: int) -> dict[str, str]:
    """Variables of a job's process: its threads, and absolute places of runs and data."""
    places = {name: os.environ.get(name, default) for name, default in PLACES.items()}
    return {
        **{name: str(Path(place).absolute()) for name, place in places.items()},
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
    }


PLACES = {"WHITEBENCH_RUNS": "runs", "WHITEBENCH_DATA": "data"}


@contextmanager
def interruptible() -> Iterator[None]:
    """The first of SIGINT, SIGTERM and SIGUSR2 raises `Interrupted` wherever the stage is; later ones are ignored.

    A stage that saves before it stops sets handlers of its own meanwhile. Ranks above 0 ignore the signals: rank 0
    decides, and its end ends the others.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not received:
            received.append(number)
            raise Interrupted(f"by {signal.Signals(number).name}; launching again goes on from the last checkpoint")

    handler = signal.SIG_IGN if _rank() else stop
    with handling(handler):
        yield


def _give_way() -> None:
    """Ends this process after its state is saved; on SLURM the job is queued again, unless it was cancelled."""
    from submitit import JobEnvironment

    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and runs_on(JobEnvironment().job_id):
        signal.raise_signal(signal.SIGUSR2)  # submitit's handler: queues the job again and exits
    sys.exit(INTERRUPTED)


def runs_on(job: str) -> bool:
    """False where SLURM has ended the job already (scancel): it must not come back."""
    return _queue_says(job, "%T") in (None, "RUNNING")


def ran_out_of_time(job: str) -> bool:
    """Whether SLURM is ending the job because its time limit has come."""
    return _queue_says(job, "%r") == "TimeLimit"


def _queue_says(job: str, what: str) -> str | None:
    """None where SLURM does not answer.

    Args:
        job: of an array's task `<array>_<task>`. SLURM_JOB_ID of the last task stands for the whole array.
    """
    asked = subprocess.run(["squeue", "-h", "-j", job, "-o", what], capture_output=True, text=True, timeout=60)
    return None if asked.returncode else asked.stdout.strip()


def _let_predecessor_end(folder: Path) -> None:
    """A job that was queued again may start while the process it had before still dies, on another node perhaps."""
    end = time.monotonic() + PREDECESSOR_S
    while not _rank() and is_taken(folder / ".lock") and time.monotonic() < end:
        time.sleep(0.5)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _join_ranks() -> None:
    """Tells torch.distributed who is who, where a job has several processes."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    job = JobEnvironment()
    if job.num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.num_nodes == 1:
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # a node need not be able to resolve its own name


def _note_attempt(folder: Path) -> None:
    """Appends to the run's folder which job works on it, and where its log is."""
    if os.environ.get("SUBMITIT_EXECUTOR") not in ("slurm", "local"):
        return
    from submitit import JobEnvironment

    job = JobEnvironment()
    if job.global_rank:
        return
    attempt = {
        "time": round(time.time(), 3),
        "cluster": job.cluster,
        "job": job.job_id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "log": str(job.paths.stdout),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ATTEMPTS, "a") as file:
        file.write(json.dumps(attempt) + "\n")


def leave_failure(task: Task, error: str) -> None:
    """A stage that failed before it opened its record (a missing package, say) still leaves one that says so."""
    folder = task.folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / ".lock")
    try:
        lock.acquire()
    except Held:
        return  # another process is at work on this run: its record is not ours to touch
    try:
        before = read_record(folder)
        if before is not None and before.status == "done":
            return
        record = before or Record(task.id, task.stage, config={}, cell={"recipe": task.recipe, **task.cell})
        record.status, record.error = "failed", error
        write_json(folder / "run.json", asdict(record))
    finally:
        lock.release()
