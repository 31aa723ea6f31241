"""SLURM's queue: which jobs of this suite it holds, and their states."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from slurm.slurm_command import SlurmUnavailable, ask
from slurm.slurm_info import parse_seconds
from slurm.submissions import MARK, Ledger, read_ledger

NEVER = ("DependencyNeverSatisfied", "launch failed requeued held")
"""Reasons for which a job stays pending for ever, unless somebody does something about it."""
USUAL = frozenset({"", "None", "Dependency", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Prolog"})
"""Reasons of a job that just waits for its turn."""
ADVICE = {
    "PartitionTimeLimit": "asks for more time than its partition allows: fewer hours, or another partition",
    "QOSMaxWallDurationPerJobLimit": "asks for more time than its QOS allows: fewer hours, or another qos",
    "AssocMaxWallDurationPerJobLimit": "asks for more time than its account allows: fewer hours",
    "PartitionNodeLimit": "asks for more nodes than its partition allows",
    "QOSMaxGRESPerJob": "asks for more GPUs than its QOS allows",
    "QOSMaxCpuPerJobLimit": "asks for more CPUs than its QOS allows",
    "QOSMaxMemoryPerJob": "asks for more memory than its QOS allows",
    "QOSMaxNodePerJobLimit": "asks for more nodes than its QOS allows",
    "BadConstraints": "no node has all that it asks for (constraint, GPUs, memory, cores)",
    "AccountNotAllowed": "its account may not use the partition",
    "QOSNotAllowed": "its qos may not use the partition",
    "InvalidAccount": "SLURM does not know its account",
    "InvalidQOS": "SLURM does not know its qos",
    "JobHeldUser": "held; to release it: scontrol release",
    "JobHeldAdmin": "held by an administrator",
    "launch failed requeued held": "SLURM could not start it; launching again submits it again",
    "DependencyNeverSatisfied": "a job that it needs failed; launching again submits it again",
}
"""What a reason means where a job will not start by itself."""
MOST_ASKED = 50
"""Arrays that SLURM is asked about one by one."""
FORMAT = "%i|%T|%r|%E|%M|%N|%k"
LINE = re.compile(r"\d+(?:_\d+)?(?:\+\d+)?\|[A-Z_]+\|")
COMMENT = re.compile(re.escape(MARK) + r"[0-9a-f]{32}")
PRECEDENCE = ("RUNNING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "STOPPED", "CONFIGURING")
"""Of several jobs for one run, the one that stands for them; any other state comes after these."""


@dataclass(frozen=True)
class Queued:
    """What SLURM says of a job in its queue."""

    id: str
    """Of an array's task `<array>_<index>`."""
    state: str
    """PENDING, RUNNING, COMPLETING, ..."""
    reason: str = ""
    """Why it does not run yet: Dependency, Resources, PartitionTimeLimit, ..."""
    dependency: str = ""
    """What it still waits for, e.g. `afterok:12_3(unfulfilled)`."""
    seconds: float = 0.0
    """Since it started."""
    node: str = ""
    duplicates: tuple[str, ...] = ()
    """Ids of further jobs for the same run, which will find it at work or done."""

    @property
    def ids(self) -> tuple[str, ...]:
        return (self.id, *self.duplicates)

    @property
    def can_run(self) -> bool:
        """False where it waits for what has failed or was cancelled, or is held because SLURM could not start it."""
        return "(failed)" not in self.dependency and self.reason not in NEVER


def queued_jobs(ledger: Ledger | None = None) -> dict[str, Queued]:
    """Key of each of our jobs that is in SLURM's queue to what SLURM says of it.

    Raises:
        SlurmUnavailable: the queue does not answer; without it nothing may be submitted.
    """
    ledger = read_ledger() if ledger is None else ledger
    if not ledger.arrays:
        return {}
    answer = ask("squeue", "-h", "-r", "-u", ",".join(map(str, sorted(ledger.users))), "-o", FORMAT)
    jobs: dict[str, list[Queued]] = {}
    for job, comment in parse_queue(answer.splitlines()):
        index = array_index(job.id)
        for mark in COMMENT.findall(comment):
            key = ledger.key(mark, index)
            if key is not None:
                jobs.setdefault(key, []).append(job)
    return {key: _merged(entries) for key, entries in jobs.items()}


