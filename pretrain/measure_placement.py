"""Measures whether colour augmentation is faster in the loader or on the accelerator, and stores the answer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from pretrain.data.loaders.placement import measurements_path, placement_of, stored_measurements, views_key
from pretrain.recipe import Placement, Recipe
from pretrain.repeatable import resolve_device
from pretrain.speed import Speed, training_speed
from whitebench.errors import UserError
from whitebench.files import write_json

PLACEMENTS: tuple[Placement, ...] = ("loader", "accelerator")


def measure(recipe: Recipe, steps: int, force: bool, speed: Callable[[Recipe, int], Speed] = training_speed) -> str:
    """Trains `steps` steps with either placement, keeps the quicker one, and says so.

    Args:
        force: also where it was measured before. Runs that began with the other placement then are other cells.
        speed: measures a recipe; .
    Raises:
        UserError: there is no choice: on a CPU, with loader=device, or where the recipe makes it.
    """
    data = recipe.data
    device = resolve_device(recipe.device)
    if data.placement != "auto" or data.loader == "device" or device == "cpu" or data.colour.before_crop:
        raise UserError(f"nothing to measure: colour runs in the {placement_of(data, device)} here, as things are set")
    kept = stored_measurements(data.dataset)
    if views_key(data) in kept and not force:
        entry = kept[views_key(data)]
        return f"{measurements_path(data.dataset)}: measured before, {_description(entry)}; --force measures anew"
    found = {place: speed(replace(recipe, data=replace(data, placement=place)), steps) for place in PLACEMENTS}
    entry = {
        "placement": max(PLACEMENTS, key=lambda place: found[place].images_per_s),
        "images_per_s": {place: round(each.images_per_s, 1) for place, each in found.items()},
        "data_wait": {place: round(each.data_wait, 4) for place, each in found.items()},
        "recipe": recipe.name,
        "workers": recipe.machine.workers,
        "device": _device_name(),
        "steps": steps,
    }
    write_json(measurements_path(data.dataset), {**kept, views_key(data): entry})
    return f"{measurements_path(data.dataset)}: {_description(entry)}; data.placement=auto means that from now on"


def _description(entry: dict[str, Any]) -> str:
    rates = ", ".join(f"{rate:,.0f} images/s with it in the {place}" for place, rate in entry["images_per_s"].items())
    return f"colour runs in the {entry['placement']} ({rates}; {entry['device']}, {entry['workers']} workers)"


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
