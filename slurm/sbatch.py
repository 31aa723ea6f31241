"""Calling sbatch: what it accepts although it says otherwise, what it refuses for now, and what for good."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from slurm.job_queue import COMMENT
from slurm.slurm_command import TRANSIENT, SlurmUnavailable, ask, clean_environment, first_words
from whitebench.errors import UserError

ATTEMPTS = 4
PAUSE_S = 5.0
TIMEOUT_S = 300.0
RETRYING = re.compile("temporarily unable to accept job", re.IGNORECASE)
"""What sbatch says before it sleeps and tries again, for hours if need be: the controller holds MaxJobCount jobs."""
LIMIT = re.compile(
    r"submit ?job ?limit|job submit limit|MaxSubmit|SubmitJobs?(PerUser|PerAccount)?Limit|"
    r"temporarily unable to accept job|Reached .*job limit",
    re.IGNORECASE,
)


class LimitReached(UserError):
    """SLURM takes no more jobs of this user for now."""


class Refused(UserError):
    """SLURM will not take this job."""


def call_sbatch(script: Path, mark: str, say: Callable[[str], None] | None = None) -> str:
    """Submits a batch script; SLURM's id of the job or the array.

    An answer that does not come may mean that the job was accepted: the queue is searched for its mark first.

    Raises:
        LimitReached: the number of jobs is limited. Refused: in sbatch's own words. SlurmUnavailable: no answer.
    """
    say = say or _to_stderr
    for attempt in range(1, ATTEMPTS + 1):
        code, output, errors = _run(["sbatch", "--parsable", str(script)])
        job = _job_id(output) if code == 0 else None
        if job is not None:
            return job
        words = first_words(errors) or "it did not say why"
        if code is not None and LIMIT.search(errors):
            raise LimitReached(words)
        if code not in (None, 0) and not TRANSIENT.search(errors):
            raise Refused(words)
        job = _find_by_mark(mark, last=attempt == ATTEMPTS)
        if job is not None:
            return job
        if attempt < ATTEMPTS:
            say(f"sbatch: {words}; trying again ({attempt} of {ATTEMPTS - 1})")
            time.sleep(PAUSE_S * attempt)
    raise SlurmUnavailable(f"SLURM does not answer: sbatch: {words}")


def _run(command: list[str]) -> tuple[int | None, str, str]:
    """Exit code (None: it did not end in time), stdout and stderr; a call that begins to wait for room is ended."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=clean_environment(),
    ) as process:
        errors: list[str] = []
        full = threading.Event()

        def read() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                errors.append(line)
                if RETRYING.search(line):
                    full.set()
                    process.terminate()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            process.wait(TIMEOUT_S)
        except BaseException as error:
            process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return None, "", f"no answer in {TIMEOUT_S:g} s"
        reader.join(5.0)
        assert process.stdout is not None
        return process.returncode or int(full.is_set()), process.stdout.read(), "".join(errors)


def _job_id(output: str) -> str | None:
    """Of `123`, `123;cluster`, or `Submitted batch job 123`, after whatever a site's wrapper prints."""
    for line in reversed(output.splitlines()):
        match = re.fullmatch(r"\s*(\d+)(;.*)?\s*", line) or re.search(r"\bjob (\d+)", line)
        if match:
            return match[1]
    return None


def _find_by_mark(mark: str, last: bool) -> str | None:
    """The job that carries our mark in its comment, if SLURM took one. Where even that has no answer, `last` raises."""
    try:
        answer = ask("squeue", "-h", "-t", "all", "-u", str(os.getuid()), "-o", "%F|%k")
    except SlurmUnavailable:
        if last:
            raise
        return None
    for line in answer.splitlines():
        job, _, comment = line.strip().partition("|")
        if mark in COMMENT.findall(comment) and job.isdigit():
            return job
    return None


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
