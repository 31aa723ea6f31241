"""What has been submitted to SLURM: so that launching again, also after a launcher was killed, submits nothing twice.

`$WHITEBENCH_RUNS/sweeps/jobs.jsonl` gets a line BEFORE each call of sbatch. Its id goes with the jobs as their comment,
by which the queue tells what became of them. Whatever the queue knows no more is told by the run folders alone.
"""

import getpass
import json
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from slurm.slurm_info import parse_seconds
from whitebench.errors import UserError
from whitebench.files import read_json_lines
from whitebench.locks import Held, Lock
from whitebench.records import runs_root

LEDGER, MARK = "jobs.jsonl", "whitebench:"


def sweeps_folder() -> Path:
    return runs_root() / "sweeps"


def announce(sweep: str, keys: Sequence[str]) -> str:
    """Notes that the jobs `keys` are about to be submitted as one array; the comment that sbatch must give them."""
    comment = MARK + uuid.uuid4().hex
    line = {"time": round(time.time(), 3), "sweep": sweep, "comment": comment, "keys": list(keys)}
    folder = sweeps_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LEDGER, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
    return comment


NEVER = ("DependencyNeverSatisfied", "launch failed requeued held")
"""Reasons for which a job stays pending for ever, unless somebody does something about it."""


class Queued(NamedTuple):
    """What SLURM says of a job in its queue."""

    id: str
    state: str
    """PENDING, RUNNING, COMPLETING, ..."""
    reason: str
    """Why it does not run yet: Dependency, Resources, PartitionTimeLimit, ..."""
    dependency: str = ""
    """What it still waits for, e.g. `afterok:12_3(unfulfilled)`."""

    seconds: float = 0.0
    """Since it started."""

    @property
    def can_run(self) -> bool:
        """False where it waits for what has failed or was cancelled, or is held because SLURM could not start it."""
        return "(failed)" not in self.dependency and self.reason not in NEVER


def queued_jobs() -> dict[str, Queued]:
    """Key of each job that is in SLURM's queue to what SLURM says of it.

    Raises:
        UserError: the queue does not answer; without it nothing may be submitted.
    """
    announced = {line["comment"]: line["keys"] for line in read_json_lines(sweeps_folder() / LEDGER)}
    if not announced:
        return {}
    found = {}
    for job, comment in _queue():
        keys = announced.get(comment)
        if keys is not None:
            _, _, index = job.id.partition("_")
            found[keys[int(index or 0)]] = job
    return found


def _queue() -> Iterator[tuple[Queued, str]]:
    """Every job of this user with its comment, array tasks one by one."""
    command = ["squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i|%T|%r|%E|%M|%k"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"SLURM's queue does not answer: {error}") from error
    if asked.returncode:
        raise UserError(f"SLURM's queue does not answer: {asked.stderr.strip()}")
    for line in asked.stdout.splitlines():
        job, state, reason, dependency, elapsed, comment = line.strip().split("|", 5)
        yield Queued(job, state, reason, dependency, parse_seconds(elapsed) or 0.0), comment


@contextmanager
def launch_lock(path: Path, wait: bool, what: str) -> Iterator[None]:
    """Held by one launcher at a time, until it ends or dies.

    Raises:
        UserError: another holds it, and we were not to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(path)
    while True:
        try:
            lock.acquire()
            break
        except Held as holder:
            if not wait:
                raise UserError(f"{what} ({holder}); --status shows how far it is") from holder
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.release()
