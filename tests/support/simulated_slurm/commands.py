"""SLURM's commands as text: what the simulated controller makes of their arguments, and what it prints."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.simulated_slurm.controller import ENDED, Controller, SimulatedJob

NAMES = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr")
UNABLE = "Unable to contact slurm controller (connect failure)"
UNKNOWN_JOB = "slurm_load_jobs error: Invalid job id specified\n"
FULL = (
    "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: "
    "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


class Answer(NamedTuple):
    code: int
    output: str = ""
    errors: str = ""


class Commands:
    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.blank_comments = False
        """A fault to be found out: the queue no longer shows whose jobs they are."""
        self.kills_submitter = False
        """Whether the process that has just submitted is to die before it reads the answer."""

    def run(self, name: str, arguments: list[str]) -> Answer:
        """Takes a moment, in which anything may happen."""
        controller = self.controller
        controller.counts[f"calls of {name}"] += 1
        controller.advance(controller.now + controller.random.uniform(0.0, controller.settings.latency_s))
        if not controller.answers:
            controller.counts["commands without an answer"] += 1
            return Answer(1, errors=f"{name}: error: {UNABLE}\n")
        answer: Answer = getattr(self, name)(arguments)
        return answer

    def sbatch(self, arguments: list[str]) -> Answer:
        controller, settings = self.controller, self.controller.settings
        script = Path(arguments[-1])
        options = read_options(script)
        indices, throttle = parse_array(options.get("array", ""))
        if max((index or 0 for index in indices), default=0) >= settings.array:
            return Answer(1, errors="sbatch: error: Batch job submission failed: Invalid job array specification\n")
        if len(controller.queued()) + len(indices) > settings.submit_limit:
            controller.counts["submissions refused for the limit"] += 1
            return Answer(1, errors=f"{FULL}\n")
        array = controller.submit(
            indices,
            name=options["job-name"],
            comment=options.get("comment", ""),
            script=script,
            dependency=options.get("dependency", ""),
            throttle=throttle,
        )
        controller.counts["jobs submitted"] += len(indices)
        controller.counts["submissions"] += 1
        if controller.random.random() < settings.lost_answers:
            controller.counts["submissions accepted without an answer"] += 1
            return Answer(1, errors="sbatch: error: Socket timed out on send/recv operation\n")
        self.kills_submitter = controller.random.random() < settings.killed_submitters
        return Answer(0, f"{array}\n")

    def squeue(self, arguments: list[str]) -> Answer:
        jobs = list(self.controller.jobs.values())
        if "-j" in arguments:
            wanted = arguments[arguments.index("-j") + 1]
            jobs = [job for job in jobs if wanted in (job.id, job.array)]
            if not jobs:
                return Answer(1, errors=UNKNOWN_JOB)
        if "-t" not in arguments:
            jobs = [job for job in jobs if job.state not in ENDED]
        style = arguments[arguments.index("-o") + 1]
        fields = [self._field(name) for name in re.findall(r"%(\w)", style)]
        form = re.sub(r"%\w", "{}", style) + "\n"
        return Answer(0, "".join(form.format(*(field(job) for field in fields)) for job in jobs))

    def _field(self, name: str) -> Callable[[SimulatedJob], str]:
        """How squeue prints a job's field of this letter."""
        return {
            "i": lambda job: job.id,
            "F": lambda job: job.array,
            "T": lambda job: job.state,
            "r": self.controller.reason,
            "E": lambda job: job.dependency or "(null)",
            "M": self._elapsed,
            "N": lambda job: f"n{job.node}" if job.node >= 0 else "",
            "k": lambda job: "" if self.blank_comments else job.comment,
        }[name]

    def _elapsed(self, job: SimulatedJob) -> str:
        seconds = int(self.controller.now - job.since) if job.state == "RUNNING" else 0
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def scontrol(self, arguments: list[str]) -> Answer:
        match arguments:
            case ["show", "config"]:
                return Answer(0, f"MaxArraySize            = {self.controller.settings.array}\n")
            case ["requeue", job_id]:
                return self._requeue(job_id)
            case ["show", "job", "-o", job_id]:
                jobs = [job for job in self.controller.jobs.values() if job_id in (job.id, job.array)]
                return (
                    Answer(0, "".join(map(_record, jobs))) if jobs else Answer(1, errors="Invalid job id specified\n")
                )
            case ["update", job_id, dependency]:
                job = self.controller.jobs.get(job_id.partition("=")[2])
                if job is None or job.state != "PENDING":
                    return Answer(1, errors="slurm_update error: Job is no longer pending execution\n")
                job.dependency = dependency.partition("=")[2]
                return Answer(0)
        raise ValueError(f"scontrol {arguments}: not simulated")

    def _requeue(self, job_id: str) -> Answer:
        job = self.controller.jobs.get(job_id)
        if job is None or job.state != "RUNNING":
            return Answer(1, errors=UNKNOWN_JOB)
        self.controller.counts["requeues by the jobs themselves"] += 1
        self.controller.requeue(job)
        return Answer(0)

    def sinfo(self, arguments: list[str]) -> Answer:
        return Answer(0, "main*|infinite\n" if "%l" in arguments[-1] else "main*\n")

    def sacct(self, arguments: list[str]) -> Answer:
        """No site's database answers for jobs that were never submitted, or were submitted just now."""
        return Answer(0)

    def sacctmgr(self, arguments: list[str]) -> Answer:
        if not self.controller.settings.limits_known:
            return Answer(1, errors="sacctmgr: error: slurmdbd is not reachable\n")
        return Answer(0, f"sim||{self.controller.settings.submit_limit}\n" if "assoc" in arguments else "normal||\n")

    def scancel(self, arguments: list[str]) -> Answer:
        for name in arguments:
            for job in [job for job in self.controller.queued() if name in (job.id, job.array)]:
                self.controller.finish(job, "CANCELLED")
        return Answer(0)


def read_options(script: Path) -> dict[str, str]:
    """Of the lines `#SBATCH --key=value`."""
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH --")]
    words = (shlex.split(line)[1].removeprefix("--") for line in lines)
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def parse_array(text: str) -> tuple[list[int | None], int]:
    """`0-3,7%2` -> ([0, 1, 2, 3, 7], 2); of no array ([None], 1)."""
    if not text:
        return [None], 1
    ranges, _, throttle = text.partition("%")
    indices = list(_indices(ranges))
    return [*indices], int(throttle or len(indices))


def _indices(ranges: str) -> Iterator[int]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _record(job: SimulatedJob) -> str:
    array = f"ArrayJobId={job.array} ArrayTaskId={job.index} " if job.index is not None else ""
    return f"JobId={job.array} {array}JobState={job.state} ExitCode={job.exit_code}:0 NodeList=(null)\n"
