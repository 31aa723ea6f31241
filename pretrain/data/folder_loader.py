"""Views from an ImageFolder, decoded by Pillow, through the same draws and kernels: for where FFCV is not installed."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pretrain.data.draws import Integers
from pretrain.data.images import BadImage, decode, size_of
from pretrain.data.manifest import Manifest
from pretrain.data.plan import Plan
from pretrain.data.render import Rendered, Rendering, pool, render_views
from results.command import UserError

AHEAD = 3
"""Batches that are prepared ahead."""


class FolderSource:
    """Renders the images of a split of a dataset from the files it was made from."""

    def __init__(self, manifest: Manifest, split: str, plan: Plan, workers: int) -> None:
        self.manifest, self.plan, self.workers = manifest, plan, workers
        self.files = split_files(manifest, split)
        numbers = {name: label for label, name in enumerate(manifest.classes)}
        self.label = np.array([numbers[name] for name in split_classes(manifest, split)], np.int64)
        self._sides: dict[int, tuple[int, int]] = {}

    def stream(self, batches: Sequence[Integers], epoch: int) -> Iterator[Rendered]:
        """The batches, rendered ahead; closing the generator stops that."""
        running: deque[Rendering] = deque()
        waiting = iter(batches)
        try:
            for _ in batches:
                while len(running) <= AHEAD and (index := next(waiting, None)) is not None:
                    running.append(self.begin(index, epoch))
                yield running.popleft().result()
        finally:
            for rendering in running:
                rendering.cancel()

    def begin(self, index: Integers, epoch: int) -> Rendering:
        """Starts to render the images `index`."""
        plan = self.plan
        sides = np.array(list(pool(self.workers).map(self._side, index.tolist())), np.int64)
        table = plan.table(epoch, index, sides[:, 0], sides[:, 1])
        rendering = Rendering(plan, index, self.label[index], table, self.workers)
        canvas, coloured = rendering.canvas, plan.placement == "loader"

        def chunk(first: int, last: int) -> None:
            for number in range(first, last):
                image = self.pixels(int(index[number]))
                if image.shape[:2] != tuple(sides[number]):
                    raise UserError(f"{self.files[index[number]]}: changed while it was read")
                render_views(
                    image, table[number], plan.sizes, plan.cubic, coloured, canvas.pixels, canvas.offsets, number
                )

        return rendering.start(chunk)

    def pixels(self, index: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        """Image `index`, uint8 [H, W, 3]."""
        try:
            return decode(_read(self.files[index]), self.manifest.max_side)
        except BadImage as error:
            raise UserError(f"{self.files[index]}: image {index} does not decode ({error})") from error

    def _side(self, index: int) -> tuple[int, int]:
        """Height and width; from the file's header, once."""
        if index not in self._sides:
            try:
                self._sides[index] = size_of(_read(self.files[index]), self.manifest.max_side)
            except BadImage as error:
                raise UserError(f"{self.files[index]}: image {index} does not decode ({error})") from error
        return self._sides[index]


def split_files(manifest: Manifest, split: str) -> list[Path]:
    """The files of a split in its order: in the dataset's own folder if its images are there, else where it came from.

    Raises:
        UserError: they are in neither place.
    """
    places = [manifest.folder / split, Path(manifest.source) / manifest.source_splits.get(split, split)]
    names = manifest.file_names(split)
    for place in places:
        if (place / names[0]).is_file():
            return [place / name for name in names]
    raise UserError(
        f"data.loader=folder: the images of '{manifest.dataset}' are neither in {places[0]} nor in {places[1]}; "
        "put them there, or use data.loader=ffcv"
    )


def split_classes(manifest: Manifest, split: str) -> list[str]:
    return [name.partition("/")[0] for name in manifest.file_names(split)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
