"""What a batch script does when its processes did not end well: python -m slurm.requeue FOLDER [CODE [setup]].

With their exit CODE, after them; with `setup`, the preset's setup has failed before them; without, they are being ended
because (perhaps) the time limit has come, or the job is preempted by cancelling it.

Processes that were killed (out of memory, kill -9, a fault of the node, a time limit that came before all was saved)
could not report it. Their job goes back into the queue, where it keeps its id, so that what depends on it goes on
waiting; unless it gets no further that way. A job that was killed after its run was done is not a failure: this exits
with 0, otherwise with CODE (or 1).
"""

import re
import sys
from pathlib import Path
from typing import cast

from slurm.attempts import note_end
from slurm.exit_codes import SIGNALLED, explain
from slurm.stages import Task
from slurm.worker import (
    MAX_PREEMPTIONS_WITHOUT_PROGRESS,
    PARENT_MISSING,
    Worker,
    ended_by_slurm,
    leave_failure,
    requeue,
    runs_on,
)
from whitebench.errors import INTERRUPTED
from whitebench.records import read_record

PEER_LOST = re.compile("by peer|broken pipe|remote worker|remote process", re.IGNORECASE)
"""What gloo and nccl say in the other ranks when one has died: a consequence, not the cause."""
MAX_KILLS_WITHOUT_PROGRESS = 3
"""This many kills in a row, without any progress between them, are followed by a requeue; the next is a failure."""


def should_requeue(task: Task, code: int | None, error: str | None, job: str, log: str) -> bool:
    """Whether the job must go back into the queue. Otherwise the run's record says why it ended, if it did not yet.

    Args:
        code: the exit code of the job's processes; None: they are being ended.
        error: what a process that failed left, if one did.
        job: SLURM's id, of an array's task `<array>_<index>`.
        log: where the job's log is.
    """
    record = read_record(task.folder)
    failed = record is not None and record.status == "failed" and not PEER_LOST.search(record.error or "")
    ending = ended_by_slurm(job)
    if failed or code == PARENT_MISSING or not (ending or (code is not None and runs_on(job))):
        return False
    if ending == "preemption":
        return _comes_back_after_preemption(task, job, log)
    late = ending == "time limit"
    if code == INTERRUPTED and not late and record is not None and record.status == "interrupted":
        return True  # it has saved its state, and SLURM did not answer when it asked to be queued again
    exit_code = explain(code) if code is not None else None
    consequence = error is None or PEER_LOST.search(error)
    if late or (code is not None and code > SIGNALLED and consequence):
        kills = note_end(task.folder, "killed", job=job, killed=code or "time limit", log=log)
        if late:
            guess = "its time limit ends before it saves: more hours, or signal_delay_s"
        else:
            guess = exit_code.text if exit_code else ""
        if kills <= MAX_KILLS_WITHOUT_PROGRESS and (late or exit_code is None or exit_code.by_chance):
            return True
        error = f"killed {kills} times in a row without getting any further ({guess})"
        if kills == 1:
            error = f"{guess}; see {log}"
    leave_failure(
        task, error or f"ended with {exit_code.text if exit_code else 'no exit code'}, and did not say why; see {log}"
    )
    return False


def _comes_back_after_preemption(task: Task, job: str, log: str) -> bool:
    stops = note_end(task.folder, "stopped", stopped="preempted", job=job, log=log)
    if stops > MAX_PREEMPTIONS_WITHOUT_PROGRESS:
        leave_failure(task, f"preempted {stops} times in a row without any progress")
    return stops <= MAX_PREEMPTIONS_WITHOUT_PROGRESS


def _status(task: Task) -> str | None:
    record = read_record(task.folder)
    return record.status if record else None


def _error(folder: Path, job: str, ranks: int) -> str | None:
    """The last line of a rank's traceback that submitit kept, the cause before its consequences in other ranks."""
    from submitit.core.utils import JobPaths, pickle_load

    errors = []
    for rank in range(ranks):
        path = JobPaths(folder, job_id=job, task_id=rank).result_pickle
        if path.exists():
            outcome, traceback = pickle_load(path)
            if outcome == "error":
                errors.append((f"rank {rank}: " if ranks > 1 else "") + str(traceback).strip().splitlines()[-1])
    return min(errors, key=lambda text: bool(PEER_LOST.search(text)), default=None)


def main(folder: Path, code: int | None, in_setup: bool = False) -> int:
    from submitit.core.utils import DelayedSubmission, JobPaths
    from submitit.slurm.slurm import SlurmJobEnvironment

    job = SlurmJobEnvironment()
    paths = JobPaths(folder, job_id=job.job_id)
    pickle = folder / f"{job.array_task_id or 0}.pkl"  # the script links the other to it, but only after the setup
    pickle = pickle if pickle.exists() else paths.submitted_pickle
    task = cast(Worker, DelayedSubmission.load(pickle).function).task
    if _status(task) == "done":
        return 0
    log = str(paths.stdout)
    if in_setup:
        if runs_on(job.job_id):
            leave_failure(task, f"the preset's setup ended the job with exit code {code}; see {log}")
        return code or 1
    error = _error(folder, job.job_id, job.num_tasks)
    # not by SLURM_JOB_ID: that of an array's last task stands for the whole array, and would bring back all of it
    if should_requeue(task, code, error, job.job_id, log) and requeue(job.job_id):
        why = "by SLURM" if code is None else explain(code).text
        print(f"ended ({why}); queued again, to go on from its last checkpoint", flush=True)
    return code or 1


if __name__ == "__main__":
    code_given = len(sys.argv) > 2
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if code_given else None, in_setup=len(sys.argv) > 3))
