"""The state of each job of a graph, from its run folder, its lock, SLURM's queue and what was submitted.

Light: `--status` depends on it.
"""

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slurm.attempts import ATTEMPTS, read_attempts
from slurm.graph import Graph, Job
from slurm.job_queue import Queued
from slurm.stages import LEADERBOARD
from slurm.submissions import Entry, Ledger
from whitebench.files import last_json_line
from whitebench.locks import BEAT_S, is_taken, last_beat
from whitebench.records import METRICS, Record, read_record
from whitebench.slow_files import read_all
from whitebench.text import duration

State = Literal["done", "running", "queued", "failed", "interrupted", "blocked", "new"]
LOST_BEATS = 12
SILENT_S = 1800.0
"""A run that has logged nothing for this long, and for four times as long as its epochs take, is called stalled."""
STARTED = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "SIGNALING"})
BASH_NOISE = "wait_for: No record of process"
"""What bash may say when a job ends at once; it explains nothing."""
LOG_TAIL = 4096
"""Bytes of a log's end that are searched for why its job ended."""
FinalStates = Callable[[list[str]], Mapping[str, str]]
"""SLURM ids of jobs that have left the queue to how they ended, e.g. `FAILED, exit code 1, on wb1`."""


@dataclass(frozen=True)
class JobState:
    state: State
    record: Record | None = None
    queue_id: str | None = None
    """The SLURM job that is to do it, while it is in the queue."""
    queue_reason: str = ""
    """Why SLURM has not started it yet."""
    node: str = ""
    """Where it runs."""
    last: dict[str, Any] = field(default_factory=dict)
    """The last line of `metrics.jsonl`, while it runs."""
    seconds: float = 0.0
    """Since its job started, while it runs."""
    stalled: str = ""
    """Why it seems to hang, though it is running."""
    error: str = ""
    """Why it failed."""
    log: str | None = None
    """Of a job that left no attempt in the run's folder."""

    @property
    def label(self) -> str:
        return "stalled" if self.stalled else self.state

    @property
    def active(self) -> bool:
        return self.state in ("running", "queued")

    @property
    def attempts(self) -> int:
        """How many times the run was started."""
        return 1 + int(self.record.cost.get("restarts") or 0) if self.record else 0


