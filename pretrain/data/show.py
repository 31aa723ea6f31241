"""A contact sheet: what a recipe's augmentation makes of the first images of an epoch."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.data import RawBatch, evaluation_batches, training_loader
from pretrain.data.manifest import read_manifest
from pretrain.recipe import Recipe
from results.command import UserError

GAP = 4
"""Pixels between pictures."""
PAPER = 255


def write_contact_sheet(recipe: Recipe, out: Path, images: int, epoch: int = 0) -> None:
    """Writes a picture with a row for each of `images` images: its centre, then its views, on their own scale."""
    if out.suffix.lower() not in Image.registered_extensions():
        raise UserError(f"{out}: not the name of a picture; e.g. views.png")
    manifest = read_manifest(recipe.data.dataset)
    count = min(images, manifest.split("train").count)
    batches = training_loader(recipe.data, manifest, seed=recipe.seed, batch=count).epoch(epoch)
    views: RawBatch = next(batches)
    side = max(recipe.view_sizes)
    kind = recipe.data.loader
    plain = next(evaluation_batches(manifest, "train", side, side, count, loader=kind, indices=views.index.numpy()))
    columns = [_pixels(batch) for batch in (plain, views)]
    cells = [view for column in columns for view in column]
    sheet = np.full((count * (side + GAP), sum(cell.shape[2] + GAP for cell in cells), 3), PAPER, np.uint8)
    left = 0
    for cell in cells:
        for row in range(count):
            top = row * (side + GAP)
            sheet[top : top + cell.shape[1], left : left + cell.shape[2]] = cell[row]
        left += cell.shape[2] + GAP
    Image.fromarray(sheet).save(out)


def _pixels(batch: RawBatch) -> list[NDArray[np.uint8]]:
    """[B, S, S, 3] of each view."""
    return [view.permute(0, 2, 3, 1).cpu().numpy() for view in batch.views]
