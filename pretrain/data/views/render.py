"""From images to their views, on a pool of threads: compiled code that does not hold the interpreter's lock."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data.batch import Batch
from pretrain.data.views import random_parameters as columns
from pretrain.data.views.colour import recolour
from pretrain.data.views.crop import resized_crop
from pretrain.data.views.jit import kernel
from pretrain.data.views.random_parameters import Floats, Integers
from pretrain.data.views.view_sets import ViewSet

AHEAD = 3
"""Batches that loaders prepare ahead of the training."""
MAX_IMAGES_PER_TASK = 16
"""Images that a thread renders before it asks for more: small enough that no thread idles long at a batch's end."""

_TOP, _LEFT, _HEIGHT, _WIDTH = columns.TOP, columns.LEFT, columns.HEIGHT, columns.WIDTH
_FULL_HEIGHT, _FULL_WIDTH = columns.FULL_HEIGHT, columns.FULL_WIDTH
_WINDOW_TOP, _WINDOW_LEFT, _FLIP = columns.WINDOW_TOP, columns.WINDOW_LEFT, columns.FLIP


class ViewBuffers(NamedTuple):
    """A batch of B x V views as compiled code sees it: where each view goes, and how it is made."""

    table: Floats
    """Parameters (see `random_parameters`), [B, V, PARAMETERS]."""
    sizes: Integers
    """Side of each view, [V]."""
    cubic: NDArray[np.bool_]
    """Whether each is interpolated bicubically, [V]."""
    colour_image: bool
    """Whether the photometric operations are applied here to the image, before a view is cut from it."""
    colour_view: bool
    """Whether they are applied here to the view."""
    pixels: NDArray[np.uint8]
    """All views, one after the other, each [B, S_v, S_v, 3]."""
    offsets: Integers
    """Where each view starts in `pixels`, [V]."""


class PendingBatch(NamedTuple):
    """A batch whose views are still being rendered."""

    batch: Batch
    tasks: list[Future[None]]

    def result(self) -> Batch:
        """Waits for all tasks; raises the first exception of any."""
        for task in self.tasks:
            task.result()
        return self.batch

    def cancel(self) -> None:
        """Drops the tasks that no thread has started."""
        for task in self.tasks:
            task.cancel()


@cache
def pool(workers: int) -> ThreadPoolExecutor:
    """The threads that render, for all loaders of this process: libjpeg-turbo keeps memory for each thread it meets."""
    return ThreadPoolExecutor(workers, thread_name_prefix="views")


def start_batch(
    views: ViewSet,
    index: Integers,
    label: Integers,
    table: Floats,
    workers: int,
    render: Callable[[ViewBuffers, int, int], None],
) -> PendingBatch:
    """Starts to render the images `index` [B] on the pool; `render(buffers, first, last)` does first..last - 1."""
    shapes = [(len(index), size, size, 3) for size in views.sizes.tolist()]
    lengths = np.array([prod(shape) for shape in shapes], np.int64)
    block = torch.empty(int(lengths.sum()), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    in_loader = views.placement == "loader"
    buffers = ViewBuffers(
        table=table,
        sizes=views.sizes,
        cubic=views.cubic,
        colour_image=in_loader and views.before_crop,
        colour_view=in_loader and not views.before_crop,
        pixels=block.numpy(),
        offsets=np.cumsum(lengths) - lengths,
    )
    step = max(1, min(MAX_IMAGES_PER_TASK, -(-len(index) // (4 * workers))))
    starts, threads = range(0, len(index), step), pool(workers)
    tasks = [threads.submit(render, buffers, first, min(first + step, len(index))) for first in starts]
    parts = zip(block.split(lengths.tolist()), shapes, strict=True)
    tensors = [part.view(shape).permute(0, 3, 1, 2) for part, shape in parts]  # channels last in memory
    return PendingBatch(Batch(tensors, pinned(index), pinned(label), table), tasks)


def pinned(values: NDArray[Any]) -> torch.Tensor:
    """A tensor from which an accelerator can copy while the host continues."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


@kernel
def render_views(image: Any, buffers: Any, number: int) -> None:
    """Fills the views of image `number` of the batch from its pixels, uint8 [H, W, 3]."""
    coloured = np.empty(image.shape if buffers.colour_image else (0, 0, 3), np.uint8)
    for view in range(len(buffers.sizes)):
        row, size = buffers.table[number, view], buffers.sizes[view]
        start = buffers.offsets[view] + number * 3 * size * size
        out = buffers.pixels[start : start + 3 * size * size].reshape(size, size, 3)
        box = (int(row[_TOP]), int(row[_LEFT]), int(row[_HEIGHT]), int(row[_WIDTH]))
        full = (int(row[_FULL_HEIGHT]), int(row[_FULL_WIDTH]))
        window = (int(row[_WINDOW_TOP]), int(row[_WINDOW_LEFT]))
        if buffers.colour_image:
            coloured[:] = image
            recolour(coloured, row)
            resized_crop(coloured, box, full, window, row[_FLIP] != 0, buffers.cubic[view], out)
        else:
            resized_crop(image, box, full, window, row[_FLIP] != 0, buffers.cubic[view], out)
        if buffers.colour_view:
            recolour(out, row)
