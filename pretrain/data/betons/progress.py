"""Progress of a long write: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pretrain.data.betons.split_writer import Progress

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def shown_progress() -> Iterator[Progress]:
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

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)  # type: ignore[arg-type]

        yield progress


def _lines() -> Progress:
    started: dict[str, float] = {}
    said: dict[str, float] = {}

    def progress(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        started.setdefault(what, now)
        if done < total and now - said.get(what, started[what]) < SECONDS_BETWEEN_LINES:
            return
        said[what] = now
        rate = done / max(now - started[what], 1e-9)
        print(f"{what}: {done:,} of {total:,}, {rate:,.0f} images/s", file=sys.stderr, flush=True)

    return progress
