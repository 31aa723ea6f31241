"""Measures whether colour augmentation is faster in the loader or on the accelerator, and stores the answer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from pretrain.data.loaders.placement import PLACEMENTS, measurements_path, placement_of, stored_measurements, views_key
from pretrain.recipe import Recipe
from pretrain.repeatable import resolve_device
from pretrain.speed import Speed, training_speed
from whitebench.errors import UserError
from whitebench.files import write_json


def measure(recipe: Recipe, steps: int, force: bool, speed: Callable[[Recipe, int], Speed] = training_speed) -> str:
    """Trains `steps` steps with either placement, stores the faster one, and says so.

    Args:
        force: measure again. Runs that began with the other placement are then other cells.
        speed: how a recipe's rate is measured.
    Raises:
        UserError: nothing to choose: on a CPU, with loader=device, or where the recipe fixes the placement.
    """
    data = recipe.data
    device = resolve_device(recipe.device)
    if data.placement != "auto" or data.loader == "device" or device == "cpu" or data.colour.before_crop:
        raise UserError(
            f"nothing to measure: with these settings colour augmentation runs in the {placement_of(data, device)}"
        )
    stored = stored_measurements(data.dataset)
    if views_key(data) in stored and not force:
        entry = stored[views_key(data)]
        return f"{measurements_path(data.dataset)}: measured before, {_description(entry)}; --force measures again"
    speeds = {
        placement: speed(replace(recipe, data=replace(data, placement=placement)), steps) for placement in PLACEMENTS
    }
    entry = {
        "placement": max(PLACEMENTS, key=lambda placement: speeds[placement].images_per_s),
        "images_per_s": {placement: round(each.images_per_s, 1) for placement, each in speeds.items()},
        "data_wait": {placement: round(each.data_wait, 4) for placement, each in speeds.items()},
        "recipe": recipe.name,
        "workers": recipe.machine.workers,
        "device": _device_name(),
        "steps": steps,
    }
    write_json(measurements_path(data.dataset), {**stored, views_key(data): entry})
    return f"{measurements_path(data.dataset)}: {_description(entry)}; data.placement=auto uses it from now on"


def _description(entry: dict[str, Any]) -> str:
    rates = ", ".join(
        f"{rate:,.0f} images/s with it in the {placement}" for placement, rate in entry["images_per_s"].items()
    )
    return (
        f"colour augmentation runs in the {entry['placement']} ({rates}; {entry['device']}, {entry['workers']} workers)"
    )


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
