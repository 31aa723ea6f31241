"""From the bytes of images to their views, on a pool of threads: compiled code that does not hold the interpreter's lock."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data import RawBatch, draws
from pretrain.data.colour import recolour
from pretrain.data.crop import resized_crop
from pretrain.data.draws import Floats, Integers
from pretrain.data.jit import kernel
from pretrain.data.plan import Plan

CHUNK = 16
"""At most so many images are a thread's next piece of work."""

_TOP, _LEFT, _HEIGHT, _WIDTH = draws.TOP, draws.LEFT, draws.HEIGHT, draws.WIDTH
_FULL_HEIGHT, _FULL_WIDTH, _WINDOW_TOP, _WINDOW_LEFT = (
    draws.FULL_HEIGHT,
    draws.FULL_WIDTH,
    draws.WINDOW_TOP,
    draws.WINDOW_LEFT,
)
_FLIP = draws.FLIP


@cache
def pool(workers: int) -> ThreadPoolExecutor:
    """The threads that render, shared by all loaders of this process: libjpeg-turbo keeps memory for each thread it meets."""
    return ThreadPoolExecutor(workers, thread_name_prefix="views")


@dataclass(frozen=True)
class Rendered:
    batch: RawBatch
    table: Floats
    """Parameters of its views [B, V, PARAMETERS]: what is left to do where colour is placed on the accelerator."""


class Canvas:
    """Memory for the views of a batch, one block: view after view, each uint8 [B, S_v, S_v, 3]."""

    def __init__(self, plan: Plan, batch: int) -> None:
        self.sizes = plan.sizes
        lengths = 3 * batch * plan.sizes**2
        self.offsets = np.cumsum(lengths) - lengths
        self._block = torch.empty(int(lengths.sum()), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        self.pixels: NDArray[np.uint8] = self._block.numpy()
        self._batch = batch

    def views(self) -> list[torch.Tensor]:
        """V tensors [B, 3, S_v, S_v]."""
        shapes = [(self._batch, size, size, 3) for size in self.sizes.tolist()]
        blocks = self._block.split([int(np.prod(shape)) for shape in shapes])
        return [block.view(shape).permute(0, 3, 1, 2) for block, shape in zip(blocks, shapes, strict=True)]


class Rendering:
    """A batch in the making: chunks of it are rendered on the pool."""

    def __init__(self, plan: Plan, index: Integers, label: Integers, table: Floats, workers: int) -> None:
        self.index, self.label, self.table = index, label, table
        self.canvas = Canvas(plan, len(index))
        self.workers = workers
        self._chunks: list[Future[None]] = []

    def start(self, chunk: Callable[[int, int], None]) -> "Rendering":
        """Has `chunk(first, last)` called for all parts of the batch."""
        step = max(1, min(CHUNK, -(-len(self.index) // (4 * self.workers))))
        starts = range(0, len(self.index), step)
        threads = pool(self.workers)
        self._chunks = [threads.submit(chunk, first, min(first + step, len(self.index))) for first in starts]
        return self

    def result(self) -> Rendered:
        """Waits for all parts; raises the first exception of any."""
        for chunk in self._chunks:
            chunk.result()
        batch = RawBatch(self.canvas.views(), torch.from_numpy(self.index), torch.from_numpy(self.label))
        return Rendered(batch, self.table)

    def cancel(self) -> None:
        for chunk in self._chunks:
            chunk.cancel()


@kernel
def render_views(
    image: Any, table: Any, sizes: Any, cubic: Any, coloured: bool, pixels: Any, offsets: Any, number: int
) -> None:
    """Fills image `number`'s places in a canvas's `pixels`: `image` uint8 [H, W, 3], `table` its rows [V, PARAMETERS]."""
    for view in range(len(sizes)):
        row, size = table[view], sizes[view]
        length = 3 * size * size
        start = offsets[view] + number * length
        out = pixels[start : start + length].reshape(size, size, 3)
        box = (int(row[_TOP]), int(row[_LEFT]), int(row[_HEIGHT]), int(row[_WIDTH]))
        full = (int(row[_FULL_HEIGHT]), int(row[_FULL_WIDTH]))
        window = (int(row[_WINDOW_TOP]), int(row[_WINDOW_LEFT]))
        resized_crop(image, box, full, window, row[_FLIP] != 0, cubic[view], out)
        if coloured:
            recolour(out, row)
