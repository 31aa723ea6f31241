"""What a job's batch script does, done in this process by the project's own code.

That is: the stage with its record, the requeueing of a job that was stopped, and the submission of jobs that wait for
room. Only the tables are not made.
"""

import re
import traceback
from pathlib import Path
from typing import Any, cast

import pytest
from submitit.core.utils import DelayedSubmission, JobPaths, cloudpickle_dump

from slurm import requeue, waves
from slurm.stages import LEADERBOARD
from slurm.waiting import WAITING
from slurm.worker import Worker, leave_leaderboard_state
from tests.support.simulated_slurm.controller import SimulatedJob
from tests.support.simulated_slurm.stage import Asked
from whitebench.errors import UserError


class SubmitterKilled(BaseException):
    """Stands for SIGKILL, between sbatch and the note of its answer."""


def run_script(job: SimulatedJob, stop: bool) -> int:
    """The exit code of the job's batch script.

    Args:
        stop: the job is asked to stop before its run is done.
    Raises:
        SubmitterKilled: the script was killed while it submitted other jobs.
    """
    script = job.script.read_text()
    folder, sweep_folder = Path(_argument("submitit.core._submit", script)), Path(_argument("slurm.waves", script))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path.cwd())
        for name, value in _variables(job, folder).items():
            patch.setenv(name, value)
        paths = JobPaths(folder, job_id=job.id)
        if not paths.submitted_pickle.exists():
            paths.submitted_pickle.symlink_to(f"{job.index or 0}.pkl")
        code = _stage(cast(Worker, DelayedSubmission.load(paths.submitted_pickle).function), paths, stop)
        if job.state != "RUNNING":
            return code  # SLURM has ended the script: it is queued again, or its node is down
        code = requeue.main(folder, code) if code else 0
        if (sweep_folder / WAITING).exists():
            _submit_waiting(sweep_folder)
    return code


def _stage(worker: Worker, paths: JobPaths, stop: bool) -> int:
    if worker.task.stage == LEADERBOARD:
        leave_leaderboard_state(worker.task, "done")
        return 0
    Asked.to_stop = stop
    try:
        worker()
    except SystemExit as end:
        return int(cast(Any, end.code) or 0)
    except Exception:  # as submitit does
        cloudpickle_dump(("error", traceback.format_exc()), paths.result_pickle)
        return 1
    return 0


def _submit_waiting(sweep_folder: Path) -> None:
    try:
        waves.main(sweep_folder)
    except UserError as error:
        print(f"jobs that wait for room in the queue were not queued: {error}", flush=True)


def _argument(module: str, script: str) -> str:
    """What follows `-m module` in the script."""
    match = re.search(rf"-m {re.escape(module)} (\S+)", script)
    assert match, f"the batch script does not call {module}"
    return match[1]


def _variables(job: SimulatedJob, folder: Path) -> dict[str, str]:
    array = {"SLURM_ARRAY_JOB_ID": job.array, "SLURM_ARRAY_TASK_ID": str(job.index)} if job.index is not None else {}
    return {
        "SUBMITIT_EXECUTOR": "slurm",
        "SUBMITIT_FOLDER": str(folder),
        "SLURM_JOB_ID": job.array,
        "SLURM_JOB_NAME": job.name,
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURMD_NODENAME": f"n{job.node}",
        **array,
    }
