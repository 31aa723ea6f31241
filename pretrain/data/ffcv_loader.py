"""Views from a beton through FFCV: each JPEG is decoded once, and all its views are cut from it.

FFCV's own decoders yield one view each and draw at random as they go. Here one operation of ours does the work, in code
that is cached across processes (FFCV compiles its operations anew in each). FFCV's loader runs it ahead, on its thread.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from queue import Empty, Full
from typing import Any

import llvmlite.binding
import numpy as np
import torch
from numba import types

from pretrain.data.beton_format import JPEG, read_samples
from pretrain.data.beton_images import undecodable
from pretrain.data.draws import Integers
from pretrain.data.jit import kernel
from pretrain.data.libjpeg import import_ffcv
from pretrain.data.manifest import Manifest
from pretrain.data.plan import Plan
from pretrain.data.render import Rendered, Rendering, render_views
from results.command import UserError

_ffcv_loader = import_ffcv("ffcv.loader")
_EpochIterator: Any = import_ffcv("ffcv.loader.epoch_iterator").EpochIterator
_Operation: Any = import_ffcv("ffcv.pipeline.operation").Operation
_PipelineSpec: Any = import_ffcv("ffcv.pipeline").PipelineSpec
_Compiler: Any = import_ffcv("ffcv.pipeline.compiler").Compiler

AHEAD = 3
"""Batches that are prepared ahead."""

# libffcv's decoder as an external symbol: with a pointer from ctypes, numba could not cache the kernel.
llvmlite.binding.load_library_permanently(import_ffcv("ffcv._libffcv").__file__)
_u32 = types.uint32
_imdecode = types.ExternalFunction(
    "imdecode",
    types.int32(types.uintp, types.uint64, _u32, _u32, types.uintp, *[_u32] * 6, types.boolean, types.boolean),
)


class FfcvSource:
    """Renders the images of a split of a dataset from its beton."""

    def __init__(self, manifest: Manifest, split: str, plan: Plan, workers: int) -> None:
        self.manifest, self.split, self.plan, self.workers = manifest, split, plan, workers
        self.samples = read_samples(manifest.beton(split))
        self.label = self.samples.label
        self._loaders: dict[int, _Loader] = {}

    def stream(self, batches: Sequence[Integers], epoch: int) -> Iterator[Rendered]:
        """The batches (all of one size but the last), rendered ahead; closing the generator stops that."""
        if not batches:
            return
        size = len(batches[0])
        if size not in self._loaders:
            self._loaders[size] = _Loader(self, size)
        running = self._loaders[size].start(np.concatenate(batches), epoch)
        try:
            yield from running
        finally:
            running.close()

    def render(self, index: Integers, epoch: int, file: Any) -> Rendered:
        """The views of the images `index`; `file` is the beton's bytes."""
        samples, plan = self.samples, self.plan
        height, width = samples.height[index], samples.width[index]
        table = plan.table(epoch, index, height, width)
        rendering = Rendering(plan, index, samples.label[index], table, self.workers)
        canvas, coloured = rendering.canvas, plan.placement == "loader"
        place, size, raw = samples.place[index], samples.size[index], samples.mode[index] != JPEG

        def chunk(first: int, last: int) -> None:
            failed = _render_chunk(
                file, place, size, raw, height, width, table, plan.sizes, plan.cubic, coloured, canvas.pixels, canvas.offsets, first, last
            )
            if failed >= 0:
                raise UserError(undecodable(self.manifest, self.split, int(index[failed])))

        return rendering.start(chunk).result()


class _Views(_Operation):
    """FFCV's operation: from indices of images to a rendered batch."""

    def __init__(self, source: FfcvSource) -> None:
        super().__init__()
        self.source, self.epoch = source, 0

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, None]:
        return replace(previous_state, jit_mode=True), None  # a batch brings its own memory

    def generate_code(self) -> Any:
        def render(batch_indices: Any, memory: None, metadata: Any, storage_state: Any) -> Rendered:
            return self.source.render(batch_indices, self.epoch, np.asarray(storage_state[0]))

        return render


class _Loader(_ffcv_loader.Loader):  # type: ignore[name-defined, misc]
    """FFCV's loader with one output, our rendered batches, in an order that is given for each epoch."""

    def __init__(self, source: FfcvSource, batch: int) -> None:
        self.views = _Views(source)
        pipelines = {"image": _PipelineSpec("image", decoder=self.views), "label": None}
        threads = torch.get_num_threads()
        _Compiler.set_enabled(False)  # our operation is compiled already
        try:
            super().__init__(
                str(source.samples.path),
                batch,
                num_workers=1,
                os_cache=True,  # the file is mapped; without, a random order would want all of it in memory
                pipelines=pipelines,
                drop_last=False,
                batches_ahead=AHEAD,
                seed=0,
            )
        finally:
            _Compiler.set_enabled(True)
            torch.set_num_threads(threads)

    def start(self, order: Integers, epoch: int) -> "_Epoch":
        self.views.epoch = epoch
        return _Epoch(self, order)


class _Epoch(_EpochIterator):
    """FFCV's thread, made to hand its exceptions on (it would leave its reader waiting) and to end when it is closed."""

    def run(self) -> None:
        try:
            for number, index in enumerate(self.iter_ixes):
                if not self._hand_over(self.run_pipeline(number, index, 0, None)[0]):
                    return
            self._hand_over(None)
        except BaseException as error:
            self._hand_over(error)

    def _hand_over(self, item: Any) -> bool:
        """Puts `item` into the queue; False where nobody waits any more."""
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def __next__(self) -> Rendered:
        item = self.output_queue.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        self.terminate_event.set()
        if threading.current_thread() is not self:
            self.join()
        while True:
            try:
                self.output_queue.get_nowait()
            except Empty:
                break
        super().close()


@kernel
def _render_chunk(
    file: Any,
    place: Any,
    size: Any,
    raw: Any,
    height: Any,
    width: Any,
    table: Any,
    sizes: Any,
    cubic: Any,
    coloured: bool,
    pixels: Any,
    offsets: Any,
    first: int,
    last: int,
) -> int:
    """Renders images first..last - 1 of a batch; returns the number of the first that does not decode, or -1."""
    largest = 0
    for number in range(first, last):
        largest = max(largest, height[number] * width[number])
    decoded = np.empty(3 * largest, np.uint8)
    for number in range(first, last):
        h, w = height[number], width[number]
        data = file[place[number] : place[number] + size[number]]
        if raw[number]:
            decoded[: 3 * h * w] = data
        elif _imdecode(data.ctypes.data, size[number], h, w, decoded.ctypes.data, h, w, 0, 0, 1, 1, False, False) != 0:
            return number
        image = decoded[: 3 * h * w].reshape(h, w, 3)
        render_views(image, table[number], sizes, cubic, coloured, pixels, offsets, number)
    return -1


