"""Views from a beton through FFCV: each JPEG is decoded once, and all its views are cut from it.

FFCV's own decoders yield one view each and draw random numbers while decoding. Here one custom operation does both, in
code that is cached across processes (FFCV compiles its operations in each of them). FFCV's loader runs it ahead, on its
thread.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from queue import Empty, Full
from typing import Any, cast

import llvmlite.binding
import numpy as np
import torch
from numba import types
from numpy.typing import NDArray

from pretrain.data.batch import Batch
from pretrain.data.betons.format import JPEG, check_length, read_samples
from pretrain.data.betons.libjpeg import import_ffcv
from pretrain.data.betons.manifest import Manifest
from pretrain.data.betons.read import BetonImages
from pretrain.data.views.jit import inner, kernel
from pretrain.data.views.random_parameters import Integers
from pretrain.data.views.render import AHEAD, PendingBatch, ViewBuffers, render_views, start_batch
from pretrain.data.views.view_sets import ViewSet

_ffcv_loader = import_ffcv("ffcv.loader.loader")
_os_cache = import_ffcv("ffcv.memory_managers.os_cache")
_EpochIterator: Any = import_ffcv("ffcv.loader.epoch_iterator").EpochIterator
_Operation: Any = import_ffcv("ffcv.pipeline.operation").Operation
_PipelineSpec: Any = import_ffcv("ffcv.pipeline").PipelineSpec
_Compiler: Any = import_ffcv("ffcv.pipeline.compiler").Compiler

# libffcv's decoder as an external symbol: with a pointer from ctypes, numba could not cache the kernel.
llvmlite.binding.load_library_permanently(import_ffcv("ffcv._libffcv").__file__)
_types: Any = types
_unsigned = _types.uint32
_imdecode: Any = _types.ExternalFunction(
    "imdecode",
    _types.int32(
        _types.uintp, _types.uint64, *[_unsigned] * 2, _types.uintp, *[_unsigned] * 6, _types.boolean, _types.boolean
    ),
)


class BetonRenderer:
    """Renders the images of a split of a dataset from its beton."""

    def __init__(self, manifest: Manifest, split: str, views: ViewSet, workers: int) -> None:
        self.manifest, self.split, self.views, self.workers = manifest, split, views, workers
        self.samples = read_samples(manifest.beton(split))
        self.label = self.samples.label
        self._loaders: dict[int, _Loader] = {}

    def batches(self, indices: Sequence[Integers], epoch: int) -> Generator[Batch, None, None]:
        """The batches (all of one size but the last), rendered ahead; closing the generator stops that."""
        if not indices:
            return
        check_length(self.samples.path)  # a mapped file that was truncated meanwhile would end the process
        size = len(indices[0])
        if size not in self._loaders:
            self._loaders[size] = _Loader(self, size)
        running = _Epoch(self._loaders[size], np.concatenate(indices), epoch)
        try:
            yield from running
        finally:
            running.close()

    def start(self, index: Integers, epoch: int, file: NDArray[np.uint8]) -> PendingBatch:
        """Starts to render the views of the images `index`; `file` is the beton's bytes."""
        samples = self.samples
        table = self.views.table(epoch, index, samples.height[index], samples.width[index])

        def render(buffers: ViewBuffers, first: int, last: int) -> None:
            columns = (samples.offset, samples.size, samples.mode, samples.height, samples.width)
            while (failed := _render(file, *columns, index, buffers, first, last)) >= 0:
                render_views(BetonImages(self.manifest, self.split).pixels(int(index[failed])), buffers, failed)
                first = failed + 1

        return start_batch(self.views, index, samples.label[index], table, self.workers, render)


class _RenderOperation(_Operation):
    """FFCV's operation: from the indices of images to a pending batch."""

    def __init__(self, renderer: BetonRenderer) -> None:
        super().__init__()
        self.renderer = renderer

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, None]:
        return replace(previous_state, jit_mode=True), None  # a batch brings its own memory

    def generate_code(self) -> Any:
        def start(batch_indices: Any, memory: None, metadata: Any, storage_state: Any) -> PendingBatch:
            file, epoch = storage_state
            return self.renderer.start(batch_indices, epoch, file)

        return start


