"""Views of images: betons, loaders and augmentation.

A loader yields batches of V uint8 views. Every random draw is a pure function of (seed, epoch, image index, view), so
the pixels of an image in an epoch do not depend on batch size, workers, ranks, order, or on where a run was resumed.
Three loaders keep this one contract: `ffcv` decodes a JPEG of a beton once for all its views, `folder` reads an
ImageFolder, `device` keeps a small set on the accelerator. Bits are equal within one loader and placement; across them
the draws are equal and the pixels agree within a tolerance (see `tests/pretrain/data/test_loaders.py`).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pretrain.data.batch import Batch
from pretrain.data.loaders.placement import placement_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pretrain.data.betons.manifest import Manifest
    from pretrain.recipe import Data, Recipe


class ViewLoader(Protocol):
    batches_per_epoch: int

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on: a generator; closing it early stops all work ahead."""
        ...


def make_loader(
    recipe: "Recipe", manifest: "Manifest", rank: int = 0, world_size: int = 1, device: str = "cpu"
) -> ViewLoader:
    """The training views of a recipe, for one of `world_size` processes.

    Args:
        device: where views go if they are coloured on the accelerator ("cuda", "cuda:1"); else they stay on the CPU.
    """
    return training_loader(
        recipe.data,
        manifest,
        seed=recipe.seed,
        batch=recipe.batch,
        rank=rank,
        world_size=world_size,
        workers=recipe.machine.workers,
        device=device,
    )


def training_loader(
    data: "Data",
    manifest: "Manifest",
    *,
    seed: int,
    batch: int,
    split: str = "train",
    rank: int = 0,
    world_size: int = 1,
    workers: int = 1,
    device: str = "cpu",
    indices: "NDArray[np.int64] | None" = None,
) -> ViewLoader:
    """Augmented views of a split in random order; `batch` images over all processes, the last incomplete batch dropped.

    Args:
        indices: only these images, for a single process; then an incomplete last batch counts, see `ShuffledPart`.
    Raises:
        UserError: the dataset is not there as the loader needs it, or has fewer images than a batch.
    """
    from pretrain.data.loaders.loader import Loader, ShuffledOrder, ShuffledPart
    from pretrain.data.views.view_sets import TrainingPlan

    plan = TrainingPlan(data.views, data.colour, seed, placement_of(data, device.partition(":")[0]))
    source = _source(data.loader, manifest, split, plan, workers, device)
    if indices is not None:
        return Loader(source, ShuffledPart(seed, indices, batch), device)
    order = ShuffledOrder(seed, len(source.label), batch, rank, world_size, data.shuffle_window)
    return Loader(source, order, device)


def evaluation_batches(
    manifest: "Manifest",
    split: str,
    resize: int,
    crop: int,
    batch: int,
    workers: int = 1,
    loader: Literal["ffcv", "folder", "device"] = "ffcv",
    indices: "Sequence[int] | NDArray[np.int64] | None" = None,
) -> Iterator[Batch]:
    """Images in the order of the dataset (or of `indices`), each as one view; the last batch may be smaller.

    The shorter side is resized to `resize` (bilinear, antialiased) and the centre cut out, as torchvision's
    Resize and CenterCrop do it.
    """
    import numpy as np

    from pretrain.data.betons.libjpeg import has_ffcv
    from pretrain.data.loaders.loader import Loader, PlainOrder
    from pretrain.data.views.view_sets import EvaluationPlan

    if loader == "device":
        loader = "ffcv" if has_ffcv() else "folder"
    source = _source(loader, manifest, split, EvaluationPlan(resize, crop), workers, "cpu")
    every = np.arange(len(source.label)) if indices is None else np.asarray(indices, np.int64)
    return Loader(source, PlainOrder(every, batch), "cpu").epoch(0)


def _source(kind: str, manifest: "Manifest", split: str, plan: Any, workers: int, device: str) -> Any:
    """What renders the views of a split: imports only what the loader needs."""
    if kind == "ffcv":
        from pretrain.data.loaders.ffcv import FfcvSource

        return FfcvSource(manifest, split, plan, workers)
    if kind == "folder":
        from pretrain.data.loaders.folder import FolderSource

        return FolderSource(manifest, split, plan, workers)
    from pretrain.data.loaders.device import DeviceSource

    return DeviceSource(manifest, split, plan, workers, device)
