"""`attempts.jsonl` of a run's folder: which jobs have worked on it, where, and how those ended that did not finish."""

import time
from pathlib import Path
from typing import Any

from whitebench.files import CHECKPOINT_HASHES, append_json_line, last_json_line, read_json_lines
from whitebench.records import METRICS

ATTEMPTS = "attempts.jsonl"
LEADERBOARD_STATE = "leaderboard.json"
"""In the sweep's folder: how the last making of the tables ended."""


def note_attempt(folder: Path, **values: Any) -> None:
    """Appends a line: a job that began (job, host, pid, log), or one that ended without finishing (killed, stopped)."""
    folder.mkdir(parents=True, exist_ok=True)
    append_json_line(folder / ATTEMPTS, {"time": round(time.time(), 3), **values})


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """All lines, in their order."""
    return read_json_lines(folder / ATTEMPTS)


def note_end(folder: Path, kind: str, **values: Any) -> int:
    """Notes an end without a result; how many of this kind there have been since the run last got further.

    Args:
        kind: "killed" or "stopped"; its value is among `values`.
    """
    mark = progress_mark(folder)
    ends = [entry for entry in read_attempts(folder) if kind in entry]
    count = 1
    while count <= len(ends) and ends[-count].get("progress") == mark:
        count += 1
    note_attempt(folder, **values, progress=mark)
    return count


def progress_mark(folder: Path) -> list[Any]:
    """What changes when a run gets further: its last step in the metrics, and its checkpoint."""
    checkpoint = folder / CHECKPOINT_HASHES
    return [last_json_line(folder / METRICS).get("step"), checkpoint.read_text() if checkpoint.exists() else None]
