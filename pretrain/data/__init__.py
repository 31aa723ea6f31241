"""Views of images: betons, loaders and augmentation.

A loader yields batches of V uint8 views. Every random draw is a pure function of (seed, epoch, image index, view), so
the pixels of an image in an epoch do not depend on batch size, workers, ranks, order, or on where a run was resumed.
Three loaders keep this one contract: `ffcv` decodes a JPEG of a beton once for all its views, `folder` reads an
ImageFolder, `device` keeps a small set on the accelerator. Bits are equal within one loader and placement; across them
the draws are equal and the pixels agree within a tolerance (see `tests/test_data_loaders.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from results.command import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pretrain.data.manifest import Manifest
    from pretrain.recipe import Data, Recipe

Placement = Literal["loader", "accelerator"]


@dataclass(frozen=True)
class RawBatch:
    """B images of one process. It owns its memory (pinned where there is a GPU)."""

    views: "list[torch.Tensor]"
    """V uint8 tensors [B, 3, S_v, S_v], channels last in memory."""
    index: "torch.Tensor"
    """int64 [B]: place in the dataset."""
    label: "torch.Tensor"
    """int64 [B]."""


class ViewLoader(Protocol):
    batches_per_epoch: int

    def epoch(self, epoch: int, start: int = 0) -> Iterator[RawBatch]:
        """The batches of an epoch from number `start` on: a generator; closing it early stops all work ahead."""
        ...


def placement_of(data: "Data", device: str) -> Placement:
    """Where photometric augmentation runs: chosen once per cell, and part of its identity.

    Left to us (auto), it is what was measured for these views (`python -m pretrain.data measure`), or else the loader.

    Args:
        device: "cpu" or "cuda"; on a CPU, `ffcv` and `folder` augment in the loader, whatever is asked for.
    """
    if data.loader == "device":
        if data.placement == "loader":
            raise UserError("data.placement: loader=device augments where its images are; use auto or accelerator")
        return "accelerator"
    if data.colour.before_crop:
        if data.placement == "accelerator":
            raise UserError("data.placement: colour.before_crop needs the loader (or loader=device)")
        return "loader"
    if device == "cpu" or data.placement == "loader":
        return "loader"
    if data.placement == "auto":
        from pretrain.data.placement import measured_placement

        return measured_placement(data) or "loader"
    return "accelerator"


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
    from pretrain.data.loader import Loader, ShuffledOrder, ShuffledPart
    from pretrain.data.plan import TrainingPlan

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
) -> Iterator[RawBatch]:
    """Images in the order of the dataset (or of `indices`), each as one view; the last batch may be smaller.

    The shorter side is resized to `resize` (bilinear, antialiased) and the centre cut out, as torchvision's
    Resize and CenterCrop do it.
    """
    import numpy as np

    from pretrain.data.libjpeg import has_ffcv
    from pretrain.data.loader import Loader, PlainOrder
    from pretrain.data.plan import EvaluationPlan

    if loader == "device":
        loader = "ffcv" if has_ffcv() else "folder"
    source = _source(loader, manifest, split, EvaluationPlan(resize, crop), workers, "cpu")
    every = np.arange(len(source.label)) if indices is None else np.asarray(indices, np.int64)
    return Loader(source, PlainOrder(every, batch), "cpu").epoch(0)


def _source(kind: str, manifest: "Manifest", split: str, plan: Any, workers: int, device: str) -> Any:
    """What renders the views of a split: imports only what the loader needs."""
    if kind == "ffcv":
        from pretrain.data.ffcv_loader import FfcvSource

        return FfcvSource(manifest, split, plan, workers)
    if kind == "folder":
        from pretrain.data.folder_loader import FolderSource

        return FolderSource(manifest, split, plan, workers)
    from pretrain.data.device_loader import DeviceSource

    return DeviceSource(manifest, split, plan, workers, device)