class Reader:
    """Reads states of jobs, what several of them need only once."""

    def __init__(self, graph: Graph, queued: Mapping[str, Queued], ledger: Ledger | None, final: FinalStates | None):
        self.graph, self.queued, self.final = graph, queued, final
        self.ledger = ledger or Ledger()
        self.entries = self.ledger.by_key()
        self.now = filesystem_time(graph.leaderboard.folder)
        self.records: dict[str, Record | None] = {}
        """Of the jobs whose folders exist."""
        self.existing = {job.stage: _names(job.folder.parent) for job in _first_of_each_stage(graph)}

    def read(self) -> dict[str, JobState]:
        begun = [job for job in self.graph.work if job.task.id in self.existing[job.stage]]
        self.records = dict(zip((job.key for job in begun), read_all(read_record, (job.folder for job in begun))))
        states = {job.key: self._state(job) for job in self.graph.work}
        self._mark_without_trace(states)
        for job in self.graph.work:  # needs come before what needs them
            state = states[job.key]
            stopped = any(states[need].state in ("failed", "blocked") for need in job.needs)
            if stopped and state.state in ("new", "failed") and state.record is None:
                states[job.key] = JobState("blocked")
        return states

    def _state(self, job: Job) -> JobState:
        exists = job.key in self.records
        record = self.records.get(job.key)
        if record is not None and record.status == "done":
            return JobState("done", record)
        queued = self.queued.get(job.key)
        if queued is not None:
            return self._queued_state(job, queued, record)
        if job.key in self.entries and (lost := self._lost(job, record, exists)):
            return lost
        if record is None:
            return JobState("new")
        if record.status == "running" and is_taken(job.folder / ".lock"):
            last = last_json_line(job.folder / METRICS)
            elapsed = self._since_attempt(job.folder)
            stalled = self._stalled(job.folder, last, elapsed)
            return JobState("running", record, last=last, seconds=elapsed, stalled=stalled)
        if record.status == "failed":
            return JobState("failed", record, error=record.error or "it did not say why", log=self._log(job))
        return JobState("interrupted", record, log=self._log(job))

    def _queued_state(self, job: Job, queued: Queued, record: Record | None) -> JobState:
        if queued.state not in STARTED:
            return JobState("queued", record, queued.id, queued.reason)
        last = last_json_line(job.folder / METRICS)
        suspended = queued.state in ("SUSPENDED", "STOPPED")
        stalled = "suspended by SLURM" if suspended else self._stalled(job.folder, last, queued.seconds)
        return JobState(
            "running", record, queued.id, queued.reason, queued.node, last, queued.seconds, stalled, log=self._log(job)
        )

    def _lost(self, job: Job, record: Record | None, exists: bool) -> JobState | None:
        """A job whose last submission ended before its Python program could leave a trace in the run's folder."""
        entry = self._last_entry(job.key)
        if entry is None or (record is not None and record.status == "failed"):
            return None
        job_id = entry.job_id(job.key) or ""
        attempts = read_attempts(job.folder) if exists else []
        if any(line.get("job") == job_id or line.get("time", 0.0) > entry.time for line in attempts):
            return None
        log = entry.log(job.key)
        text = _tail(log) if log else None
        if log is None or text is None or _was_cancelled(text):
            return None
        lines = [line.strip() for line in text.splitlines() if line.strip() and BASH_NOISE not in line]
        error = f"job {job_id} ended before its run began: {lines[-1] if lines else 'its log is empty'}"
        return JobState("failed", record, error=error, log=str(log))

    def _last_entry(self, key: str) -> Entry | None:
        """The last submission that SLURM took, unless it was cancelled by us."""
        entry = next((entry for entry in reversed(self.entries.get(key, [])) if entry.job), None)
        return None if entry is None or self.ledger.cancelled.get(key, 0.0) > entry.time else entry

    def _log(self, job: Job) -> str | None:
        if (job.folder / ATTEMPTS).exists():
            return None
        entry = self._last_entry(job.key)
        return str(entry.log(job.key)) if entry and entry.folder else None

    def _mark_without_trace(self, states: dict[str, JobState]) -> None:
        """Jobs that left the queue without even a log: SLURM is asked how, for as long as it remembers."""
        suspects = {
            job.key: entry
            for job in self.graph.work
            if states[job.key].state == "new"
            and all(states[need].state == "done" for need in job.needs)
            and (entry := self._last_entry(job.key))
            and not read_attempts(job.folder)
            and not _cancelled_in_log(entry.log(job.key))
        }
        ids = [entry.job_id(key) or "" for key, entry in suspects.items()]
        ends = self.final(ids) if ids and self.final is not None else {}
        for (key, entry), job_id in zip(suspects.items(), ids):
            end = ends.get(job_id, "")
            times = len([entry for entry in self.entries[key] if entry.job])
            if end.startswith("CANCELLED") or (not end and times < 2):
                continue
            how = f"ended as {end}" if end else f"left the queue, the last of {times} submissions that did so"
            error = f"job {job_id} {how} without a log: can the nodes write to {entry.folder}?"
            states[key] = JobState("failed", error=error, log=str(entry.log(key)))

    def _stalled(self, folder: Path, last: Mapping[str, Any], elapsed: float) -> str:
        """Of a job that has run for `elapsed` seconds: whether its process has fallen silent, or its metrics have.

        Ages are measured by the file system's clock: those of login node and compute node may differ by minutes.
        """
        beat = last_beat(folder / ".lock")
        quiet = min(elapsed, self.now - beat) if beat else 0.0
        if quiet > LOST_BEATS * BEAT_S:
            return f"no heartbeat for {duration(quiet)}"
        silent = min(elapsed, self.now - last.get("time", 0.0))
        usual = float(last.get("seconds") or 0.0)
        return f"no progress for {duration(silent)}" if silent > max(SILENT_S, 4 * usual) else ""

    def _since_attempt(self, folder: Path) -> float:
        began = last_json_line(folder / ATTEMPTS).get("time")
        return self.now - float(began) if began else 0.0


