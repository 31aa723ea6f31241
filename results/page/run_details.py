"""What a report shows of single runs, from their folders: curves, looks, log, pictures, difference to the recipe."""

import base64
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from results.leaderboards import recipe_papers as recipes
from results.leaderboards.collect import read_proven
from results.leaderboards.repeat_command import repeat
from results.leaderboards.run_table import PRETRAIN, flat
from whitebench.errors import UserError
from whitebench.files import read_json_lines
from whitebench.hashing import canonical
from whitebench.records import RECORD, Record, read_metrics

LOOKS, ATTEMPTS, ERROR = "spectra.jsonl", "attempts.jsonl", "error.txt"
LOG_LINES, POINTS = 40, 300
"""Shown of a log, and of a curve, at most."""

PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif"}
PICTURE_BYTES, PICTURE_COUNT = 1_500_000, 8
"""Of the pictures of a run at most, in all; others are named."""

VIEWED = 4
"""Images on a contact sheet."""

Lines = list[dict[str, Any]]
Difference = list[tuple[str, str, str]]
"""(key, the recipe's value, the run's)."""


@dataclass
class Detail:
    record: Record
    folder: Path | None
    """None for a published record, which has no folder."""
    curve: Lines = field(default_factory=list)
    looks: Lines = field(default_factory=list)
    log: str = ""
    pictures: list[tuple[str, str]] = field(default_factory=list)
    """(name, data URI; "" where it is too large)."""

    @property
    def command(self) -> str:
        return repeat(self.record)

    @property
    def name(self) -> str:
        return f"{self.record.stage}/{self.record.id}"


def read_details(paths: Sequence[Path]) -> list[Detail]:
    """Of `run.json` files that were found sound before; one that has changed since is left out."""
    details = []
    for path in paths:
        try:
            record = read_proven(path)
        except UserError:
            continue
        details.append(_detail(record, path.parent) if path.name == RECORD else Detail(record, None))
    return details


def _detail(record: Record, folder: Path) -> Detail:
    looks = read_json_lines(folder / LOOKS) if record.stage == PRETRAIN else []
    return Detail(record, folder, thinned(read_metrics(folder)), looks, _log(folder), _pictures(folder))


def thinned(lines: Lines, most: int = POINTS) -> Lines:
    """At most about so many of them, evenly, and the last."""
    step = max(1, -(-len(lines) // most))
    return [*lines[::step], *(lines[-1:] if lines and (len(lines) - 1) % step else [])]


def difference(record: Record) -> Difference | str:
    """Where a pretraining's config is another than its recipe's is now; a text where there is no such recipe.

    "auto" of a recipe is what the machine chose, and no difference; nor is the seed.
    """
    name = str(record.cell.get("recipe"))
    base = _recipe(name)
    if isinstance(base, str):
        return base
    own = flat(record.config)
    keys = [key for key in sorted(own.keys() | base.keys()) if key not in ("seed", "data_hash")]
    found = [(key, base.get(key, "-"), own.get(key, "-")) for key in keys]
    return [(key, theirs, ours) for key, theirs, ours in found if theirs not in (ours, "auto")]


@cache
def _recipe(name: str) -> dict[str, str] | str:
    """The identity of the suite's recipe, flat; imports torch, because a recipe is complete only with its method."""
    if name not in recipes.names():
        return f"the suite has no recipe '{name}'"
    from pretrain.recipe import load

    try:
        return flat(canonical(load(name).identity()))
    except UserError as error:
        return f"the recipe cannot be read any more: {error}"


def _log(folder: Path) -> str:
    """The end of the last start's log, and of the error, where there are any."""
    parts = []
    for attempt in read_json_lines(folder / ATTEMPTS)[-1:]:
        log = Path(str(attempt.get("log")))
        root = _runs_of(log)
        moved = folder.parents[1] / log.relative_to(root) if root else log
        place = next((place for place in (log, moved) if place.is_file()), None)
        parts += [_without_place(tail(place), root)] if place else []
    if (folder / ERROR).is_file():
        parts.append(tail(folder / ERROR))
    return "\n".join(parts)


def _runs_of(log: Path) -> Path | None:
    """The folder of runs in which a sweep's log lay, perhaps before that was moved or copied."""
    return next((place.parent for place in log.parents if place.name == "sweeps"), None)


def _without_place(text: str, root: Path | None) -> str:
    """A log as it would read in the checkout: whoever gets the report is not told where on a machine that lies."""
    if root is None or root == root.parent:
        return text
    return text.replace(str(root), "runs").replace(f"{root.parent}{os.sep}", "")


def tail(path: Path, lines: int = LOG_LINES) -> str:
    """The last lines of a text file, as a terminal would show them: no colours, of overwritten lines the last state."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 64_000))
        text = file.read().decode(errors="replace")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")
    kept = plain.removesuffix("\n").split("\n")[-lines:]
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in kept)


def _pictures(folder: Path) -> list[tuple[str, str]]:
    """The pictures in a run's folder, one level of folders deep."""
    found = sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix.lower() in PICTURES)
    pictures: list[tuple[str, str]] = []
    left = PICTURE_BYTES
    for path in found:
        size = path.stat().st_size
        fits = len(pictures) < PICTURE_COUNT and size <= left
        left -= size if fits else 0
        pictures.append((path.relative_to(folder).as_posix(), data_uri(path) if fits else ""))
    return pictures


def data_uri(path: Path) -> str:
    return f"data:image/{PICTURES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def views(record: Record) -> str:
    """A data URI of a contact sheet: the first images and what this pretraining's augmentation makes of them.

    Raises:
        UserError: its dataset is not on this machine, or its config is not of this suite.
    """
    return _views(json.dumps(record.config.get("data")))


@cache
def _views(data: str) -> str:
    """Of a recipe's section `data`; the views hang on nothing else but a seed."""
    from pretrain.data.show import write_contact_sheet
    from pretrain.recipe import recipe_of

    recipe = recipe_of({"name": "views", "method": {"name": "random"}, "data": json.loads(data)}, where="its config")
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder, "views.jpg")
        write_contact_sheet(recipe, sheet, images=VIEWED)
        return data_uri(sheet)
