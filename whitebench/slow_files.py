"""Reading many small files: in threads where the file system is slow, such as a network's with busy servers."""

import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
PROBED = 50
"""Files that are read one after another, to see how long each takes."""
SLOW_S = 0.002
"""A read that takes longer than this waits for the file system most of the time."""
THREADS = 64
"""Requests that are under way at a time; a server answers that many as soon as one."""


def read_all(read: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """[read(item) for item in items]. What `read` raises for an item is raised, and the others are given up."""
    from concurrent.futures import ThreadPoolExecutor  # --help does without

    remaining = iter(items)
    began = time.perf_counter()
    first = [read(item) for item in islice(remaining, PROBED)]
    if time.perf_counter() - began < SLOW_S * len(first):
        return first + [read(item) for item in remaining]
    pool = ThreadPoolExecutor(THREADS)
    try:
        return first + list(pool.map(read, remaining))
    finally:
        pool.shutdown(cancel_futures=True)
