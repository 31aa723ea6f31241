"""From a file of any image format to what a beton keeps: the original bytes wherever that can be, or pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.data.betons.format import JPEG, MAX_SIDE, RAW

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
KEPT_MODES = ("RGB", "L")
"""What a JPEG decodes to in the loader as it does in Pillow; CMYK, for one, does not."""


class BadImage(Exception):
    """An image that cannot be decoded; says why."""


@dataclass(frozen=True)
class WriteSettings:
    max_side: int | None = None
    """The longer side is reduced to so many pixels where it exceeds them; None keeps every image as it is."""
    quality: int = 95
    """Of the JPEG where one has to be written."""
    raw: bool = False
    """Pixels are kept in place of a JPEG: nothing is left to decode, in files some 5 times as large."""


@dataclass(frozen=True)
class Prepared:
    payload: bytes
    """A JPEG that the ffcv loader decodes, or pixels [height, width, 3]."""
    height: int
    width: int
    change: str | None
    """Why it does not hold the original bytes; None where it does."""
    mode: int = JPEG
    """Which of them, as a beton's `mode`."""


def prepare(data: bytes, settings: WriteSettings) -> Prepared:
    """The image of a file's bytes, ready for a beton.

    Raises:
        BadImage: it does not decode.
    """
    if settings.raw:
        pixels = _decoded_alike(data, settings.max_side)
        height, width, _ = pixels.shape
        return Prepared(pixels.tobytes(), height, width, "raw", RAW)
    with _opened(data) as picture:
        change = _change_needed(data, picture, settings)
        if change is None:
            return Prepared(data, picture.height, picture.width, None)
        smaller = reduced(picture.convert("RGB"), settings.max_side)
    out = BytesIO()
    smaller.save(out, "JPEG", quality=settings.quality)
    return Prepared(out.getvalue(), smaller.height, smaller.width, change)


def _decoded_alike(data: bytes, max_side: int | None) -> NDArray[np.uint8]:
    """As `decode`, but where the ffcv loader would decode a JPEG with the very pixels that it would have."""
    from pretrain.data.betons.libjpeg import decode_jpeg, has_ffcv

    with _opened(data) as picture:
        if picture.format == "JPEG" and picture.mode in KEPT_MODES and has_ffcv():
            pixels = decode_jpeg(data, picture.height, picture.width)
            if pixels is not None:
                return np.asarray(reduced(Image.fromarray(pixels), max_side))
    return decode(data, max_side)


def reduced(picture: Image.Image, max_side: int | None) -> Image.Image:
    """`picture` with a longer side of at most `max_side`, proportions kept."""
    height, width = _reduced_sides(picture, max_side)
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)


def _reduced_sides(picture: Image.Image, max_side: int | None) -> tuple[int, int]:
    """Height and width."""
    share = 1.0 if max_side is None else min(1.0, max_side / max(picture.size))
    return max(1, round(picture.height * share)), max(1, round(picture.width * share))


def decode(data: bytes, max_side: int | None) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] by Pillow, reduced as they would be for a beton; `BadImage` where it does not decode."""
    with _opened(data) as picture:
        return np.asarray(reduced(picture.convert("RGB"), max_side))


def size_of(data: bytes, max_side: int | None) -> tuple[int, int]:
    """Height and width of what `decode` returns, without decoding; `BadImage` where it is no image."""
    with _opened(data) as picture:
        return _reduced_sides(picture, max_side)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The picture of a file's bytes; whatever goes wrong with it is a `BadImage`."""
    try:
        with Image.open(BytesIO(data)) as picture:
            yield picture
    except Exception as error:  # decoders of strangers' bytes raise anything
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


def _change_needed(data: bytes, picture: Image.Image, settings: WriteSettings) -> str | None:
    """Why the bytes cannot be kept; None where they can."""
    if max(picture.size) > MAX_SIDE:
        raise ValueError(f"{picture.width} x {picture.height} pixels are more than a beton can hold")
    if picture.format != "JPEG" or picture.mode not in KEPT_MODES:
        return f"{picture.format} {picture.mode}"
    if settings.max_side is not None and max(picture.size) > settings.max_side:
        return "reduced"
    return None if _decodes(data, picture) else "JPEG with a flaw"


def _decodes(data: bytes, picture: Image.Image) -> bool:
    """By the decoder that will read it; without FFCV by Pillow, which raises."""
    from pretrain.data.betons.libjpeg import decode_jpeg, has_ffcv

    if has_ffcv():
        return decode_jpeg(data, picture.height, picture.width) is not None
    picture.load()
    return True
