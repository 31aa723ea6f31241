"""What runs in a job's process: one task, from wherever it stopped, until it is done or asked to stop.

On the signal that announces a time limit or preemption (SIGUSR2, from SLURM) the stage saves its state and raises
`Interrupted`; only then is the job put back into the queue. Locally the launcher sends SIGTERM, and the process ends.
The pickle that submitit loads holds a `Task` and nothing of the progress.
"""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from slurm.attempts import LEADERBOARD_STATE, note_attempt, note_end
from slurm.kept_releases import releasing_kept
from slurm.scratch import use_scratch
from slurm.slurm_command import DISTRIBUTED, TRANSIENT, SlurmUnavailable, ask
from slurm.stages import LEADERBOARD, Task, run_task
from whitebench.errors import INTERRUPTED, Interrupted, UserError
from whitebench.files import write_json
from whitebench.locks import LEASE_S, Held, Lock, is_taken
from whitebench.records import Record, read_record, stage_folder
from whitebench.signals import handling

PREDECESSOR_S = LEASE_S + 30.0
"""More than SLURM's usual KillWait (30 s), and than a dead holder on another machine keeps its lock."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
MAX_STOPS_WITHOUT_PROGRESS = 3
"""By a time limit: a run that keeps nothing within its limit would be queued again for ever."""
MAX_PREEMPTIONS_WITHOUT_PROGRESS = 20
EARLY_S = 90.0
"""SLURM may send its warning up to a minute early."""
PARENTS_S = 60.0
"""How long a network file system may take to show what another node has written."""
REQUEUE_PATIENCE_S = 900.0
MOST_REFUSALS = 3
"""After which SLURM's refusal to queue a job again is taken as meant."""
PREEMPTED_STATES = ("COMPLETING", "PREEMPTED")
PARENT_MISSING = 76
"""Exit code of a job whose needs are not done: not a failure of its own."""


@dataclass
class Worker:
    """The callable that submitit pickles."""

    task: Task
    environment: dict[str, str] = field(default_factory=dict)
    limit_s: float | None = None
    """Time limit of the job; None: it has none."""
    warning_s: float = 0.0
    """How long before its limit the job is asked to stop."""

    def __call__(self) -> None:
        began = time.monotonic()
        os.environ.update(self.environment)
        _note_start(self.task.folder)
        _join_ranks()
        _require_parents(self.task)
        _let_predecessor_end(self.task.folder)
        try:
            with interruptible(), releasing_kept(self.task, enabled=_on_slurm() and not _rank()):
                use_scratch(self.task)
                run_task(self.task)
            leave_leaderboard_state(self.task, "done")
        except Interrupted as stop:
            print(f"interrupted: {stop}", flush=True)
            self._give_way(time.monotonic() - began)
        except Exception as error:
            cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            if self.task.stage == LEADERBOARD and isinstance(error, UserError):  # nothing but pretraining, say
                leave_leaderboard_state(self.task, "empty", cause)
                print(f"no tables: {error}", flush=True)
                return
            leave_failure(self.task, cause)
            raise

    def checkpoint(self) -> Any:
        """What runs when the job is queued again: the same, since all state is on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Worker(self.task, self.environment, self.limit_s, self.warning_s))

    def _give_way(self, elapsed: float) -> None:
        """Ends this process after its state is saved; on SLURM the job is queued again, unless it was cancelled."""
        from submitit import JobEnvironment

        if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
            sys.exit(INTERRUPTED)
        job = JobEnvironment()
        if job.global_rank == 0 and runs_on(job.job_id):
            limited = self.limit_s is not None and elapsed + self.warning_s + EARLY_S >= self.limit_s
            note = {
                "stopped": "time limit" if limited else "preempted",
                "job": job.job_id,
                "log": str(job.paths.stdout),
            }
            stops = note_end(self.task.folder, "stopped", **note)
            if stops > (MAX_STOPS_WITHOUT_PROGRESS if limited else MAX_PREEMPTIONS_WITHOUT_PROGRESS):
                leave_failure(self.task, self._no_progress(stops, elapsed, limited))
            elif requeue(job.job_id):
                print(f"job {job.job_id} is queued again", flush=True)
        sys.exit(INTERRUPTED)

    def _no_progress(self, stops: int, elapsed: float, limited: bool) -> str:
        if not limited:
            return f"preempted {stops} times in a row without any progress"
        return (
            f"stopped {stops} times in a row by its time limit without any progress: it needs more than "
            f"{elapsed / 60:.3g} min (limit {(self.limit_s or 0) / 60:g} min, warned {self.warning_s:g} s before); "
            "set more hours for the stage, or a smaller signal_delay_s"
        )


def job_environment(threads: int) -> dict[str, str]:
    """Variables of a job's process: its threads, and absolute paths of runs and data."""
    folders = {name: os.environ.get(name, default) for name, default in FOLDERS.items()}
    return {
        **{name: str(Path(folder).absolute()) for name, folder in folders.items()},
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
    }


FOLDERS = {"WHITEBENCH_RUNS": "runs", "WHITEBENCH_DATA": "data"}


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


