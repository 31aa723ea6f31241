"""A graph to SLURM: whole, as submitit arrays, one a stage, with dependencies from task to task.

Task i of an array waits for task i of the array before it (`aftercorr`), so that no cell waits for another's. For that,
arrays are cut alike: cells that have the same jobs left go together, in chunks that the cluster's MaxArraySize allows.
Nothing of ours stays alive on the login node.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.clusters import Preset
from slurm.graph import Graph, Job
from slurm.job_state import JobState
from slurm.scratch import SCRATCH
from slurm.slurm_info import time_limits
from slurm.snapshot import job_path
from slurm.submissions import MARK, announce
from slurm.worker import Worker, job_environment
from whitebench.errors import UserError

MAX_REQUEUES = 10_000
"""Of a run by time limits. submitit counts some preemptions as such, too."""
DEFAULT_HOURS = 24.0
NO_LIMIT = 10**9


@dataclass(frozen=True)
class Submission:
    """One call of sbatch: an array of jobs that ask for the same, or a single job."""

    jobs: tuple[Job, ...]
    after: tuple[int, ...] = ()
    """Earlier submissions: task i waits for success of its task i."""
    after_queued: tuple[str, ...] = ()
    """SLURM ids of jobs that an earlier launch has queued: waits for their success."""
    after_end: tuple[int, ...] = ()
    """Earlier submissions: waits for the end of all their tasks, however they end."""
    after_end_queued: tuple[str, ...] = ()

    @property
    def waited_for(self) -> tuple[int, ...]:
        return self.after + self.after_end

    def dependency(self, ids: list[str]) -> str | None:
        """In sbatch's words; `ids` are those of earlier submissions."""
        own = "aftercorr" if len(self.jobs) > 1 else "afterok"
        parts = [f"{own}:{ids[i]}" for i in self.after] + [f"afterok:{job}" for job in self.after_queued]
        parts += [f"afterany:{job}" for job in [*(ids[i] for i in self.after_end), *self.after_end_queued]]
        return ",".join(parts) or None


def plan_submissions(graph: Graph, todo: set[str], states: Mapping[str, JobState], max_array: int) -> list[Submission]:
    """The calls of sbatch that bring `todo` into the queue, each after those it depends on."""
    planned: list[Submission] = []
    for chunk in _alike(graph, todo, states, max_array):
        place: dict[str, int] = {}
        for jobs in zip(*chunk):
            first = jobs[0]
            place[first.key] = len(planned)
            after = tuple(place[need] for need in first.needs if need in place)
            planned.append(Submission(jobs, after, _queued(first, states, todo)))
    if planned:
        active = tuple(sorted(states[job.key].queue_id or "" for job in graph.work if states[job.key].queue_id))
        ends = tuple(range(len(planned)))
        planned.append(Submission((graph.leaderboard,), after_end=ends, after_end_queued=active))
    return planned


def _alike(graph: Graph, todo: set[str], states: Mapping[str, JobState], max_array: int) -> list[list[list[Job]]]:
    """Chunks of cells (each the list of its jobs left) whose jobs agree in stage, resources and what they wait for."""
    groups: dict[Any, list[list[Job]]] = {}
    for jobs in graph.cells().values():
        left = [job for job in jobs if job.key in todo]
        if left:
            groups.setdefault(_signature(graph, left, states, todo), []).append(left)
    return [group[i : i + max_array] for group in groups.values() for i in range(0, len(group), max_array)]


def _signature(graph: Graph, jobs: list[Job], states: Mapping[str, JobState], todo: set[str]) -> tuple[Any, ...]:
    def waits(job: Job) -> tuple[str, ...]:
        return tuple(graph[need].column for need in job.needs if need in todo) + _queued(job, states, todo)

    return tuple((job.column, job.resources, waits(job)) for job in jobs)


def _queued(job: Job, states: Mapping[str, JobState], todo: set[str]) -> tuple[str, ...]:
    found = [states[need].queue_id for need in job.needs if need not in todo and states[need].active]
    return tuple(queue_id for queue_id in found if queue_id)


