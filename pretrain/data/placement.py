"""Where colour runs quicker, in the loader or on the accelerator: measured once for a dataset's views, and kept there.

What is kept is what `data.placement=auto` means from then on, on every machine that sees the dataset: so a cell is
planned, run and resumed with one placement, whatever a later measurement would say.
"""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pretrain.data import Placement, placement_of
from results.command import UserError
from results.content import content_hash, write_json
from results.record import data_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from pretrain.recipe import Data, Recipe
    from pretrain.speed import Speed

FILE = "placement.json"
PLACEMENTS: tuple[Placement, ...] = ("loader", "accelerator")


def measured_placement(data: "Data") -> Placement | None:
    """What was measured for these views of this dataset; None where nothing was."""
    entry = _kept(data.dataset).get(_key(data))
    return cast(Placement, entry["placement"]) if entry else None


def measure(recipe: "Recipe", steps: int, force: bool, speed: "Callable[[Recipe, int], Speed] | None" = None) -> str:
    """Trains `steps` steps with either placement, keeps the quicker one, and says so.

    Args:
        force: also where it was measured before. Runs that began with the other placement then are other cells.
        speed: measures a recipe; by default `training_speed`.
    Raises:
        UserError: there is no choice: on a CPU, with loader=device, or where the recipe makes it.
    """
    from pretrain.repeatable import resolve_device
    from pretrain.speed import training_speed

    data = recipe.data
    device = resolve_device(recipe.device)
    if data.placement != "auto" or data.loader == "device" or device == "cpu" or data.colour.before_crop:
        raise UserError(f"nothing to measure: colour runs in the {placement_of(data, device)} here, as things are set")
    kept = _kept(data.dataset)
    if _key(data) in kept and not force:
        entry = kept[_key(data)]
        return f"{_path(data.dataset)}: measured before, {_told(entry)}; --force measures anew"
    found = {
        place: (speed or training_speed)(replace(recipe, data=replace(data, placement=place)), steps)
        for place in PLACEMENTS
    }
    entry = {
        "placement": max(PLACEMENTS, key=lambda place: found[place].images_per_s),
        "images_per_s": {place: round(each.images_per_s, 1) for place, each in found.items()},
        "data_wait": {place: round(each.data_wait, 4) for place, each in found.items()},
        "recipe": recipe.name,
        "workers": recipe.machine.workers,
        "device": _device_name(),
        "steps": steps,
    }
    write_json(_path(data.dataset), {**kept, _key(data): entry})
    return f"{_path(data.dataset)}: {_told(entry)}; data.placement=auto means that from now on"


def _told(entry: dict[str, Any]) -> str:
    rates = ", ".join(f"{rate:,.0f} images/s with it in the {place}" for place, rate in entry["images_per_s"].items())
    return f"colour runs in the {entry['placement']} ({rates}; {entry['device']}, {entry['workers']} workers)"


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _path(dataset: str) -> Path:
    return data_root() / dataset / FILE


def _key(data: "Data") -> str:
    return content_hash({"views": data.views, "colour": data.colour, "loader": data.loader})[:16]


def _kept(dataset: str) -> dict[str, Any]:
    path = _path(dataset)
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
