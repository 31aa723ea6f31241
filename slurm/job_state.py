"""How far each job of a graph is, read from its run folder, its lock and the queue. Light: `--status` lives on it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slurm.graph import Graph, Job
from slurm.stages import LEADERBOARD
from slurm.submissions import Queued
from slurm.worker import ATTEMPTS
from whitebench.files import last_json_line
from whitebench.locks import BEAT_S, is_taken, last_beat
from whitebench.records import METRICS, Record, read_record
from whitebench.text import duration

State = Literal["done", "running", "queued", "failed", "interrupted", "blocked", "new"]
LOST_BEATS = 12
SILENT_S = 1800.0
"""A run that has logged nothing for so long, and for four times as long as its epochs take, is called stalled."""
"""Bytes from a file's end in which its last line is sought."""


@dataclass(frozen=True)
class JobState:
    state: State
    record: Record | None = None
    queue_id: str | None = None
    """The SLURM job that is to do it, while the queue knows one."""
    queue_reason: str = ""
    """Why SLURM has not started it yet."""
    last: dict[str, Any] = field(default_factory=dict)
    """The last line of `metrics.jsonl`, while it runs."""

    stalled: str = ""
    """What makes one think that it hangs, though it is called running."""

    @property
    def shown(self) -> str:
        return "stalled" if self.stalled else self.state

    @property
    def active(self) -> bool:
        return self.state in ("running", "queued")


def read_states(graph: Graph, queued: Mapping[str, Queued]) -> dict[str, JobState]:
    """The state of every job but the leaderboard.

    Args:
        queued: of jobs in SLURM's queue, as `slurm.submissions.queued_jobs` finds them.
    """
    states: dict[str, JobState] = {}
    for job in graph.work:
        state = _read_state(job, queued.get(job.key))
        held_up = state.state == "new" and any(states[need].state in ("failed", "blocked") for need in job.needs)
        states[job.key] = JobState("blocked") if held_up else state
    return states


def _read_state(job: Job, in_queue: Queued | None) -> JobState:
    record = read_record(job.folder)
    if record is not None and record.status == "done":
        return JobState("done", record)
    if in_queue is not None:
        state: State = "running" if in_queue.state in ("RUNNING", "COMPLETING") else "queued"
        last = last_json_line(job.folder / METRICS)
        stalled = _stalled(job.folder, last, in_queue.seconds) if state == "running" else ""
        return JobState(state, record, in_queue.id, in_queue.reason, last, stalled)
    if record is None:
        return JobState("new")
    if record.status == "running" and is_taken(job.folder / ".lock"):
        last = last_json_line(job.folder / METRICS)
        return JobState("running", record, last=last, stalled=_stalled(job.folder, last, _since_attempt(job.folder)))
    return JobState("failed" if record.status == "failed" else "interrupted", record)


def _stalled(folder: Path, last: Mapping[str, Any], elapsed: float) -> str:
    """Of a job that has run for `elapsed` seconds: whether its process has fallen silent, or its metrics have."""
    beaten = last_beat(folder / ".lock")
    quiet = min(elapsed, time.time() - beaten) if beaten else 0.0
    if quiet > LOST_BEATS * BEAT_S:
        return f"no heartbeat for {duration(quiet)}"
    silent = min(elapsed, time.time() - last.get("time", 0.0))
    usual = float(last.get("seconds") or 0.0)
    return f"no progress for {duration(silent)}" if silent > max(SILENT_S, 4 * usual) else ""


def _since_attempt(folder: Path) -> float:
    began = last_json_line(folder / ATTEMPTS).get("time")
    return time.time() - float(began) if began else 0.0


def log_of(folder: Path) -> str | None:
    """Where the latest job on this run writes its log."""
    log = last_json_line(folder / ATTEMPTS).get("log")
    return str(log) if log else None


def headline(record: Record) -> str:
    """What a finished stage found, in a few words: `top1 78.30`, `box AP 12.1, mask AP 10.4`."""
    metrics = record.metrics
    shown = [("top1", "top1"), ("box_AP", "box AP"), ("mask_AP", "mask AP"), ("loss", "loss")]
    found = [f"{text} {metrics[name]:.2f}" for name, text in shown if isinstance(metrics.get(name), int | float)]
    return ", ".join(found)


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


def problems(graph: Graph, states: Mapping[str, JobState]) -> list[str]:
    """A few lines about every job that failed: what, why, and where its log is."""
    lines = []
    for job in graph.work:
        found = states[job.key]
        if found.state != "failed" or found.record is None:
            continue
        stopped = sum(states[key].state == "blocked" for key in _all_dependants(graph, job.key))
        waiting = f" ({stopped} wait for it)" if stopped else ""
        lines.append(f"{job.cell}: {job.column} failed: {found.record.error}{waiting}")
        lines.append(f"    log: {log_of(job.folder) or job.folder}")
    return lines


def _all_dependants(graph: Graph, key: str) -> set[str]:
    found: set[str] = set()
    waiting = [key]
    while waiting:
        fresh = [k for k in graph.dependants[waiting.pop()] if k not in found and graph[k].stage != LEADERBOARD]
        found.update(fresh)
        waiting += fresh
    return found
