"""Where colour runs quicker, in the loader or on the accelerator: measured once for a dataset's views, and kept there.

What is kept is what `data.placement=auto` means from then on, on every machine that sees the dataset: so a cell is
planned, run and resumed with one placement, whatever a later measurement would say.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pretrain.recipe import Placement
from whitebench.errors import UserError
from whitebench.hashing import content_hash
from whitebench.records import data_root

if TYPE_CHECKING:
    from pretrain.recipe import Data

FILE = "placement.json"
PLACEMENTS: tuple[Placement, ...] = ("loader", "accelerator")


def measured_placement(data: "Data") -> Placement | None:
    """What was measured for these views of this dataset; None where nothing was."""
    entry = stored_measurements(data.dataset).get(views_key(data))
    return cast(Placement, entry["placement"]) if entry else None


def placement_of(data: "Data", device: str) -> Placement:
    """Where photometric augmentation runs: chosen once per cell, and part of its identity.

    Left to us (auto), it is what was measured for these views (`python -m pretrain.data measure`), or else the loader.

    Args:
        device: "cpu" or "cuda"; on a CPU, `ffcv` and `folder` augment in the loader, whatever is asked for.
    """
    if data.loader == "device":
        if data.placement == "loader":
            raise UserError("data.placement: loader=device augments where its images are; use auto or accelerator")
        return "accelerator"
    if data.colour.before_crop:
        if data.placement == "accelerator":
            raise UserError("data.placement: colour.before_crop needs the loader (or loader=device)")
        return "loader"
    if device == "cpu" or data.placement == "loader":
        return "loader"
    if data.placement == "auto":
        return measured_placement(data) or "loader"
    return "accelerator"


def measurements_path(dataset: str) -> Path:
    return data_root() / dataset / FILE


def views_key(data: "Data") -> str:
    return content_hash({"views": data.views, "colour": data.colour, "loader": data.loader})[:16]


def stored_measurements(dataset: str) -> dict[str, Any]:
    path = measurements_path(dataset)
    try:
        state = path.stat()
    except FileNotFoundError:
        return {}
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache
def _read(path: Path, modified: int, size: int) -> dict[str, Any]:
    """Once while the file stays as it is: a sweep asks several times a cell."""
    try:
        kept = json.loads(path.read_bytes())
        if all(entry["placement"] in PLACEMENTS for entry in kept.values()):
            return cast(dict[str, Any], kept)
    except (ValueError, OSError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not readable ({error!r}); delete it, or python -m pretrain.data measure") from error
    raise UserError(f"{path}: names a placement that there is not; delete it, or measure anew")
