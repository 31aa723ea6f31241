"""Progress of a long write: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pretrain.data.betons.split_writer import Progress

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress_display() -> Iterator[Progress]:
    """A function that shows how far the work is, for as long as the context lasts."""
    if sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)  # type: ignore[arg-type]

        yield progress


def _lines() -> Progress:
    started: dict[str, float] = {}
    printed: dict[str, float] = {}

    def progress(name: str, done: int, total: int) -> None:
        now = time.monotonic()
        started.setdefault(name, now)
        if done < total and now - printed.get(name, started[name]) < SECONDS_BETWEEN_LINES:
            return
        printed[name] = now
        rate = done / max(now - started[name], 1e-9)
        print(f"{name}: {done:,} of {total:,}, {rate:,.0f} images/s", file=sys.stderr, flush=True)

    return progress
