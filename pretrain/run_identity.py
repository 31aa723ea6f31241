"""The id of a pretraining: what its recipe and data resolve to. Light: sweeps of 10,000 cells are planned by it."""

from dataclasses import replace
from typing import Any

from pretrain.data.betons.manifest import Manifest, read_manifest
from pretrain.data.loaders.placement import placement_of
from pretrain.recipe import Recipe
from pretrain.repeatable import resolve_device
from whitebench.hashing import run_id


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with device and placement decided for this machine."""
    device = resolve_device(recipe.device)
    return replace(recipe, device=device, data=replace(recipe.data, placement=placement_of(recipe.data, device)))


def pretrain_config(recipe: Recipe, manifest: Manifest) -> dict[str, Any]:
    """What determines the weights: the resolved recipe and the content of its dataset."""
    return {**recipe.identity(), "data_hash": manifest.content_hash}


def pretrain_id(recipe: Recipe) -> str:
    """The run id of a recipe, resolved or not.

    Raises:
        UserError: its dataset does not exist or cannot be read.
    """
    return run_id(recipe.label, pretrain_config(resolved(recipe), read_manifest(recipe.data.dataset)))