def read_states(
    graph: Graph, queued: Mapping[str, Queued], ledger: Ledger | None = None, final: FinalStates | None = None
) -> dict[str, JobState]:
    """The state of every job but the leaderboard.

    Args:
        queued: jobs in SLURM's queue, from `slurm.job_queue.queued_jobs`.
        ledger: what was submitted; with it, jobs that ended before Python started are recognised.
        final: asks SLURM how jobs ended that left not even a log.
    """
    return Reader(graph, queued, ledger, final).read()


def filesystem_time(folder: Path) -> float:
    """Now, by the clock of the file system that holds `folder`; by this machine's where it cannot be written."""
    clock = folder / f".clock.{secrets.token_hex(4)}"
    try:
        clock.touch()
        return clock.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        clock.unlink(missing_ok=True)


def log_of(folder: Path) -> str | None:
    """Where the latest job on this run writes its log."""
    return next((str(line["log"]) for line in reversed(read_attempts(folder)) if line.get("log")), None)


def headline(record: Record) -> str:
    """The main results of a finished stage: `top1 78.30`, `box AP 12.1, mask AP 10.4`."""
    metrics = record.metrics
    names = [("top1", "top1"), ("box_AP", "box AP"), ("mask_AP", "mask AP"), ("loss", "loss")]
    parts = [f"{text} {metrics[name]:.2f}" for name, text in names if isinstance(metrics.get(name), int | float)]
    return ", ".join(parts)


def progress(last: dict[str, Any]) -> str:
    """Of the last line of a run's metrics: `epoch 3/20, 312 images/s, 2 min left, loss 1.23`."""
    parts = []
    if "epoch" in last:
        parts.append(f"epoch {last['epoch']}" + (f"/{last['epochs']}" if last.get("epochs") else ""))
    elif "step" in last:
        parts.append(f"step {last['step']}" + (f"/{last['steps']}" if last.get("steps") else ""))
    for key, text in (("images_per_s", "{:.0f} images/s"), ("loss", "loss {:.3g}")):
        if isinstance(last.get(key), int | float):
            parts.append(text.format(last[key]))
    if isinstance(last.get("eta_s"), int | float):
        parts.append(f"{duration(last['eta_s'])} left")
    return ", ".join(parts)


def dependants(graph: Graph, key: str) -> set[str]:
    """Keys of all jobs that need `key`, directly or not, the leaderboard aside."""
    keys: set[str] = set()
    waiting = [key]
    while waiting:
        new = [k for k in graph.dependants[waiting.pop()] if k not in keys and graph[k].stage != LEADERBOARD]
        keys.update(new)
        waiting += new
    return keys


def _first_of_each_stage(graph: Graph) -> list[Job]:
    first: dict[str, Job] = {}
    for job in graph.work:
        first.setdefault(job.stage, job)
    return list(first.values())


def _names(folder: Path) -> set[str]:
    """Names in a folder: one call instead of one per run that has not begun."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _tail(path: Path) -> str | None:
    """The end of a log; None where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return None


def _was_cancelled(text: str) -> bool:
    """Whether a log's end says that somebody cancelled the job (and not SLURM, for its time or for another job)."""
    last = next((line for line in reversed(text.splitlines()) if "CANCELLED AT" in line), "")
    return bool(last) and "DUE TO" not in last


def _cancelled_in_log(log: Path | None) -> bool:
    text = _tail(log) if log else None
    return text is not None and _was_cancelled(text)
