"""Views of a small set that lives on the device as uint8, cut in batches as products with matrices.

A crop with its antialiased resize and flip is linear in rows and in columns: view = R image C^T, with one R [S, H] and
one C [S, W] an image, whose rows are the weights of Pillow's filter. The sums are exact (see `deterministic_sums`), so
that a view does not depend on the batch around it; it agrees with the other loaders' within 1 level.
"""

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.data.betons.manifest import Manifest
from pretrain.data.betons.read import BetonImages
from pretrain.data.loaders.folder import open_images
from pretrain.data.views import random_parameters as columns
from pretrain.data.views.colour_batched import recolour
from pretrain.data.views.deterministic_sums import BITS, BITS_CUBIC, resample, whole_weights
from pretrain.data.views.random_parameters import Floats, Integers
from pretrain.data.views.render import pinned, pool
from pretrain.data.views.view_sets import ViewSet
from whitebench.errors import UserError

MAX_BYTES = 4 << 30
"""Larger sets are refused: they would leave too little of an accelerator's memory for the training."""


class DeviceRenderer:
    """Renders the images of a split that it keeps on `device`: [N, 3, H, W], all of one size."""

    def __init__(self, manifest: Manifest, split: str, views: ViewSet, workers: int, device: str) -> None:
        self.views, self.device = views, device
        images, self.label = _read_all(manifest, split, workers)
        self.images = images.to(device)

    def batches(self, indices: Sequence[Integers], epoch: int) -> Generator[Batch, None, None]:
        """The batches. The host draws their parameters and continues: nothing waits for the device."""
        height, width = self.images.shape[2:]
        for index in indices:
            sides = np.full(len(index), height), np.full(len(index), width)
            table = self.views.table(epoch, index, *sides)
            chosen = pinned(index)
            images = self.images[chosen.to(self.device, non_blocking=True)]
            views = [self._view(images, table[:, view], view) for view in range(len(self.views.sizes))]
            yield Batch(views, chosen, pinned(self.label[index]), table)

    def _view(self, images: Tensor, table: Floats, view: int) -> Tensor:
        images = recolour(images, table) if self.views.before_crop else images
        return resized_crops(images.float(), table, int(self.views.sizes[view]), bool(self.views.cubic[view]))


def resized_crops(images: Tensor, table: Floats, size: int, cubic: bool) -> Tensor:
    """Views uint8 [B, 3, size, size] of images float [B, 3, H, W] in levels, as `table` [B, PARAMETERS] says."""
    parameters = pinned(table).to(images.device, non_blocking=True)
    vertical = _resize_matrix(
        parameters, columns.TOP, columns.HEIGHT, columns.FULL_HEIGHT, columns.WINDOW_TOP, images.shape[2], size, cubic
    )
    horizontal = _resize_matrix(
        parameters, columns.LEFT, columns.WIDTH, columns.FULL_WIDTH, columns.WINDOW_LEFT, images.shape[3], size, cubic
    )
    horizontal = torch.where(parameters[:, columns.FLIP, None, None] != 0, horizontal.flip(1), horizontal)
    views = resample(images, vertical, horizontal, BITS_CUBIC if cubic else BITS)
    return views.to(torch.uint8, memory_format=torch.channels_last)


def _resize_matrix(
    table: Tensor, start: int, length: int, full: int, window: int, side: int, size: int, cubic: bool
) -> Tensor:
    """`whole_weights` [B, size, side] of each source row (or column) in each row of the view.

    `start`, `length`, `full` and `window` are columns of `table`.
    """
    box_start, box_length, new_length, first = (table[:, n, None, None] for n in (start, length, full, window))
    scale = box_length / new_length
    stretch = scale.clamp(min=1)
    new = torch.arange(size, device=table.device)[:, None]
    source = torch.arange(side, device=table.device) - box_start
    centre = scale * (first + new + 0.5)
    distance = (source + 0.5 - centre).abs() / stretch
    weight = _cubic(distance) if cubic else (1 - distance).clamp(min=0)
    return whole_weights(weight * ((source >= 0) & (source < box_length)), BITS_CUBIC if cubic else BITS)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


def _read_all(manifest: Manifest, split: str, workers: int) -> tuple[Tensor, Integers]:
    """All images of a split, uint8 [N, 3, H, W] on the CPU, and their labels; by FFCV where it is installed."""
    from pretrain.data.betons.libjpeg import has_ffcv

    images: Any = BetonImages(manifest, split) if has_ffcv() else open_images(manifest, split)
    height, width = images.sides(0)
    needed = len(images.label) * 3 * height * width
    if needed > MAX_BYTES:
        raise UserError(f"data.loader=device: '{manifest.dataset}' takes {needed / 1e9:.1f} GB; use data.loader=ffcv")
    block = torch.empty(len(images.label), height, width, 3, dtype=torch.uint8)
    for index, pixels in enumerate(pool(workers).map(images.pixels, range(len(images.label)))):
        if pixels.shape != (height, width, 3):
            raise UserError(
                f"data.loader=device: the images of '{manifest.dataset}' differ in size; use data.loader=ffcv"
            )
        block.numpy()[index] = pixels
    return block.permute(0, 3, 1, 2).contiguous(), images.label
