"""What a launch prints while it runs: a live region on a terminal, plain lines in a log; results as they come."""

import sys
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from slurm.graph import Job
from slurm.job_state import progress
from whitebench.text import duration

PLAIN_EVERY_S = 60.0
MOST_RUNNING = 4
"""Running jobs that a plain line, or the live region, lists one by one."""
MOST_LIVE = 20


@dataclass(frozen=True)
class Snapshot:
    """The progress of a launch."""

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
    """Permanent lines, and below them (on a terminal) the running jobs."""

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

    def finished(self, job: Job, result: str, seconds: float) -> None:
        self.say(f"done    {job.column:10} {job.cell:32} {result}  ({duration(seconds)})")

    def failed(self, job: Job, error: str, log: str) -> None:
        self.say(f"failed  {job.column:10} {job.cell:32} {error}\n          log: {log}", style="red")

    def refresh(self, snapshot: Snapshot) -> None:
        if self.live:
            self.live.update(_table(snapshot), refresh=True)
        elif time.monotonic() - self._plain_at >= PLAIN_EVERY_S:
            self._plain_at = time.monotonic()
            running = "; ".join(
                " ".join([job.column, job.cell, progress(last), f"({duration(seconds)})"])
                for job, last, seconds in snapshot.running[:MOST_RUNNING]
            )
            more = f"; and {len(snapshot.running) - MOST_RUNNING} more" if len(snapshot.running) > MOST_RUNNING else ""
            self.say(f"{snapshot.summary}: {running}{more}")


def _table(snapshot: Snapshot) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, title_justify="left", title_style="bold")
    table.title = snapshot.summary + (" (stopping)" if snapshot.stopping else "")
    for job, last, seconds in snapshot.running[:MOST_LIVE]:
        table.add_row("  " + job.column, job.cell, progress(last), duration(seconds))
    return table
