"""A graph to SLURM as arrays, one per stage, with dependencies from task to task.

Task i of an array waits for task i of the array before it (`aftercorr`), so that no cell waits for another's. For that,
arrays are cut alike: cells that have the same remaining jobs go together, in chunks that the cluster's MaxArraySize
allows. Jobs beyond the queue's limit are submitted as others end (`slurm.waves`). No process stays alive on the login
node.
"""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slurm.batch_script import batch_script, minutes_of
from slurm.clusters import Preset
from slurm.graph import Graph, Job
from slurm.job_queue import array_index, array_of, count_jobs
from slurm.job_state import JobState
from slurm.progress import Progress
from slurm.sbatch import LimitReached, call_sbatch
from slurm.slurm_command import SlurmUnavailable, clean_environment
from slurm.slurm_info import Limits
from slurm.submissions import announce, note_job
from slurm.worker import Worker
from whitebench.errors import UserError

MAX_REQUEUES = 10_000
"""Of a run by time limits, in submitit's count. Requeues without progress are limited in `slurm.requeue`."""


@dataclass(frozen=True)
class Submission:
    """One call of sbatch: an array of jobs that ask for the same, or a single job."""

    jobs: tuple[Job, ...]
    indices: tuple[int, ...] | None = None
    """Of the array's tasks; None: a single job."""
    after: tuple[int, ...] = ()
    """Earlier submissions: the task of index i waits for success of their task of index i."""
    after_arrays: tuple[str, ...] = ()
    """Arrays that an earlier launch has queued: likewise."""
    after_queued: tuple[str, ...] = ()
    """Jobs that an earlier launch has queued: waits for their success."""
    after_end: tuple[int, ...] = ()
    """Earlier submissions: waits for the end of all their tasks, however they end."""
    after_end_queued: tuple[str, ...] = ()

    @property
    def waited_for(self) -> tuple[int, ...]:
        return self.after + self.after_end

    def dependency(self, ids: list[str]) -> str | None:
        """As sbatch reads it; `ids` are those of earlier submissions."""
        kind = "afterok" if self.indices is None else "aftercorr"
        parts = [f"{kind}:{ids[i]}" for i in self.after] + [f"aftercorr:{array}" for array in self.after_arrays]
        parts += [f"afterok:{job}" for job in self.after_queued]
        ends = ":".join([*(ids[i] for i in self.after_end), *self.after_end_queued])
        return ",".join([*parts, *([f"afterany:{ends}"] if ends else [])]) or None


def plan_submissions(graph: Graph, todo: set[str], states: Mapping[str, JobState], max_array: int) -> list[Submission]:
    """The calls of sbatch that bring `todo` into the queue, each after those it depends on; last the leaderboard's."""
    planned: list[Submission] = []
    for waits, chunk in _chunks(graph, todo, states, max_array):
        number: dict[str, int] = {}
        for jobs in zip(*(cell.jobs for cell in chunk)):
            first = jobs[0]
            number[first.key] = len(planned)
            after = tuple(number[need] for need in first.needs if need in number)
            queued = tuple(waits[need] for need in first.needs if need in waits)
            if chunk[0].index is None:
                indices = tuple(range(len(jobs))) if len(jobs) > 1 else None
                planned.append(Submission(jobs, indices, after, after_queued=queued))
            else:
                indices = tuple(cell.index or 0 for cell in chunk)
                planned.append(Submission(jobs, indices, after, after_arrays=queued))
    if planned:
        ids = (states[job.key].queue_id for job in graph.work)
        queued = tuple(sorted({array_of(queue_id) for queue_id in ids if queue_id}))
        ends = tuple(range(len(planned)))
        planned.append(Submission((graph.leaderboard,), after_end=ends, after_end_queued=queued))
    return planned


@dataclass(frozen=True)
class _Cell:
    """What is left to submit of a cell."""

    jobs: list[Job]
    waits: dict[str, str]
    """Need that is in the queue to the array (if `index` is set) or the job that is to be waited for."""
    index: int | None
    """Of the tasks in the queue that the cell waits for, where all of them agree."""


