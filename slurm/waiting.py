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


def leave_waiting(graph: Graph, keys: Iterable[str], preset: Preset, code: Path, reason: str) -> None:
    """Writes down which jobs wait for room, and how they are to be submitted; removes the note where none does."""
    path = graph.leaderboard.folder / WAITING
    keys = sorted(keys)
    if not keys:
        path.unlink(missing_ok=True)
        return
    note = {"keys": keys, "preset": asdict(preset), "code": str(code), "cwd": str(Path.cwd()), "reason": reason}
    write_json(path, note)


def waiting_keys(graph: Graph) -> tuple[set[str], str]:
    """Keys of the jobs that wait for room in the queue, and why."""
    note = read_waiting(graph.leaderboard.folder)
    keys = note.get("keys") or []
    return {key for key in keys if key in graph.jobs}, str(note.get("reason", ""))


def forget_waiting(graph: Graph, keys: Iterable[str]) -> None:
    """Takes cancelled jobs out of those that wait."""
    path = graph.leaderboard.folder / WAITING
    note = read_waiting(path.parent)
    remaining = sorted(set(note.get("keys") or []) - set(keys))
    if remaining:
        write_json(path, {**note, "keys": remaining})
    else:
        path.unlink(missing_ok=True)