def submit(graph: Graph, planned: list[Submission], preset: Preset, folder: Path, code: Path) -> list[str]:
    """Calls sbatch for each; SLURM's ids.

    Args:
        folder: of this launch alone, for submitit's files and the logs.
        code: the snapshot that the jobs run.
    Raises:
        UserError: sbatch refused, in its own words. What was submitted before stays, and launching again adds the rest.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    ids: list[str] = []
    limits = time_limits()
    for i, submission in enumerate(planned):
        column = submission.jobs[0].column
        executor = SlurmExecutor(folder / submission_name(i, submission), max_num_timeout=MAX_REQUEUES)
        comment = announce(graph.name, [job.key for job in submission.jobs])
        told = parameters(
            submission, preset, graph.name, submission.dependency(ids), comment, limits, executor.folder, code
        )
        executor.update_parameters(**told)
        environment = worker_environment(submission.jobs[0], preset, code)
        try:
            handles = executor.submit_array([Worker(job.task, environment) for job in submission.jobs])
        except FailedJobError as error:
            raise UserError(f"sbatch refused {column}: {_last_words(str(error))}") from error
        ids.append(handles[0].job_id.partition("_")[0])
    return ids


def parameters(
    submission: Submission,
    preset: Preset,
    sweep: str,
    dependency: str | None,
    comment: str,
    limits: Mapping[str | None, int],
    folder: Path,
    code: Path,
) -> dict[str, Any]:
    """What submitit's SlurmExecutor is told.

    A job never asks for more time than its partition allows (`limits`, in minutes), for it would wait for ever: it is
    saved and queued again instead.
    """
    job = submission.jobs[0]
    wanted, share = job.resources, preset.share(job.stage)
    environment = worker_environment(job, preset, code)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    chosen = {
        "job_name": f"{sweep}:{job.column}",
        "time": min(max(1, round(60 * (wanted.hours or DEFAULT_HOURS))), limits.get(share.partition, NO_LIMIT)),
        "nodes": wanted.nodes,
        "ntasks_per_node": wanted.processes,
        "cpus_per_task": wanted.cpus,
        "gpus_per_node": wanted.gpus or None,
        "mem": f"{round(1024 * wanted.memory_gb)}M" if wanted.memory_gb else None,
        "partition": share.partition,
        "account": share.account,
        "qos": share.qos,
        "constraint": share.constraint,
        "dependency": dependency,
        "comment": comment,
        "array_parallelism": preset.throttle,
        "signal_delay_s": preset.signal_delay_s,
        "stderr_to_stdout": True,
        "setup": [*preset.setup, *exports, *_before(folder)],
        "teardown": [*AFTER],
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={wanted.cpus}"],
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **preset.sbatch},
    }
    return {key: value for key, value in chosen.items() if value is not None}


def _before(folder: Path) -> list[str]:
    """Lines of the batch script before its processes start.

    SLURM's SIGTERM, when the time limit has come, is for a watcher beside them: processes that do not hear it end
    too late for the script to do anything after them.
    """
    aftermath = f"{shlex.quote(sys.executable)} -m slurm.requeue {shlex.quote(str(folder.absolute()))}"
    return [
        f'aftermath() {{ {aftermath} "$@"; }}',
        "(trap 'aftermath; exit' TERM; trap exit HUP; while :; do sleep 60 & wait $!; done) & watcher=$!",
        "trap told=1 TERM",
    ]


AFTER = (
    "code=$?",
    '[ -z "${told:-}" ] || { wait "$watcher"; exit; }',
    'kill -HUP "$watcher"',
    '[ "$code" -eq 0 ] || { aftermath "$code"; exit; }',
)
"""Lines after they have ended."""


def worker_environment(job: Job, preset: Preset, code: Path) -> dict[str, str]:
    own = preset.environment.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
    scratch = {SCRATCH: preset.scratch} if preset.scratch else {}
    return {**preset.environment, **job_environment(job.resources.threads), **job_path(code, own), **scratch}


def batch_script(
    submission: Submission, preset: Preset, sweep: str, limits: Mapping[str | None, int], folder: Path, code: Path
) -> str:
    """The script that sbatch would get, with <...> for what is known only when it is submitted.

    Args:
        folder: of this submission's files and logs. code: the snapshot that its jobs run.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    dependency = submission.dependency([f"<id of #{i}>" for i in range(max(submission.waited_for, default=-1) + 1)])
    told = parameters(submission, preset, sweep, dependency, f"{MARK}<drawn at launch>", limits, folder, code)
    if len(submission.jobs) > 1:
        told["map_count"] = len(submission.jobs)
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _make_sbatch_string(command=command, folder=folder, **told)


def submission_name(number: int, submission: Submission) -> str:
    """Of the folder for submitit's files and logs."""
    return f"{number:03d}-{submission.jobs[0].column.replace(':', '-')}"


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("sbatch: error")]
    return (told or lines or ["it did not say why"])[-1]
