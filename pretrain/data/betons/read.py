"""The images of a split, one by one, from its beton."""

import numpy as np
from numpy.typing import NDArray

from pretrain.data.betons.format import JPEG, read_samples
from pretrain.data.betons.images import BadImage, decode
from pretrain.data.betons.libjpeg import decode_jpeg
from pretrain.data.betons.manifest import Manifest
from whitebench.errors import UserError


class BetonImages:
    """Decoded images of a split, by dataset index; safe to use from several threads."""

    def __init__(self, manifest: Manifest, split: str, exact: bool = False) -> None:
        """`exact`: JPEGs are decoded by Pillow, else by FFCV, whose fast transform is about a level off."""
        self.manifest, self.split, self.exact = manifest, split, exact
        self.samples = read_samples(manifest.beton(split))
        self.label = self.samples.label
        self._file = self.samples.open()

    def sides(self, index: int) -> tuple[int, int]:
        """Height and width."""
        return int(self.samples.height[index]), int(self.samples.width[index])

    def name(self, index: int) -> str:
        """How a message names image `index`."""
        try:
            name = f" ({self.manifest.file_names(self.split)[index]})"
        except UserError:
            name = ""
        return f"{self.samples.path}: image {index}{name}"

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Image `index`, [H, W, 3].

        A JPEG that FFCV warns of (extraneous bytes; ImageNet has some) is left to Pillow, so that a training does not
        end for an image that `write` took.

        Raises:
            UserError: it does not decode.
        """
        data, sides = self.samples.bytes_of(index, self._file), self.sides(index)
        if self.samples.mode[index] != JPEG:
            return np.frombuffer(data, np.uint8).reshape(*sides, 3)
        pixels = None if self.exact else decode_jpeg(data, *sides)
        if pixels is not None:
            return pixels
        try:
            pixels = decode(data, None)
            if pixels.shape[:2] == sides:
                return pixels
            reason = "its size is not that of the beton's table"
        except BadImage as error:
            reason = str(error)
        advice = f"python -m pretrain.data verify {self.manifest.dataset} checks all images"
        raise UserError(f"{self.name(index)} does not decode ({reason}); {advice}")