def requeue(job: str) -> bool:
    """Puts a running job back into the queue; False where SLURM refuses, or does not answer for a long time.

    A job that is not queued again is lost until the next launch, so that it is worth waiting for a controller that is
    being restarted. Meanwhile SLURM does not end the job either, since its controller would have to say so.

    Args:
        job: of an array's task `<array>_<index>`: SLURM_JOB_ID of the last task stands for the whole array.
    """
    end, pause, refusals = time.monotonic() + REQUEUE_PATIENCE_S, 2.0, 0
    while True:
        try:
            ask("scontrol", "requeue", job, timeout=30.0)
            return True
        except SlurmUnavailable as error:
            print(f"job {job} cannot be queued again: {error}", flush=True)
            refusals += not TRANSIENT.search(str(error))
        if refusals == MOST_REFUSALS or time.monotonic() >= end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 30.0)


def runs_on(job: str) -> bool:
    """False where SLURM has ended the job already (scancel): it must not come back. Without an answer, it runs on."""
    return _queue_field(job, "%T") in (None, "RUNNING")


Ending = Literal["", "time limit", "preemption"]


def ended_by_slurm(job: str) -> Ending:
    """Why SLURM is ending the job, where it is for no fault of the job's and by no wish of the user's.

    With PreemptMode=CANCEL a preempted job looks as if it was cancelled, but for the time of its preemption.
    """
    if _queue_field(job, "%r") == "TimeLimit":
        return "time limit"
    try:
        fields = dict(re.findall(r"(\w+)=(\S*)", ask("scontrol", "show", "job", "-o", job, timeout=30.0))[::-1])
    except SlurmUnavailable:
        return ""
    state, preempted, started = (fields.get(name, "") for name in ("JobState", "PreemptTime", "StartTime"))
    return "preemption" if state in PREEMPTED_STATES and preempted[:1].isdigit() and preempted >= started else ""


def _queue_field(job: str, field_format: str) -> str | None:
    """None where SLURM does not answer.

    Args:
        job: of an array's task `<array>_<index>`. SLURM_JOB_ID of the last task stands for the whole array.
    """
    try:
        return ask("squeue", "-h", "-j", job, "-o", field_format, timeout=30.0).strip()
    except SlurmUnavailable:
        return None


def parents_done(task: Task) -> bool:
    """Whether the runs that the task builds on are done."""
    folders = [stage_folder(stage.partition(":")[0], run_id) for stage, run_id in task.parents.items()]
    records = [read_record(folder) for folder in folders]
    return all(record is not None and record.status == "done" for record in records)


def _on_slurm() -> bool:
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _backbone_is_kept(task: Task) -> bool:
    """Whether the task is of a backbone that its pretraining has kept already."""
    kept = task.kept_backbone
    return kept is not None and kept.exists()


def _require_parents(task: Task) -> None:
    """SLURM forgets jobs, and then drops the dependency on one that failed: its dependants start nevertheless."""
    if not _on_slurm():
        return
    end = time.monotonic() + PARENTS_S
    while not (parents_done(task) or _backbone_is_kept(task)):
        if time.monotonic() > end:
            print("a run that this one builds on is not done; nothing was run", flush=True)
            sys.exit(PARENT_MISSING)
        time.sleep(1.0)


def _let_predecessor_end(folder: Path) -> None:
    """A job that was queued again may start while the process it had before still dies, on another node perhaps."""
    end = time.monotonic() + PREDECESSOR_S
    while not _rank() and is_taken(folder / ".lock") and time.monotonic() < end:
        time.sleep(0.5)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _join_ranks() -> None:
    """Tells torch.distributed which rank this is, or that it is the only one."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    job = JobEnvironment()
    for name in DISTRIBUTED:  # of the shell that launched
        os.environ.pop(name, None)
    if job.num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.num_nodes == 1:
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # a node need not be able to resolve its own name


def _note_start(folder: Path) -> None:
    """Appends to the run's folder which job works on it, and where its log is."""
    if os.environ.get("SUBMITIT_EXECUTOR") not in ("slurm", "local"):
        return
    from submitit import JobEnvironment

    job = JobEnvironment()
    if not job.global_rank:
        where = {"host": socket.gethostname(), "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname()}
        note_attempt(folder, cluster=job.cluster, job=job.job_id, **where, pid=os.getpid(), log=str(job.paths.stdout))


def leave_failure(task: Task, error: str) -> None:
    """A stage that failed before it opened its record (a missing package, say) still leaves one that says so."""
    if task.stage == LEADERBOARD:
        leave_leaderboard_state(task, "failed", error)
        return
    folder = task.folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / ".lock")
    try:
        lock.acquire()
    except Held:
        return  # another process is at work on this run: its record must not be changed here
    try:
        before = read_record(folder)
        if before is not None and before.status == "done":
            return
        record = before or Record(task.id, task.stage, config={}, cell={"recipe": task.recipe, **task.cell})
        record.status, record.error = "failed", error
        write_json(folder / "run.json", asdict(record))
    finally:
        lock.release()


def leave_leaderboard_state(task: Task, status: str, error: str | None = None) -> None:
    """Writes the state of the tables' job, which has no run record: otherwise nobody would see that it failed."""
    if task.stage == LEADERBOARD:
        state = {"status": status, "time": round(time.time(), 3), "error": error, "out": task.options.get("out")}
        write_json(task.folder / LEADERBOARD_STATE, state)
