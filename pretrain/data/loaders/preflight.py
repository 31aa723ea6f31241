"""A look ahead: whether this machine can feed a recipe, how its data will be read, and how many images/s to expect."""

import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.data.betons.manifest import Manifest, read_manifest
from pretrain.data.loaders.host import Machine
from pretrain.data.views.random_parameters import BLOCK

if TYPE_CHECKING:
    from pretrain.data.loaders.build import ViewLoader
    from pretrain.recipe import Recipe

MEASURED = 64
"""Images on which the prediction rests."""
SHARE_OF_MEMORY = 0.8
"""A file counts as one that memory holds if it takes at most so much of what is free."""


@dataclass(frozen=True)
class Preflight:
    loader: str
    file_bytes: int
    """Of the training split's beton; what loader=device keeps on its device; 0 for a folder of images."""
    machine: Machine
    workers: int
    processes: int
    """Of this run on this machine."""
    images_per_s: float
    """That this process's loader can be expected to give, alone: measured on MEASURED images."""
    choice: str
    """How the data will be read."""
    advice: tuple[str, ...]
    """What its user might change."""

    @property
    def text(self) -> str:
        """For the user, a line and one for each advice."""
        machine = self.machine
        line = (
            f"data: {self.file_bytes / 1e9:.2f} GB on {machine.filesystem}, {machine.memory / 1e9:.1f} GB of memory "
            f"free: {self.choice}; {self.workers} workers on {machine.cores} cores: about {self.images_per_s:,.0f} "
            "images/s from the loader"
        )
        return "\n".join([line, *(f"data: {advice}" for advice in self.advice)])

    @property
    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {**asdict(self), "images_per_s": round(self.images_per_s, 1)}


def look_ahead(recipe: "Recipe", loader: "ViewLoader | None" = None) -> Preflight:
    """Looks at the file and the machine, and renders a few images to see how long they take.

    Args:
        loader: the recipe's, if it is there already.
    Raises:
        UserError: the dataset is not there as the loader needs it.
    """
    from pretrain.data.loaders.build import make_loader

    manifest = read_manifest(recipe.data.dataset)
    made: Any = loader or make_loader(recipe, manifest)
    size = _bytes_read(recipe.data.loader, manifest, made)
    path = manifest.folder / manifest.split("train").beton
    machine, count = Machine.here(path if path.exists() else manifest.folder), len(made.source.label)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    workers, window = recipe.machine.workers, recipe.data.shuffle_window
    advice = [
        *_advice_on_order(size, machine, count, window, recipe.batch),
        *_advice_on_workers(workers, machine.cores // processes, recipe.device != "cpu"),
    ]
    choice = reading(recipe.data.loader, size, machine, window)
    rate = _images_per_s(made, count)
    return Preflight(recipe.data.loader, size, machine, workers, processes, rate, choice, tuple(advice))


def reading(loader: str, size: int, machine: Machine, window: int | None) -> str:
    """How `size` bytes will be read."""
    if loader == "device":
        return "kept on the training's device"
    if loader == "folder":
        return "a folder of files, opened one by one"
    if machine.in_memory:
        return "in memory already, mapped"
    if fits(size, machine):
        source = "over the network " if machine.over_network else ""
        return f"mapped; memory keeps it after the first epoch has read it {source}once"
    if window is None:
        return "mapped, but larger than memory: each epoch reads it anew, image by image in random order"
    return f"mapped, larger than memory: each epoch reads it once, in blocks, shuffled among {window:,} images"


def fits(size: int, machine: Machine) -> bool:
    return machine.in_memory or size <= SHARE_OF_MEMORY * machine.memory


def _advice_on_order(size: int, machine: Machine, count: int, window: int | None, batch: int) -> list[str]:
    if fits(size, machine):
        return []
    affordable = int(count * SHARE_OF_MEMORY * machine.memory / size / 2) // BLOCK * BLOCK
    if window is not None and window <= affordable:
        return []
    if affordable < batch:
        return [f"not even a batch of {batch} images fits into memory with the blocks that it is read from"]
    had = "random order reads" if window is None else f"data.shuffle_window={window} reads"
    return [f"{had} more than memory holds; data.shuffle_window={affordable} would read blocks of {BLOCK} in one go"]


def _advice_on_workers(workers: int, cores: int, waits_for_nothing: bool) -> list[str]:
    """`cores`: for this process. On a CPU the network computes on them, too, and more workers take them from it."""
    if workers > max(1, cores):
        return [f"machine.workers={workers} are more than the {cores} cores of this process"]
    if waits_for_nothing and workers < cores:
        return [f"machine.workers={cores} would use all cores of this process"]
    return []


def _bytes_read(kind: str, manifest: Manifest, loader: Any) -> int:
    if kind == "device":
        return int(loader.source.images.nbytes)
    return manifest.beton("train").stat().st_size if kind == "ffcv" else 0


def _images_per_s(loader: Any, count: int) -> float:
    """Of the source's own rendering, on images from all over the file, after one that loads the kernels."""
    index = np.unique(np.linspace(0, count - 1, min(MEASURED, count)).astype(np.int64))
    list(loader.source.stream([index[:1]], 0))
    began = time.perf_counter()
    for rendered in loader.source.stream([index], 0):
        rendered.batch.views[-1].cpu()  # where they are made on a device: waits until they are
    return len(index) / max(time.perf_counter() - began, 1e-9)
