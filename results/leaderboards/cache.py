"""What was read of records before, so that aggregating again reads only what has changed since.

A file counts as unchanged while its size, time and inode stay; one that was written in the last seconds is read again,
because a later write could leave all three. The cache is thrown away when the code that reads records changes. Nothing
depends on it: without it, or with a damaged one, everything is read.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from whitebench.files import write_atomically
from whitebench.hashing import content_hash, file_hash

ROOT = Path(__file__).parents[2]
READERS = (
    *("results/leaderboards/cache.py", "results/leaderboards/collect.py", "results/leaderboards/run_table.py"),
    *("results/leaderboards/equal_code.py", "results/inputs/equal_code.csv"),
    *("whitebench/hashing.py", "whitebench/records.py"),
)
"""The files that determine an entry."""

YOUNG = 5.0
"""Seconds within which a file is too new to be remembered."""

Entry = dict[str, Any]


class Cache:
    """By path, one entry a file; plain JSON."""

    def __init__(self, file: Path | None) -> None:
        """`file` holds it between commands; None keeps nothing."""
        self.file = file
        self.code = content_hash([file_hash(ROOT / name) for name in READERS])
        self.entries: dict[str, list[Any]] = {}
        self.texts: dict[str, str] = {}
        """See `Collection.texts`."""
        self.seen: dict[str, list[Any]] = {}
        self.read = 0
        """Files that were not in it."""
        self._load()

    def _load(self) -> None:
        if self.file is None or not self.file.is_file():
            return
        try:
            content = json.loads(self.file.read_bytes())
            if content["code"] == self.code:
                self.entries, self.texts = dict(content["entries"]), dict(content["texts"])
        except (OSError, ValueError, KeyError, TypeError):
            self.entries, self.texts = {}, {}

    def get(self, path: Path, state: os.stat_result) -> Entry | None:
        """The entry of a file in this state, if it was read in that before."""
        cached = self.entries.get(str(path))
        if cached is None or cached[0] != _mark(state):
            self.read += 1
            return None
        self.seen[str(path)] = cached
        entry: Entry = cached[1]
        return entry

    def put(self, path: Path, state: os.stat_result, entry: Entry) -> None:
        if time.time() - state.st_mtime > YOUNG:
            self.seen[str(path)] = [_mark(state), entry]

    def save(self, texts: dict[str, str]) -> None:
        """Keeps the entries of the files that were asked for, and these texts, where they are others than before."""
        if self.file is not None and (self.read or self.seen.keys() != self.entries.keys()):
            content = {"code": self.code, "texts": texts, "entries": self.seen}
            with suppress(OSError):  # on a read-only disk everything is read again the next time
                write_atomically(self.file, json.dumps(content, separators=(",", ":")).encode())


def _mark(state: os.stat_result) -> list[int]:
    return [state.st_size, state.st_mtime_ns, state.st_ino]
