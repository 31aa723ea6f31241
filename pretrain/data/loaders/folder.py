"""Views from an ImageFolder, decoded by Pillow, with the same draws and kernels: where FFCV is not installed."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pretrain.data.batch import Batch
from pretrain.data.betons.format import read_samples
from pretrain.data.betons.images import BadImage, decode, size_of
from pretrain.data.betons.manifest import Manifest
from pretrain.data.betons.read import BetonImages
from pretrain.data.views.random_parameters import Integers
from pretrain.data.views.render import AHEAD, PendingBatch, ViewBuffers, pool, render_views, start_batch
from pretrain.data.views.view_sets import ViewSet
from whitebench.errors import UserError

T = TypeVar("T")


class FolderRenderer:
    """Renders the images of a split of a dataset from the files it was made from."""

    def __init__(self, manifest: Manifest, split: str, views: ViewSet, workers: int) -> None:
        self.images = open_images(manifest, split)
        self.label = self.images.label
        self.views, self.workers = views, workers

    def batches(self, indices: Sequence[Integers], epoch: int) -> Generator[Batch, None, None]:
        """The batches, rendered ahead; closing the generator stops that."""
        pending: deque[PendingBatch] = deque()
        remaining = iter(indices)
        try:
            for _ in indices:
                while len(pending) <= AHEAD and (index := next(remaining, None)) is not None:
                    pending.append(self._start(index, epoch))
                yield pending.popleft().result()
        finally:
            for batch in pending:
                batch.cancel()

    def _start(self, index: Integers, epoch: int) -> PendingBatch:
        images = self.images
        sides = np.array(list(pool(self.workers).map(images.sides, index.tolist())), np.int64)
        table = self.views.table(epoch, index, sides[:, 0], sides[:, 1])

        def render(buffers: ViewBuffers, first: int, last: int) -> None:
            for number in range(first, last):
                image = images.pixels(int(index[number]))
                if image.shape[:2] != tuple(sides[number]):
                    raise UserError(f"{images.name(int(index[number]))}: changed while it was read")
                render_views(image, buffers, number)

        return start_batch(self.views, index, self.label[index], table, self.workers, render)


class ImageFiles:
    """The files of a split, in its order: in the dataset's own folder, or in the one that it was made from."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        self.files = _files_of(manifest, split)
        self.label = read_samples(manifest.beton(split)).label
        self._max_side = manifest.max_side
        self._sides: dict[int, tuple[int, int]] = {}

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Image `index`, [H, W, 3]."""
        return self._decoded(index, decode)

    def sides(self, index: int) -> tuple[int, int]:
        """Height and width, from the file's header; remembered."""
        if index not in self._sides:
            self._sides[index] = self._decoded(index, size_of)
        return self._sides[index]

    def name(self, index: int) -> str:
        """How a message names image `index`."""
        return str(self.files[index])

    def _decoded(self, index: int, function: Callable[[bytes, int | None], T]) -> T:
        try:
            return function(_read(self.files[index]), self._max_side)
        except BadImage as error:
            raise UserError(f"{self.files[index]}: image {index} does not decode ({error})") from error


def open_images(manifest: Manifest, split: str) -> ImageFiles | BetonImages:
    """The images of a split by Pillow: its files, or, of a dataset that comes from an archive, those of its beton."""
    if manifest.source_splits:
        return ImageFiles(manifest, split)
    return BetonImages(manifest, split, exact=True)


def _files_of(manifest: Manifest, split: str) -> list[Path]:
    names = manifest.file_names(split)
    folders = [manifest.folder / split, Path(manifest.source) / manifest.source_splits.get(split, split)]
    inside = [name.partition("/")[2] for name in names]  # where labels come from a file, no folder bears the class
    for folder in folders:
        for paths in (names, inside):
            if (folder / paths[0]).is_file():
                return [folder / path for path in paths]
    raise UserError(
        f"the images of '{manifest.dataset}' are neither in {folders[0]} nor in {folders[1]}; "
        "put them there, or use data.loader=ffcv"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