def _chunks(
    graph: Graph, todo: set[str], states: Mapping[str, JobState], max_array: int
) -> list[tuple[dict[str, str], list[_Cell]]]:
    """Chunks of cells whose jobs agree in stage, resources and what they wait for; with the waits of the first."""
    groups: dict[Any, list[_Cell]] = {}
    for jobs in graph.cells().values():
        remaining = [job for job in jobs if job.key in todo]
        if remaining:
            cell = _cell(remaining, todo, states)
            groups.setdefault(_signature(graph, cell, todo), []).append(cell)
    chunks = [group[i : i + max_array] for group in groups.values() for i in range(0, len(group), max_array)]
    return [(chunk[0].waits, chunk) for chunk in chunks]


def _cell(jobs: list[Job], todo: set[str], states: Mapping[str, JobState]) -> _Cell:
    queued = {
        need: queue_id
        for job in jobs
        for need in job.needs
        if need not in todo and states[need].active and (queue_id := states[need].queue_id)
    }
    indices = {array_index(queue_id) for queue_id in queued.values()}
    index = indices.pop() if len(indices) == 1 else None
    if index is None:
        return _Cell(jobs, queued, None)
    return _Cell(jobs, {need: array_of(queue_id) for need, queue_id in queued.items()}, index)


def _signature(graph: Graph, cell: _Cell, todo: set[str]) -> tuple[Any, ...]:
    def waits(job: Job) -> tuple[str, ...]:
        new = tuple(graph[need].column for need in job.needs if need in todo)
        return new + tuple(cell.waits[need] for need in job.needs if need in cell.waits)

    return cell.index is None, tuple((job.column, _hashable(job), waits(job)) for job in cell.jobs)


def _hashable(job: Job) -> tuple[Any, ...]:
    return replace(job.resources, sbatch={}), repr(sorted(job.resources.sbatch.items()))


