"""The images of a split, one by one, from its beton."""

import numpy as np
from numpy.typing import NDArray

from pretrain.data.betons.format import JPEG, read_samples
from pretrain.data.betons.libjpeg import decode_jpeg
from pretrain.data.betons.manifest import Manifest
from whitebench.errors import UserError


class BetonImages:
    """Decoded images of a split, by dataset index."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        self.manifest, self.split = manifest, split
        self.samples = read_samples(manifest.beton(split))
        self.label = self.samples.label
        self._file = self.samples.open()

    def sides(self, index: int) -> tuple[int, int]:
        """Height and width."""
        return int(self.samples.height[index]), int(self.samples.width[index])

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Image `index`, [H, W, 3]."""
        data, sides = self.samples.bytes_of(index, self._file), self.sides(index)
        if self.samples.mode[index] != JPEG:
            return np.frombuffer(data, np.uint8).reshape(*sides, 3)
        pixels = decode_jpeg(data, *sides)
        if pixels is None:
            raise UserError(undecodable(self.manifest, self.split, index))
        return pixels


def undecodable(manifest: Manifest, split: str, index: int) -> str:
    """The message for a JPEG of a beton that does not decode."""
    try:
        name = f" ({manifest.file_names(split)[index]})"
    except UserError:
        name = ""
    advice = f"python -m pretrain.data verify {manifest.dataset} checks them all"
    return f"{manifest.folder / manifest.split(split).beton}: image {index}{name} does not decode; {advice}"
