"""Loaders: batches of V uint8 views of each image.

Every random draw is a pure function of (seed, epoch, image index, view), so the pixels of an image in an epoch do not
depend on batch size, workers, ranks, order, or on where a run was resumed. Three loaders keep this one contract: `ffcv`
decodes a JPEG of a beton once for all its views, `folder` reads an ImageFolder, `device` keeps a small set on the
accelerator. Bits are equal within one loader and placement; across them the draws are equal and the pixels agree
within a tolerance (see `tests/pretrain/data/test_loaders.py`).
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pretrain.data.batch import Batch
from pretrain.data.loaders.placement import placement_of
from whitebench.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pretrain.data.betons.manifest import Manifest
    from pretrain.data.loaders.order import SequentialOrder, ShuffledOrder, ShuffledPart
    from pretrain.data.views.view_sets import Interpolation, ViewSet
    from pretrain.recipe import Recipe
    from pretrain.recipe_sections import Data


class Renderer(Protocol):
    """Renders the views of the images of a split."""

    label: "NDArray[np.int64]"
    """Of all images, [N]."""
    views: "ViewSet"

    def batches(self, indices: "Sequence[NDArray[np.int64]]", epoch: int) -> Generator[Batch, None, None]:
        """A batch for each array of dataset indices; works ahead until the generator is closed."""
        ...


class Loader:
    """Views of images in an order, on a device."""

    def __init__(
        self, renderer: Renderer, order: "ShuffledOrder | ShuffledPart | SequentialOrder", device: str
    ) -> None:
        self.renderer, self.order, self.device = renderer, order, device
        self.batches_per_epoch = order.batches_per_epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on: a generator; closing it early stops all work ahead."""
        with closing(self.renderer.batches(self.order.batches(epoch)[start:], epoch)) as batches:
            for batch in batches:
                yield self._on_accelerator(batch)

    def _on_accelerator(self, batch: Batch) -> Batch:
        """The batch; moved and coloured where colour augmentation is placed on the accelerator."""
        views = self.renderer.views
        if views.placement == "loader" or views.before_crop:
            return replace(batch, parameters=None)
        from pretrain.data.views.colour_batched import recolour

        assert batch.parameters is not None
        coloured = [
            recolour(view.to(self.device, non_blocking=True), batch.parameters[:, number])
            for number, view in enumerate(batch.views)
        ]
        return Batch(coloured, batch.index, batch.label)


def make_loader(
    recipe: "Recipe", manifest: "Manifest", rank: int = 0, world_size: int = 1, device: str = "cpu"
) -> Loader:
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
) -> Loader:
    """Augmented views of a split in random order; `batch` images over all processes, the last incomplete batch dropped.

    Args:
        indices: only these images; then an incomplete last batch counts, see `ShuffledPart`.
    Raises:
        UserError: the dataset lacks what the loader needs, or has fewer images than a batch; no workers.
    """
    from pretrain.data.loaders.order import ShuffledOrder, ShuffledPart
    from pretrain.data.views.view_sets import TrainingViews

    views = TrainingViews(data.views, data.colour, seed, placement_of(data, device.partition(":")[0]))
    renderer = _renderer(data.loader, manifest, split, views, workers, device)
    if indices is not None:
        return Loader(renderer, ShuffledPart(seed, indices, batch, rank, world_size), device)
    order = ShuffledOrder(seed, len(renderer.label), batch, rank, world_size, data.shuffle_window)
    return Loader(renderer, order, device)


def evaluation_batches(
    manifest: "Manifest",
    split: str,
    resize: int,
    crop: int,
    batch: int,
    workers: int = 1,
    loader: Literal["ffcv", "folder", "device"] = "ffcv",
    indices: "Sequence[int] | NDArray[np.int64] | None" = None,
    interpolation: "Interpolation" = "bilinear",
) -> Iterator[Batch]:
    """Images in the order of the dataset (or of `indices`), each as one view; the last batch may be smaller.

    The shorter side is resized to `resize` (antialiased) and the centre cut out, as torchvision's Resize and CenterCrop
    do it.
    """
    import numpy as np

    from pretrain.data.betons.libjpeg import has_ffcv
    from pretrain.data.loaders.order import SequentialOrder
    from pretrain.data.views.view_sets import EvaluationView

    if loader == "device":
        loader = "ffcv" if has_ffcv() else "folder"
    renderer = _renderer(loader, manifest, split, EvaluationView(resize, crop, interpolation), workers, "cpu")
    index = np.arange(len(renderer.label)) if indices is None else np.asarray(indices, np.int64)
    return Loader(renderer, SequentialOrder(index, batch), "cpu").epoch(0)


def _renderer(kind: str, manifest: "Manifest", split: str, views: Any, workers: int, device: str) -> Renderer:
    """Imports only what the loader needs: FFCV may not be installed."""
    if workers < 1:
        raise UserError(f"workers: {workers} threads; at least 1 is needed (the views are rendered by them)")
    if kind == "ffcv":
        from pretrain.data.loaders.ffcv import BetonRenderer

        return BetonRenderer(manifest, split, views, workers)
    if kind == "folder":
        from pretrain.data.loaders.folder import FolderRenderer

        return FolderRenderer(manifest, split, views, workers)
    from pretrain.data.loaders.device import DeviceRenderer

    return DeviceRenderer(manifest, split, views, workers, device)
