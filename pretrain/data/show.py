"""A contact sheet: the first images of an epoch after a recipe's augmentation."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pretrain.data.batch import Batch
from pretrain.data.betons.manifest import read_manifest
from pretrain.data.loaders.build import evaluation_batches, training_loader
from pretrain.recipe import Recipe
from pretrain.recipe_sections import Colour
from whitebench.errors import UserError

GAP = 4
"""Pixels between pictures."""
PAPER, INK = 255, (60, 60, 60)
LINE = 12
"""Height of a line of the captions, pixels."""
MIN_SIDE = 96
"""Smaller views are enlarged by a whole factor, until the largest is about this side."""
OPERATIONS = ("jitter", "mix", "gray", "blur", "solarize", "invert")


def write_contact_sheet(recipe: Recipe, out: Path, images: int, epoch: int = 0) -> None:
    """Writes a picture with a row for each of `images` images: its centre, then its views, on their own scale.

    Above each column: the operations that may be applied to that view, with their probabilities.

    Raises:
        UserError: `out` is not the name of a picture in an existing folder.
    """
    if out.suffix.lower() not in Image.registered_extensions():
        raise UserError(f"{out}: not the name of a picture; e.g. views.png")
    if not out.parent.is_dir():
        raise UserError(f"{out}: its folder does not exist")
    manifest = read_manifest(recipe.data.dataset)
    count = min(images, manifest.split("train").count)
    batches = training_loader(recipe.data, manifest, seed=recipe.seed, batch=count).epoch(epoch)
    views: Batch = next(batches)
    side = max(recipe.view_sizes)
    kind = recipe.data.loader
    plain = next(evaluation_batches(manifest, "train", side, side, count, loader=kind, indices=views.index.numpy()))
    captions = [["the image"], *captions_of(recipe)]
    columns = [_pixels(batch, max(1, MIN_SIDE // side)) for batch in (plain, views)]
    _sheet([view for column in columns for view in column], captions).save(out)


def captions_of(recipe: Recipe) -> list[list[str]]:
    """Lines above each view: number and side, share of the image's area, then the operations that may apply."""
    groups = [group for group in recipe.data.views for _ in range(group.count)]
    return [
        [f"{number + 1}: {group.size} px", "-".join(f"{share:g}" for share in group.scale)]
        + [f"{name} {chance:g}" for name in OPERATIONS if (chance := chance_of(recipe.data.colour, name, number))]
        for number, group in enumerate(groups)
    ]


def chance_of(colour: Colour, operation: str, view: int) -> float:
    """Probability that an operation is applied to view number `view`."""
    chance = getattr(colour, f"{operation}_p")
    return float(chance[view] if isinstance(chance, list) else chance)


def _sheet(cells: list[NDArray[np.uint8]], captions: list[list[str]]) -> Image.Image:
    """`cells` [B, S, S, 3] side by side, under their captions."""
    count, side, *_ = max((cell.shape for cell in cells), key=lambda shape: shape[1])
    head = LINE * max(map(len, captions)) + GAP
    shape = (head + count * (side + GAP), sum(cell.shape[2] + GAP for cell in cells), 3)
    sheet, starts, left = np.full(shape, PAPER, np.uint8), [], 0
    for cell in cells:
        starts.append(left)
        for row in range(count):
            top = head + row * (side + GAP)
            sheet[top : top + cell.shape[1], left : left + cell.shape[2]] = cell[row]
        left += cell.shape[2] + GAP
    picture = Image.fromarray(sheet)
    draw = ImageDraw.Draw(picture)
    for start, caption in zip(starts, captions, strict=True):
        draw.multiline_text((start, 0), "\n".join(caption), fill=INK, spacing=1)
    return picture


def _pixels(batch: Batch, times: int) -> list[NDArray[np.uint8]]:
    """[B, S, S, 3] of each view, each side `times` as large."""
    views = [view.permute(0, 2, 3, 1).cpu().numpy() for view in batch.views]
    return [view.repeat(times, axis=1).repeat(times, axis=2) for view in views]
