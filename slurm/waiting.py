"""Jobs that wait for room in SLURM's queue: a note in the sweep's folder, which `slurm.waves` works off."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slurm.clusters import Preset
from slurm.graph import Graph
from whitebench.files import write_json

WAITING = "waiting.json"


def read_waiting(folder: Path) -> dict[str, Any]:
    """The note in a sweep's folder; {} where no job waits."""
    try:
        note = json.loads((folder / WAITING).read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def leave_waiting(
    graph: Graph, keys: Iterable[str], preset: Preset, code: Path, reason: str, fill: tuple[int, int] | None = None
) -> None:
    """Writes down which jobs wait for room, and how they are to be submitted; removes the note where none does.

    Args:
        keys: in the order in which they are to be submitted.
        fill: jobs of this user that are in the queue now, and those of this sweep among them; None: not known.
    """
    path = graph.leaderboard.folder / WAITING
    keys = list(keys)
    if not keys:
        path.unlink(missing_ok=True)
        return
    note = {"keys": keys, "preset": asdict(preset), "code": str(code), "cwd": str(Path.cwd()), "reason": reason}
    write_json(path, {**note, "fill": fill})


def in_order(graph: Graph, keys: set[str]) -> list[str]:
    """Cell by cell, so that jobs that are submitted first complete cells."""
    return [job.key for job in graph.work if job.key in keys]


def forget_waiting(graph: Graph, keys: Iterable[str]) -> None:
    """Takes cancelled jobs out of those that wait."""
    path = graph.leaderboard.folder / WAITING
    note = read_waiting(path.parent)
    gone = set(keys)
    remaining = [key for key in note.get("keys") or [] if key not in gone]
    if remaining:
        write_json(path, {**note, "keys": remaining})
    else:
        path.unlink(missing_ok=True)