@dataclass
class Launch:
    """Brings jobs of a graph into SLURM's queue, as many as there is room for."""

    graph: Graph
    states: dict[str, JobState]
    """Kept up to date: what was submitted is queued."""
    preset: Preset
    folder: Path
    """Of this launch alone: submitit finds its files by job id, and ids come again."""
    code: Path
    """The snapshot that the jobs run."""
    limits: Limits
    leaderboard_id: str | None = None
    """Of the leaderboard that waits in the queue, whose dependency is extended."""
    say: Callable[[str], None] | None = None
    ids: list[str] = field(default_factory=list)
    """SLURM's, of each call of sbatch."""
    submitted: list[str] = field(default_factory=list)
    """Keys of jobs that are in the queue now."""
    calls: int = 0
    """Of sbatch, the refused ones among them."""
    refusal: str = ""
    """SLURM's message when its limit was reached."""

    def submit(self, todo: set[str]) -> set[str]:
        """Submits `todo`, then the leaderboard; the keys for which there was no room.

        Raises:
            UserError: sbatch refused, in its own words, or does not answer. What was submitted before stays.
        """
        waiting = [job.key for job in self.graph.work if job.key in todo]
        room = self._room()
        while waiting and room > 0:
            chosen = set(waiting[:room])
            before = len(self.submitted)
            limit = self._submit_planned(plan_submissions(self.graph, chosen, self.states, self.limits.array)[:-1])
            submitted = set(self.submitted)
            waiting = [key for key in waiting if key not in submitted]
            room = room - (len(self.submitted) - before) if limit is None else limit
        if self.submitted:
            self._submit_leaderboard()
        return set(waiting)

    def _room(self) -> int:
        """Jobs that may still be submitted, as far as it is known, with one reserved for the leaderboard's."""
        qos = {self.preset.share(job.stage).qos for job in self.graph.jobs.values()}
        limits = [self.preset.max_jobs, *(self.limits.jobs(name) for name in qos)]
        limit = min((limit for limit in limits if limit is not None), default=None)
        if limit is None:
            return len(self.graph)
        self.refusal = f"limit of {limit} jobs in the queue"
        return limit - count_jobs() - (self.leaderboard_id is None)

    def fill(self) -> tuple[int, int] | None:
        """Jobs of this user in the queue now, and those of this sweep among them; None where SLURM does not answer."""
        try:
            return count_jobs(), sum(state.active for state in self.states.values())
        except SlurmUnavailable:
            return None

    def _submit_planned(self, planned: list[Submission]) -> int | None:
        """Submits in order; where SLURM's limit was reached, how many jobs to try next."""
        ids: list[str] = []
        progress = Progress("submitted", sum(len(submission.jobs) for submission in planned), "jobs")
        for submission in planned:
            try:
                ids.append(self._submit_one(submission, submission.dependency(ids)))
            except LimitReached as error:
                self.refusal = str(error)
                return len(submission.jobs) // 2
            for position, job in enumerate(submission.jobs):
                index = "" if submission.indices is None else f"_{submission.indices[position]}"
                self.states[job.key] = JobState("queued", queue_id=ids[-1] + index)
                self.submitted.append(job.key)
            progress.add(len(submission.jobs))
        return None

    def _submit_one(self, submission: Submission, dependency: str | None) -> str:
        job = submission.jobs[0]
        folder = self.folder / submission_name(self.calls, job)
        self.calls += 1
        mark = announce(self.graph.name, [job.key for job in submission.jobs], folder.absolute(), submission.indices)
        script = self._write_files(submission, folder, mark, dependency)
        try:
            job_id = call_sbatch(script, mark, self.say)
        except LimitReached:
            raise
        except (UserError, KeyboardInterrupt) as error:
            if isinstance(error, UserError):
                raise type(error)(self._explained(job, error)) from error
            raise
        note_job(mark, job_id)
        self.ids.append(job_id)
        return job_id

    def _write_files(self, submission: Submission, folder: Path, mark: str, dependency: str | None) -> Path:
        """What the jobs load, and the batch script. All of it is there before sbatch is called: its answer may fail."""
        from submitit.core.utils import DelayedSubmission

        job = submission.jobs[0]
        share = self.preset.share(job.stage)
        minutes = minutes_of(job.resources, self.limits.minutes(share.partition, share.qos))
        folder.mkdir(parents=True)
        numbers = submission.indices or (0,)
        for index, member in zip(numbers, submission.jobs):
            worker = Worker(member.task, limit_s=60.0 * minutes, warning_s=float(self.preset.signal_delay_s))
            delayed = DelayedSubmission(worker)
            delayed.set_timeout(minutes, MAX_REQUEUES)
            delayed.dump(folder / f"{index}.pkl")
        script = folder / "batch.sh"
        script.write_text(
            batch_script(
                job,
                self.preset,
                sweep=self.graph.name,
                sweep_folder=self.graph.leaderboard.folder,
                folder=folder,
                code=self.code,
                limits=self.limits,
                mark=mark,
                indices=submission.indices,
                dependency=dependency,
            )
        )
        return script

    def _explained(self, job: Job, error: UserError) -> str:
        """What went wrong, and what is in the queue nevertheless."""
        what = str(error) if isinstance(error, SlurmUnavailable) else f"sbatch refused {job.column}: {error}"
        if not self.submitted:
            return what
        return f"{what}; {len(self.submitted)} jobs ARE queued by this launch; launching again adds the rest"

    def _submit_leaderboard(self) -> None:
        """After all jobs in the queue; one that waits there already waits for the new ones, too."""
        ids = (self.states[job.key].queue_id for job in self.graph.work)
        arrays = tuple(sorted({array_of(queue_id) for queue_id in ids if queue_id}))
        if self.leaderboard_id is not None and _wait_for(self.leaderboard_id, arrays):
            return
        last = Submission((self.graph.leaderboard,), after_end_queued=arrays)
        try:
            self._submit_one(last, last.dependency([]))
        except LimitReached as error:
            self.refusal = str(error)


def _wait_for(job: str, arrays: tuple[str, ...]) -> bool:
    """Lets a pending job wait for the end of these; False where SLURM does not do so (it has just begun, say)."""
    command = ["scontrol", "update", f"jobid={job}", f"dependency=afterany:{':'.join(arrays)}"]
    try:
        return subprocess.run(command, capture_output=True, timeout=60, env=clean_environment()).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def submission_name(number: int, job: Job) -> str:
    """Of the folder for a submission's files and logs."""
    return f"{number:03d}-{job.column.replace(':', '-')}"
