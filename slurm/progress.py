"""How far a long step of a launch is: lines on stderr, none for steps of a few seconds."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
EVERY_S = 3.0


class Progress:
    """Counts what is done, and prints `planned 2,000 of 10,000 cells` every few seconds."""

    def __init__(self, done: str, total: int, what: str, every_s: float = EVERY_S) -> None:
        self.done, self.total, self.what, self.every_s = done, total, what, every_s
        self.count = 0
        self._last = time.monotonic()

    def add(self, count: int = 1) -> None:
        self.count += count
        now = time.monotonic()
        if now - self._last >= self.every_s and self.count < self.total:
            self._last = now
            print(f"{self.done} {self.count:,} of {self.total:,} {self.what}", file=sys.stderr, flush=True)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items; each counts once the next one is asked for."""
        for item in items:
            yield item
            self.add()
