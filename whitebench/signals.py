"""Handlers of signals for as long as some work lasts."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Ctrl-C, the end of a job, and SLURM's warning before a time limit or preemption, as submitit sends it."""


@contextmanager
def handling(
    handler: "Handler | signal.Handlers", numbers: Iterable[int] = STOP_SIGNALS
) -> Iterator[dict[int, object]]:
    """Handles the signals `numbers` within the context; yields the handlers before, which are put back at its end."""
    before: dict[int, object] = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)  # type: ignore[arg-type]