def count_jobs() -> int:
    """Jobs of this user in the queue, whatever they are, array tasks one by one."""
    answer = ask("squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i")
    return len(answer.split())


def parse_queue(lines: Iterable[str]) -> Iterator[tuple[Queued, str]]:
    """Each job with its comment. Comments are people's own words: they may hold `|`, and even line breaks."""
    job: Queued | None = None
    comment = ""
    for line in lines:
        if LINE.match(line.lstrip()) and line.count("|") >= FORMAT.count("|"):
            if job is not None:
                yield job, comment
            fields = line.strip().split("|", FORMAT.count("|"))
            job_id, state, reason, dependency, elapsed, node, comment = fields
            seconds = float(parse_seconds(elapsed) or 0)
            job = Queued(job_id.partition("+")[0], state, reason, dependency, seconds, node)
        else:
            comment += "\n" + line
    if job is not None:
        yield job, comment


def array_of(job: str) -> str:
    """The array that a task belongs to, or the job's own id."""
    return job.partition("_")[0]


def array_index(job: str) -> int | None:
    """A task's number in its array; None for a job that is not an array."""
    _, _, index = job.partition("_")
    return int(index) if index.isdigit() else None


def _merged(jobs: list[Queued]) -> Queued:
    """One entry for a run, though several jobs are queued for it."""
    rank = {state: number for number, state in enumerate(PRECEDENCE)}
    first, *others = sorted(jobs, key=lambda job: rank.get(job.state, len(rank)))
    return replace(first, duplicates=tuple(job.id for job in others))


def final_states(ids: list[str]) -> dict[str, str]:
    """How jobs ended that have left the queue: `FAILED, exit code 1, on wb1`. What SLURM has forgotten is left out."""
    states: dict[str, str] = {}
    for array in sorted({array_of(job) for job in ids})[:MOST_ASKED]:
        try:
            states |= parse_job_records(ask("scontrol", "show", "job", "-o", array, timeout=30.0))
        except SlurmUnavailable:
            continue  # forgotten, or no answer: then nothing is claimed about it
    missing = [job for job in ids if job not in states][: 10 * MOST_ASKED]
    if missing and shutil.which("sacct"):
        fields = "JobID,State,ExitCode,NodeList"
        try:
            answer = ask("sacct", "-n", "-P", "-X", "-j", ",".join(missing), "-o", fields, timeout=30.0)
        except SlurmUnavailable:
            answer = ""
        for line in answer.splitlines():
            job, state, code, node = (line.split("|") + [""] * 4)[:4]
            states[job] = _ending(state, code, node)
    return {job: states[job] for job in ids if job in states}


def parse_job_records(text: str) -> dict[str, str]:
    """`scontrol show job -o`: id to how the job ended; jobs that have not ended are left out."""
    states: dict[str, str] = {}
    for line in text.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line)[::-1])  # the first of a name counts: comments may repeat it
        state = fields.get("JobState", "")
        if not state or state in ("PENDING", *PRECEDENCE):
            continue
        array, index = fields.get("ArrayJobId"), fields.get("ArrayTaskId")
        job = f"{array}_{index}" if array and index else fields.get("JobId", "")
        states[job] = _ending(state, fields.get("ExitCode", ""), fields.get("NodeList", ""))
    return states


def _ending(state: str, code: str, node: str) -> str:
    parts = [
        state,
        f"exit code {code.partition(':')[0]}" if code else "",
        f"on {node}" if "(" not in node and node else "",
    ]
    return ", ".join(part for part in parts if part)
