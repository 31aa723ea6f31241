"""What a batch script does when its processes did not end well: python -m slurm.requeue FOLDER [CODE].

With their exit CODE, after them; without, while they are ended because (perhaps) the time limit has come.

Whoever was killed (out of memory, kill -9, a fault of the node, a time limit that came before all was saved) could not
speak for itself. Its job goes back into the queue, where it keeps its id, so that what depends on it goes on waiting;
unless it gets no further that way. A job that was killed after its run was done is no failure: this exits with 0, else
with CODE (or 1).
"""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

from slurm.stages import Task
from slurm.worker import ATTEMPTS, Worker, leave_failure, ran_out_of_time, runs_on
from whitebench.files import CHECKPOINT_HASHES, append_json_line, last_json_line, read_json_lines
from whitebench.records import METRICS, read_record

KILLED = 128
"""Exit codes above it: the shell's and srun's words for a death by signal."""
PEER_LOST = re.compile("by peer|broken pipe|remote worker|remote process", re.IGNORECASE)
"""What gloo and nccl say in the other ranks when one has died: a consequence, not the cause."""
FORGIVEN = 3
"""So many kills in a row, without any progress between them, end the job as failed."""


def must_return(task: Task, code: int | None, error: str | None, job: str, log: str) -> bool:
    """Whether the job must go back into the queue. Otherwise the run's record says why it ended, if it did not yet.

    Args:
        code: the exit code of the job's processes; None: they are being ended.
        error: what a process that failed left, if one did.
        job: SLURM's id, of an array's task `<array>_<task>`.
        log: where the job's log is.
    """
    record = read_record(task.folder)
    failed = record is not None and record.status == "failed" and not PEER_LOST.search(record.error or "")
    late = ran_out_of_time(job)
    if failed or not (late or (code is not None and runs_on(job))):
        return False
    if late or (code is not None and code > KILLED and (error is None or PEER_LOST.search(error))):
        kills = _note_kill(task.folder, code, job, log)
        if kills <= FORGIVEN:
            return True
        guess = (
            "its time limit ends before it saves: more hours, or signal_delay_s"
            if late
            else f"exit code {code}: out of memory?"
        )
        error = f"killed {kills} times in a row without getting any further ({guess})"
    leave_failure(task, error or f"ended with exit code {code}, and did not say why; see {log}")
    return False


def _status(task: Task) -> str | None:
    record = read_record(task.folder)
    return record.status if record else None


def _note_kill(folder: Path, code: int | None, job: str, log: str) -> int:
    """Writes it down; how many there have been since the run last got further."""
    place = _place(folder)
    kills = [line for line in read_json_lines(folder / ATTEMPTS) if "killed" in line]
    count = 1
    while count <= len(kills) and kills[-count]["place"] == place:
        count += 1
    line = {"time": round(time.time(), 3), "job": job, "killed": code or "time limit", "place": place, "log": log}
    folder.mkdir(parents=True, exist_ok=True)
    append_json_line(folder / ATTEMPTS, line)
    return count


def _place(folder: Path) -> list[Any]:
    """What changes when a run gets further: its last step in the metrics, and its checkpoint."""
    checkpoint = folder / CHECKPOINT_HASHES
    return [last_json_line(folder / METRICS).get("step"), checkpoint.read_text() if checkpoint.exists() else None]


def _error(folder: Path, job: str, ranks: int) -> str | None:
    """The last line of a rank's traceback that submitit kept, the cause before its consequences in other ranks."""
    from submitit.core.utils import JobPaths, pickle_load

    errors = []
    for rank in range(ranks):
        path = JobPaths(folder, job_id=job, task_id=rank).result_pickle
        if path.exists():
            outcome, told = pickle_load(path)
            if outcome == "error":
                errors.append((f"rank {rank}: " if ranks > 1 else "") + str(told).strip().splitlines()[-1])
    return min(errors, key=lambda text: bool(PEER_LOST.search(text)), default=None)


def main(folder: Path, code: int | None) -> int:
    from submitit.core.utils import DelayedSubmission, JobPaths
    from submitit.slurm.slurm import SlurmJobEnvironment

    job = SlurmJobEnvironment()
    paths = JobPaths(folder, job_id=job.job_id)
    task = cast(Worker, DelayedSubmission.load(paths.submitted_pickle).function).task
    if _status(task) == "done":
        return 0
    error = _error(folder, job.job_id, job.num_tasks)
    # not by SLURM_JOB_ID: that of an array's last task stands for the whole array, and would bring back all of it
    if must_return(task, code, error, job.job_id, str(paths.stdout)):
        why = "time limit" if code is None else f"exit code {code}"
        print(f"killed ({why}); queued again, to go on from its last checkpoint", flush=True)
        subprocess.run(["scontrol", "requeue", job.job_id], check=True, timeout=60)
    return code or 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
