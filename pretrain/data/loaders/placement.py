"""Where colour augmentation runs, in the loader or on the accelerator: measured once for a dataset's views and stored.

The stored placement is what `data.placement=auto` means from then on, on every host that sees the dataset. A sweep cell
is therefore planned, run and resumed with one placement, regardless of later measurements.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pretrain.recipe_sections import Placement
from whitebench.errors import UserError
from whitebench.hashing import content_hash
from whitebench.records import data_root

if TYPE_CHECKING:
    from pretrain.recipe_sections import Data

FILE = "placement.json"
PLACEMENTS: tuple[Placement, ...] = ("loader", "accelerator")


def measured_placement(data: "Data") -> Placement | None:
    """The faster placement for these views of this dataset; None if it was not measured."""
    entry = stored_measurements(data.dataset).get(views_key(data))
    return cast(Placement, entry["placement"]) if entry else None


def placement_of(data: "Data", device: str) -> Placement:
    """Where photometric augmentation runs: chosen once per cell, and part of its identity.

    `auto` is what was measured for these views (`python -m pretrain.data measure`), or else the loader.

    Args:
        device: "cpu" or "cuda"; on a CPU, `ffcv` and `folder` augment in the loader, whatever the recipe says.
    Raises:
        UserError: the loader or the recipe's colour cannot run there.
    """
    if data.loader == "device":
        if data.placement == "loader":
            raise UserError("data.placement: loader=device augments where its images are; use auto or accelerator")
        return "accelerator"
    if data.colour.before_crop:
        if data.placement == "accelerator":
            raise UserError("data.placement: colour.before_crop needs placement=loader (or loader=device)")
        return "loader"
    if device == "cpu" or data.placement == "loader":
        return "loader"
    if data.placement == "auto":
        return measured_placement(data) or "loader"
    return "accelerator"


def measurements_path(dataset: str) -> Path:
    """The file of a dataset's measurements."""
    return data_root() / dataset / FILE


def views_key(data: "Data") -> str:
    """The key of these views and this loader in the file of measurements."""
    return content_hash({"views": data.views, "colour": data.colour, "loader": data.loader})[:16]


def stored_measurements(dataset: str) -> dict[str, Any]:
    """What was measured for a dataset, by `views_key`.

    Raises:
        UserError: the file is damaged.
    """
    path = measurements_path(dataset)
    try:
        state = path.stat()
    except FileNotFoundError:
        return {}
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache
def _read(path: Path, modified: int, size: int) -> dict[str, Any]:
    """Read once per version of the file: a sweep asks several times per cell."""
    try:
        entries = json.loads(path.read_bytes())
        if all(entry["placement"] in PLACEMENTS for entry in entries.values()):
            return cast(dict[str, Any], entries)
    except (ValueError, OSError, AttributeError, TypeError, KeyError) as error:
        advice = "delete it, or measure again: python -m pretrain.data measure RECIPE --force"
        raise UserError(f"{path}: not readable ({error!r}); {advice}") from error
    raise UserError(f"{path}: unknown placement (choose {' or '.join(PLACEMENTS)}); delete the file, or measure again")
