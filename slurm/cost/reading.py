"""The input pipeline's share of a plan: processor time per image, and bytes that disks must deliver."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurm.cost.constants import constants
from slurm.cost.hardware import Hardware
from slurm.cost.quantity import Quantity
from whitebench.errors import UserError

if TYPE_CHECKING:
    from pretrain.data.betons.manifest import Manifest
    from pretrain.recipe import Recipe
    from pretrain.recipe_sections import Colour


@dataclass(frozen=True)
class Reading:
    """Of one image with all its views."""

    decode_ms: Quantity
    crop_ms: Quantity
    colour_ms: Quantity
    """0 where it runs on the accelerator."""
    kilobytes: float
    """In the file; 0 where the set lies on the accelerator."""

    @property
    def cpu_ms(self) -> Quantity:
        return self.decode_ms + self.crop_ms + self.colour_ms


@dataclass(frozen=True)
class Dataset:
    name: str
    train: int
    validation: int
    kilobytes: float
    """Per image."""
    is_known: bool
    """Whether its own file was looked at."""

    @property
    def gigabytes(self) -> float:
        return self.train * self.kilobytes / 1e6


def dataset_of(recipe: "Recipe", hardware: Hardware, images: int | None = None) -> Dataset:
    """Sizes of the recipe's dataset: of its files where they are here, else as published.

    Raises:
        UserError: it is neither here nor known, and `images` is not given.
    """
    from pretrain.data.betons.manifest import read_manifest

    name, kilobytes = recipe.data.dataset, float(constants().entry(f"reading.kilobytes.{hardware.written}"))
    try:
        manifest = read_manifest(name)
    except UserError:
        published = constants().entry("datasets.images")
        if images is None and name not in published:
            names = ", ".join(sorted(published))
            raise UserError(
                f"dataset '{name}': not in $WHITEBENCH_DATA, and its size is not known (known: {names}); give --images"
            ) from None
        validation = constants().entry("datasets.validation").get(name, 0)
        kilobytes = float(constants().entry("datasets.kilobytes").get(name, kilobytes))
        return Dataset(name, images or published.get(name, 0), validation, kilobytes, is_known=False)
    train = manifest.split("train").count if images is None else images
    validation = manifest.splits["val"].count if "val" in manifest.splits else 0
    return Dataset(name, train, validation, _kilobytes(manifest) or kilobytes, is_known=True)


def _kilobytes(manifest: "Manifest") -> float | None:
    path = manifest.folder / manifest.split("train").beton
    return path.stat().st_size / 1000 / manifest.split("train").count if path.is_file() else None


def reading_of(recipe: "Recipe", hardware: Hardware, dataset: Dataset) -> Reading:
    """By this project's own measurements of its loader."""
    nothing = Quantity.exact(0.0)
    if recipe.data.loader == "device":
        return Reading(nothing, nothing, nothing, 0.0)
    constant = constants()
    speed = constant("reading.cpu_speed")
    decode = constant(f"reading.decode_ms.{hardware.written}")
    if hardware.written != "raw":  # decoding takes as long as the file is large
        decode = decode * (dataset.kilobytes / float(constant.entry(f"reading.kilobytes.{hardware.written}")))
    pixels = [size * size for size in recipe.view_sizes]
    crop = constant("reading.crop_ns") * (sum(pixels) / 1e6)
    colour = nothing if recipe.data.placement == "accelerator" else _colour(recipe.data.colour, pixels)
    if recipe.data.loader == "folder":
        decode, crop = (part * constant("reading.folder_factor") for part in (decode, crop))
    return Reading(decode / speed, crop / speed, colour / speed, dataset.kilobytes)


def _colour(colour: "Colour", pixels: list[int]) -> Quantity:
    """Milliseconds; gray, solarize and invert are too quick to count."""
    constant = constants()
    total = Quantity.exact(0.0)
    for key, cost in (("jitter_p", "reading.jitter_ns"), ("blur_p", "reading.blur_ns")):
        share = getattr(colour, key)
        shares = share if isinstance(share, list) else [share] * len(pixels)
        total = total + constant(cost) * (sum(p * size for p, size in zip(shares, pixels)) / 1e6)
    return total