class _MappedFile(_os_cache.OSCacheManager):  # type: ignore[name-defined]
    """FFCV's access to a mapped file without its tables in Python, which take 5 s and 0.8 GB for ImageNet."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.context = reader, _os_cache.OSCacheContext(self)
        self.ptrs = self.sizes = None


@contextmanager
def _lean_ffcv() -> Iterator[None]:
    """While a loader is made: nothing is compiled (our operation is already), no tables, torch's threads stay."""
    manager, threads = _ffcv_loader.OSCacheManager, torch.get_num_threads()
    _ffcv_loader.OSCacheManager = _MappedFile
    _Compiler.set_enabled(False)
    try:
        yield
    finally:
        _ffcv_loader.OSCacheManager = manager
        _Compiler.set_enabled(True)
        torch.set_num_threads(threads)


class _Loader(_ffcv_loader.Loader):  # type: ignore[name-defined]
    """FFCV's loader with one output, our rendered batches, in an order passed in for each epoch."""

    def __init__(self, renderer: BetonRenderer, batch: int) -> None:
        with _lean_ffcv():
            super().__init__(
                str(renderer.samples.path),
                batch,
                num_workers=1,
                os_cache=True,  # the file is mapped; without, a random order would want all of it in memory
                pipelines={"image": _PipelineSpec("image", decoder=_RenderOperation(renderer)), "label": None},
                drop_last=False,
                batches_ahead=AHEAD,
                seed=0,
            )


class _Epoch(_EpochIterator):
    """FFCV's thread, made to hand its exceptions on (its reader would wait for ever) and to end when it is closed."""

    def __init__(self, loader: _Loader, order: Integers, epoch: int) -> None:
        self.epoch = epoch
        super().__init__(loader, order)  # starts the thread

    def run(self) -> None:
        """Starts a batch before the one ahead of it is done, so that no thread of the pool idles at a batch's end."""
        pending: deque[PendingBatch] = deque()
        try:
            file, *_ = self.memory_context.state
            self.storage_state = np.asarray(file), self.epoch
            for number, index in enumerate(self.iter_ixes):
                pending.append(self.run_pipeline(number, index, 0, None)[0])
                if len(pending) > 1 and not self._hand_over(pending.popleft().result()):
                    return
            while pending:
                if not self._hand_over(pending.popleft().result()):
                    return
            self._hand_over(None)
        except BaseException as error:
            self._hand_over(error)
        finally:
            for batch in pending:
                batch.cancel()

    def _hand_over(self, item: Any) -> bool:
        """Puts `item` into the queue; False once the iterator has been closed."""
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def __next__(self) -> Batch:
        item = self.output_queue.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return cast(Batch, item)

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
def _render(
    file: Any,
    offset: Any,
    size: Any,
    mode: Any,
    height: Any,
    width: Any,
    index: Any,
    buffers: Any,
    first: int,
    last: int,
) -> int:
    """Renders the images first..last - 1 of a batch.

    Args:
        file: the beton's bytes; offset, size, mode, height, width: of all its samples, see `Samples`.
        index: dataset indices of the batch's images.
    Returns:
        The position in the batch of the first image that does not decode, or -1.
    """
    largest = 0
    for number in range(first, last):
        largest = max(largest, 3 * height[index[number]] * width[index[number]])
    pixels = np.empty(largest, np.uint8)
    for number in range(first, last):
        sample = index[number]
        rows, columns = height[sample], width[sample]
        data = file[offset[sample] : offset[sample] + size[sample]]
        if mode[sample] != JPEG:
            for i in range(len(data)):
                pixels[i] = data[i]
        elif _decode_jpeg(data.ctypes.data, len(data), rows, columns, pixels.ctypes.data):
            return number
        render_views(pixels[: 3 * rows * columns].reshape(rows, columns, 3), buffers, number)
    return -1


@inner
def _decode_jpeg(data: int, size: int, height: int, width: int, pixels: int) -> bool:
    """Decodes `size` bytes into 3 * height * width ones (addresses); False on success."""
    return _imdecode(data, size, height, width, pixels, height, width, 0, 0, 1, 1, False, False) != 0
