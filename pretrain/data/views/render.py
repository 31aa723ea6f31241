"""From images to their views, on a pool of threads: compiled code that does not hold the interpreter's lock."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data.batch import Batch
from pretrain.data.views import random_parameters as draws
from pretrain.data.views.colour import recolour
from pretrain.data.views.crop import resized_crop
from pretrain.data.views.jit import kernel
from pretrain.data.views.random_parameters import Floats, Integers
from pretrain.data.views.view_sets import Plan

MOST_IMAGES = 16
"""That are a thread's next piece of work."""

_TOP, _LEFT, _HEIGHT, _WIDTH = draws.TOP, draws.LEFT, draws.HEIGHT, draws.WIDTH
_FULL_HEIGHT, _FULL_WIDTH = draws.FULL_HEIGHT, draws.FULL_WIDTH
_WINDOW_TOP, _WINDOW_LEFT, _FLIP = draws.WINDOW_TOP, draws.WINDOW_LEFT, draws.FLIP


@cache
def pool(workers: int) -> ThreadPoolExecutor:
    """The threads that render, for all loaders of this process: libjpeg-turbo keeps memory for each thread it meets."""
    return ThreadPoolExecutor(workers, thread_name_prefix="views")


@dataclass(frozen=True)
class Rendered:
    batch: Batch
    table: Floats
    """Parameters of its views [B, V, PARAMETERS]: what is left to do where colour is placed on the accelerator."""


class Views(NamedTuple):
    """What compiled code needs to know to fill a batch of B x V views."""

    table: Floats
    """Parameters (see `draws`), [B, V, PARAMETERS]."""
    sizes: Integers
    """Side of each view, [V]."""
    cubic: NDArray[np.bool_]
    """Whether each is interpolated bicubically, [V]."""
    image_coloured: bool
    """Whether the photometric operations are applied here to the image, before a view is cut from it."""
    view_coloured: bool
    """Whether they are applied here to the view."""
    pixels: NDArray[np.uint8]
    """All views, one after the other, each [B, S_v, S_v, 3]."""
    offsets: Integers
    """Where each view starts in `pixels`, [V]."""


class Rendering:
    """A batch in the making: parts of it are rendered on the pool."""

    def __init__(self, plan: Plan, index: Integers, label: Integers, table: Floats, workers: int) -> None:
        self.index, self.label, self.workers = index, label, workers
        lengths = 3 * len(index) * plan.sizes**2
        self._block = torch.empty(int(lengths.sum()), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        coloured = plan.placement == "loader"
        when = coloured and plan.before_crop, coloured and not plan.before_crop
        self.views = Views(table, plan.sizes, plan.cubic, *when, self._block.numpy(), np.cumsum(lengths) - lengths)
        self._parts: list[Future[None]] = []

    def start(self, part: Callable[[int, int], None]) -> "Rendering":
        """Has `part(first, last)` render the images first..last - 1, for all of the batch."""
        step = max(1, min(MOST_IMAGES, -(-len(self.index) // (4 * self.workers))))
        starts = range(0, len(self.index), step)
        threads = pool(self.workers)
        self._parts = [threads.submit(part, first, min(first + step, len(self.index))) for first in starts]
        return self

    def result(self) -> Rendered:
        """Waits for all parts; raises the first exception of any."""
        for part in self._parts:
            part.result()
        return Rendered(Batch(self._tensors(), pinned(self.index), pinned(self.label)), self.views.table)

    def cancel(self) -> None:
        for part in self._parts:
            part.cancel()

    def _tensors(self) -> list[torch.Tensor]:
        """V views [B, 3, S_v, S_v], channels last."""
        shapes = [(len(self.index), size, size, 3) for size in self.views.sizes.tolist()]
        blocks = self._block.split([prod(shape) for shape in shapes])
        return [block.view(shape).permute(0, 3, 1, 2) for block, shape in zip(blocks, shapes, strict=True)]


def pinned(values: NDArray[Any]) -> torch.Tensor:
    """As a tensor from which an accelerator can copy while the host goes on."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


@kernel
def render_views(image: Any, views: Any, number: int) -> None:
    """Fills the views of image `number` of the batch from its pixels, uint8 [H, W, 3]."""
    coloured = np.empty(image.shape if views.image_coloured else (0, 0, 3), np.uint8)
    for view in range(len(views.sizes)):
        row, size = views.table[number, view], views.sizes[view]
        start = views.offsets[view] + number * 3 * size * size
        out = views.pixels[start : start + 3 * size * size].reshape(size, size, 3)
        box = (int(row[_TOP]), int(row[_LEFT]), int(row[_HEIGHT]), int(row[_WIDTH]))
        full = (int(row[_FULL_HEIGHT]), int(row[_FULL_WIDTH]))
        window = (int(row[_WINDOW_TOP]), int(row[_WINDOW_LEFT]))
        if views.image_coloured:
            coloured[:] = image
            recolour(coloured, row)
            resized_crop(coloured, box, full, window, row[_FLIP] != 0, views.cubic[view], out)
        else:
            resized_crop(image, box, full, window, row[_FLIP] != 0, views.cubic[view], out)
        if views.view_coloured:
            recolour(out, row)
