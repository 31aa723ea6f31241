"""What has been submitted to SLURM: so that launching again, also after a launcher was killed, submits nothing twice.

`$WHITEBENCH_RUNS/sweeps/jobs.jsonl` gets a line BEFORE each call of sbatch. Its mark goes with the jobs in their
comment, by which the queue is recognised. A second kind of line holds SLURM's id once it is known, a third what was
cancelled by --cancel.
"""

import os
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whitebench.files import append_json_line, read_json_lines
from whitebench.records import runs_root

LEDGER, MARK = "jobs.jsonl", "whitebench:"


@dataclass
class Entry:
    """One call of sbatch: a single job, or an array."""

    comment: str
    """Our mark, as it is part of the jobs' comment."""
    sweep: str
    keys: tuple[str, ...]
    """Of the graph's jobs, in the order of the array's tasks."""
    indices: tuple[int, ...] | None = None
    """Of the array's tasks; None: 0, 1, ..."""
    folder: str = ""
    """Where the jobs' logs are."""
    user: int = field(default_factory=os.getuid)
    time: float = 0.0
    job: str | None = None
    """SLURM's id of the job or the array; None where sbatch has not answered."""

    def key(self, index: int | None) -> str | None:
        """The graph's job that is task `index` of the array; None where no such task was submitted by us."""
        if index is None:
            return self.keys[0]
        numbers = range(len(self.keys)) if self.indices is None else self.indices
        return self.keys[numbers.index(index)] if index in numbers else None

    def job_id(self, key: str) -> str | None:
        """SLURM's id of the job `key`."""
        if self.job is None or (len(self.keys) == 1 and self.indices is None):
            return self.job
        position = self.keys.index(key)
        return f"{self.job}_{position if self.indices is None else self.indices[position]}"

    def log(self, key: str) -> Path | None:
        """The log of the job `key`; None where its folder is not known."""
        job = self.job_id(key)
        return Path(self.folder) / f"{job}_0_log.out" if self.folder and job else None


@dataclass
class Ledger:
    arrays: dict[str, Entry] = field(default_factory=dict)
    """By mark, in the order of submission."""
    cancelled: dict[str, float] = field(default_factory=dict)
    """Key of a job to the time at which --cancel ended it."""

    @property
    def users(self) -> set[int]:
        """All who have submitted to these runs, this user among them."""
        return {os.getuid(), *(entry.user for entry in self.arrays.values())}

    def key(self, mark: str, index: int | None) -> str | None:
        entry = self.arrays.get(mark)
        return entry.key(index) if entry else None

    def by_key(self) -> dict[str, list[Entry]]:
        """All submissions of each job, in their order."""
        entries: dict[str, list[Entry]] = {}
        for entry in self.arrays.values():
            for key in entry.keys:
                entries.setdefault(key, []).append(entry)
        return entries


def sweeps_folder() -> Path:
    return runs_root() / "sweeps"


def announce(sweep: str, keys: Sequence[str], folder: Path, indices: Sequence[int] | None = None) -> str:
    """Notes that the jobs `keys` are about to be submitted by one call of sbatch; the mark for their comment."""
    mark = MARK + uuid.uuid4().hex
    line = {"sweep": sweep, "comment": mark, "keys": list(keys), "folder": str(folder), "user": os.getuid()}
    _append(line if indices is None else {**line, "indices": list(indices)})
    return mark


def note_job(mark: str, job: str) -> None:
    """Notes SLURM's id of what was announced under `mark`."""
    _append({"comment": mark, "job": job})


def note_cancelled(keys: Iterable[str]) -> None:
    """Notes that the user has cancelled these jobs: that they left the queue without a record is not an error."""
    _append({"cancelled": sorted(keys)})


def read_ledger() -> Ledger:
    """What has been submitted to these runs, by whomever."""
    ledger = Ledger()
    for line in read_json_lines(sweeps_folder() / LEDGER):
        try:
            _add(ledger, line)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # not an entry of this ledger
    return ledger


def _add(ledger: Ledger, line: dict[str, Any]) -> None:
    if "cancelled" in line:
        ledger.cancelled.update(dict.fromkeys(map(str, line["cancelled"]), float(line.get("time", 0.0))))
    elif line.get("keys"):
        ledger.arrays[line["comment"]] = Entry(
            comment=line["comment"],
            sweep=str(line.get("sweep", "")),
            keys=tuple(line["keys"]),
            indices=tuple(line["indices"]) if line.get("indices") is not None else None,
            folder=str(line.get("folder", "")),
            user=int(line.get("user", os.getuid())),
            time=float(line.get("time", 0.0)),
        )
    else:
        ledger.arrays[line["comment"]].job = str(line["job"])


def _append(line: dict[str, Any]) -> None:
    folder = sweeps_folder()
    folder.mkdir(parents=True, exist_ok=True)
    append_json_line(folder / LEDGER, {"time": round(time.time(), 3), **line})
