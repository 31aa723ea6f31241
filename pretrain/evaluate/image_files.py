"""Features of image files that are in no dataset of this suite: VOC's, retrieval and robustness sets."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretrain.data.betons.images import EXTENSIONS
from pretrain.evaluate.ranks import gather_rows, own_share
from whitebench.errors import UserError, nearest
from whitebench.records import data_root

if TYPE_CHECKING:
    from pretrain.evaluate.features import FrozenEncoder
    from pretrain.evaluate.target import Target

T = TypeVar("T")
Box = tuple[float, float, float, float]
BATCH = 64


def find_folder(name: str) -> Path:
    """The folder of a set: below $WHITEBENCH_DATA, or a path of its own.

    Raises:
        UserError: there is none; the nearest names are given.
    """
    for folder in (data_root() / name, Path(name)):
        if folder.is_dir():
            return folder
    names = [path.name for path in data_root().iterdir() if path.is_dir()] if data_root().is_dir() else []
    raise UserError(f"no folder '{name}' in {data_root()}{nearest(name, names)}")


def is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file() and not path.name.startswith(".")


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The images of each folder in `folder`, sorted; folders without images are left out."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    images = {path.name: sorted(filter(is_image, path.iterdir())) for path in folders}
    return {name: paths for name, paths in images.items() if paths}


def encode(
    frozen: "FrozenEncoder",
    items: Sequence[T],
    prepare: Callable[[T], Tensor],
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Features of all items [N, F], on every process; each encodes its share.

    Args:
        prepare: an item (a file, say) to its view, uint8 [3, S, S].
        embed: instead of `frozen`, uint8 [1, 3, H, W] to features [1, F]; views then may differ in size.
    Raises:
        UserError: an image does not decode, or features are not finite.
    """
    own = items[own_share(len(items))]
    forward, size = (frozen, BATCH) if embed is None else (embed, 1)
    parts = [forward(torch.stack(views)) for views in _batches(own, prepare, frozen.options.workers, size)]
    if not parts:  # fewer images than processes
        side = frozen.target.crop
        parts = [forward(torch.zeros(1, 3, side, side, dtype=torch.uint8))[:0]]
    features = gather_rows(torch.cat(parts).float())
    if not bool(features.isfinite().all()):
        raise UserError("features are not finite: the network overflows in float32, and has no accuracy")
    return features


def centre_crop(path: Path, target: "Target") -> Tensor:
    """The view that every evaluation of a dataset has: the short side resized, the centre cut out; uint8 [3, S, S]."""
    from torchvision.transforms.v2 import functional as F

    view: Tensor = F.center_crop(F.resize(read_image(path), [target.resize], antialias=True), [target.crop])
    return view


def squeezed(path: Path, target: "Target", box: Box | None = None) -> Tensor:
    """A square view of the whole image, or of its box (left, top, right, bottom; pixels): uint8 [3, S, S]."""
    from torchvision.transforms.v2 import functional as F

    view: Tensor = F.resize(read_image(path, box), [target.crop, target.crop], antialias=True)
    return view


def read_image(path: Path, box: Box | None = None) -> Tensor:
    """uint8 [3, H, W]."""
    with open_image(path) as picture:
        rgb = picture.convert("RGB")
        return torch.from_numpy(np.array(rgb if box is None else rgb.crop(within(box, rgb.size)))).permute(2, 0, 1)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image by Pillow.

    Raises:
        UserError: it does not decode, also while it is used.
    """
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: does not decode ({error})") from error


def within(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box in whole pixels, inside the image and not empty."""
    left, top = (min(max(0, int(value)), side - 1) for value, side in zip(box[:2], size, strict=True))
    right, bottom = (min(round(value), side) for value, side in zip(box[2:], size, strict=True))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _batches(items: Sequence[T], prepare: Callable[[T], Tensor], workers: int, size: int) -> Iterator[list[Tensor]]:
    """Views in batches of `size`, some read ahead."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[list[Future[Tensor]]] = deque()
        for start in range(0, len(items), size):
            pending.append([pool.submit(prepare, item) for item in items[start : start + size]])
            if len(pending) > 2:
                yield [view.result() for view in pending.popleft()]
        while pending:
            yield [view.result() for view in pending.popleft()]
