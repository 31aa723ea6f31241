"""Before a training: can this host feed the recipe, how will its data be read, how many images per second to expect."""

import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.data.betons.manifest import Manifest, read_manifest
from pretrain.data.loaders.host import Host
from pretrain.data.views.random_parameters import BLOCK

if TYPE_CHECKING:
    from pretrain.data.loaders.build import Loader
    from pretrain.recipe import Recipe

MEASURED_IMAGES = 64
"""Images that are rendered to predict the rate."""
USABLE_MEMORY = 0.8
"""A file counts as cached by memory if it takes at most this share of what is free."""


@dataclass(frozen=True)
class Preflight:
    """What was predicted; stored in the run's record."""

    loader: str
    file_bytes: int
    """Of the training split's beton; what loader=device keeps on its device; 0 for a folder of images."""
    host: Host
    workers: int
    processes: int
    """Of this run on this host."""
    images_per_s: float
    """Expected from this process's loader alone: measured on MEASURED_IMAGES images."""
    reading: str
    """How the data will be read."""
    decoder: str
    """How JPEGs are decoded; the decoders' pixels differ."""
    advice: tuple[str, ...]
    """What the user might change."""

    @property
    def text(self) -> str:
        """For the user: one line, and one for each advice."""
        host = self.host
        line = (
            f"data: {self.file_bytes / 1e9:.2f} GB on {host.filesystem}, {host.memory / 1e9:.1f} GB of memory free: "
            f"{self.reading}; {self.workers} workers on {host.cores} cores: about {self.images_per_s:,.0f} images/s "
            "from the loader"
        )
        return "\n".join([line, *(f"data: {advice}" for advice in self.advice)])

    @property
    def record(self) -> dict[str, Any]:
        """The fields as JSON."""
        return {**asdict(self), "images_per_s": round(self.images_per_s, 1)}


def run_preflight(recipe: "Recipe", loader: "Loader | None" = None) -> Preflight:
    """Looks at the file and the host, and renders a few images to see how long they take.

    Args:
        loader: the recipe's, if it has been made already.
    Raises:
        UserError: the dataset lacks what the loader needs.
    """
    from pretrain.data.loaders.build import make_loader

    manifest = read_manifest(recipe.data.dataset)
    data_loader = loader or make_loader(recipe, manifest)
    size = _bytes_read(recipe.data.loader, manifest, data_loader)
    path = manifest.folder / manifest.split("train").beton
    host, count = Host.of(path if path.exists() else manifest.folder), len(data_loader.renderer.label)
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    workers, window = recipe.machine.workers, recipe.data.shuffle_window
    advice = [
        *_advice_on_order(size, host, count, window, recipe.batch),
        *_advice_on_workers(workers, host.cores // processes, on_accelerator=recipe.device != "cpu"),
    ]
    return Preflight(
        loader=recipe.data.loader,
        file_bytes=size,
        host=host,
        workers=workers,
        processes=processes,
        images_per_s=_images_per_s(data_loader, count),
        reading=reading(recipe.data.loader, size, host, window),
        decoder=decoder_of(recipe.data.loader, manifest),
        advice=tuple(advice),
    )


def decoder_of(loader: str, manifest: Manifest) -> str:
    """Which decoder makes an image's pixels; FFCV's fast transform is about 1 level off the exact one."""
    from pretrain.data.betons.libjpeg import has_ffcv

    if manifest.raw:
        return "none: raw pixels"
    if loader == "folder" or not has_ffcv():
        return "Pillow (libjpeg-turbo, exact DCT)"
    return "FFCV (libjpeg-turbo, fast DCT)"


def reading(loader: str, size: int, host: Host, window: int | None) -> str:
    """How `size` bytes will be read."""
    if loader == "device":
        return "kept on the training's device"
    if loader == "folder":
        return "a folder of files, opened one by one"
    if host.in_memory:
        return "in memory already, mapped"
    if fits(size, host):
        source = "over the network " if host.over_network else ""
        return f"mapped; memory keeps it after the first epoch has read it {source}once"
    if window is None:
        return "mapped, but larger than memory: each epoch reads it again, image by image in random order"
    return f"mapped, larger than memory: each epoch reads it once, in blocks, shuffled among {window:,} images"


def fits(size: int, host: Host) -> bool:
    """Whether memory can keep a file of `size` bytes."""
    return host.in_memory or size <= USABLE_MEMORY * host.memory


def _advice_on_order(size: int, host: Host, count: int, window: int | None, batch: int) -> list[str]:
    if fits(size, host):
        return []
    affordable = int(count * USABLE_MEMORY * host.memory / size / 2) // BLOCK * BLOCK
    if window is not None and window <= affordable:
        return []
    if affordable < batch:
        return [f"not even a batch of {batch} images fits into memory with the blocks that it is read from"]
    current = "random order reads" if window is None else f"data.shuffle_window={window} reads"
    return [f"{current} more than memory holds; data.shuffle_window={affordable} would read blocks of {BLOCK} at once"]


def _advice_on_workers(workers: int, cores: int, on_accelerator: bool) -> list[str]:
    """`cores`: for this process. On a CPU the network computes on them, too, and more workers take them from it."""
    if workers > max(1, cores):
        return [f"machine.workers={workers} are more than the {cores} cores of this process"]
    if on_accelerator and workers < cores:
        return [f"machine.workers={cores} would use all cores of this process"]
    return []


def _bytes_read(kind: str, manifest: Manifest, loader: Any) -> int:
    if kind == "device":
        return int(loader.renderer.images.nbytes)
    return manifest.beton("train").stat().st_size if kind == "ffcv" else 0


def _images_per_s(loader: "Loader", count: int) -> float:
    """The renderer's own rate, on images from all over the file, after one that loads the kernels."""
    index = np.unique(np.linspace(0, count - 1, min(MEASURED_IMAGES, count)).astype(np.int64))
    list(loader.renderer.batches([index[:1]], 0))
    began = time.perf_counter()
    for batch in loader.renderer.batches([index], 0):
        batch.views[-1].cpu()  # where they are made on a device: waits until they are
    return len(index) / max(time.perf_counter() - began, 1e-9)
