"""What a launch shows while it runs: a live region on a terminal, plain lines in a log; results as they come."""

import sys
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from slurm.graph import Job

PLAIN_EVERY_S = 60.0


@dataclass(frozen=True)
class Snapshot:
    """Where a launch stands."""

    running: list[tuple[Job, dict[str, Any], float]]
    """Job, last line of its metrics, seconds since it began."""
    counts: dict[str, int]
    """State to number of jobs."""
    total: int
    stopping: bool = False

    @property
    def summary(self) -> str:
        parts = [f"{self.counts.get('done', 0)} of {self.total} jobs done", f"{len(self.running)} running"]
        parts += [f"{self.counts[state]} {state}" for state in ("failed", "blocked") if self.counts.get(state)]
        return ", ".join(parts)


class Display:
    """Lines that stay, and below them (on a terminal) the jobs that run."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self._plain_at = time.monotonic()
        if self.live:
            self.live.start()

    def close(self) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str, style: str | None = None) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')}  {text}", style=style, markup=False)
        sys.stdout.flush()

    def finished(self, job: Job, found: str, seconds: float) -> None:
        self.say(f"done    {job.column:10} {job.cell:32} {found}  ({duration(seconds)})")

    def failed(self, job: Job, error: str, log: str) -> None:
        self.say(f"failed  {job.column:10} {job.cell:32} {error}\n          log: {log}", style="red")

    def refresh(self, snapshot: Snapshot) -> None:
        if self.live:
            self.live.update(_table(snapshot), refresh=True)
        elif time.monotonic() - self._plain_at >= PLAIN_EVERY_S:
            self._plain_at = time.monotonic()
            running = "; ".join(
                " ".join([job.column, job.cell, progress(last), f"({duration(seconds)})"])
                for job, last, seconds in snapshot.running
            )
            self.say(f"{snapshot.summary}: {running}")


def _table(snapshot: Snapshot) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, title_justify="left", title_style="bold")
    table.title = snapshot.summary + (" (stopping)" if snapshot.stopping else "")
    for job, last, seconds in snapshot.running:
        table.add_row("  " + job.column, job.cell, progress(last), duration(seconds))
    return table


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


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
