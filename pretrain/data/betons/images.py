"""From a file of any image format to what a beton holds: the original bytes wherever that can be, or pixels."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.data.betons.format import JPEG, MAX_SIDE, RAW

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".gif", ".tif"),
    *(".tiff", ".webp", ".jp2", ".j2k", ".tga"),
)
KEPT_MODES = ("RGB", "L")
"""Modes of JPEGs that the loader decodes as Pillow does; CMYK, for one, is not."""
LOSSLESS_PIXELS = 256 * 256
"""Images of a lossless format up to this size are stored as pixels: a JPEG of a small image is visibly worse (2 levels
in the mean for CIFAR), and saves little disk."""
_LOST = {
    **dict.fromkeys(("RGBA", "LA", "PA", "RGBa", "La"), ", without its transparency"),
    **dict.fromkeys(("I", "I;16", "I;16B", "I;16L", "I;16N"), ", scaled from 16 to 8 bits"),
}
"""What a mode has that pixels of 8 bits do not."""
ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""

USUAL_PIXELS, REDUCIBLE_PIXELS = 178_956_970, 2_000_000_000
"""Largest image that is decoded whole (Pillow's own limit), and that is reduced on request."""
_LIMIT = threading.Lock()
"""Held while Pillow's global limit is another one."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # photos of 90 megapixels are no attack
warnings.filterwarnings("ignore", message="Palette images with Transparency")  # it is dropped, as we say


class BadImage(Exception):
    """An image that cannot be decoded; says why."""


@dataclass(frozen=True)
class WriteSettings:
    """How images are stored."""

    max_side: int | None = None
    """A longer side is reduced to this many pixels; None keeps every image as it is."""
    quality: int = 95
    """Of the JPEG where one has to be written."""
    raw: bool = False
    """Pixels instead of JPEGs: nothing is left to decode, in files some 5 times as large."""


@dataclass(frozen=True)
class Prepared:
    """What a beton stores of an image."""

    payload: bytes
    """A JPEG that the ffcv loader decodes, or pixels [height, width, 3]."""
    height: int
    width: int
    change: str | None
    """How it differs from the file's own bytes; None if it does not."""
    mode: int = JPEG
    """JPEG or RAW, as a beton's `mode`."""
    rotated: bool = False
    """Whether its EXIF data asks for a rotation, which nobody applies."""


def prepare(data: bytes, settings: WriteSettings) -> Prepared:
    """The image of a file's bytes, ready for a beton. The same with FFCV and without.

    Raises:
        BadImage: it does not decode.
    """
    with _opened(data, settings.max_side) as picture:
        rotated = picture.getexif().get(ORIENTATION, 1) not in (0, 1)
        reduces = settings.max_side is not None and max(picture.size) > settings.max_side
        is_jpeg = picture.format == "JPEG" and picture.mode in KEPT_MODES
        if is_jpeg and not reduces and not settings.raw and max(picture.size) <= MAX_SIDE:
            _check_decodes(data, picture)
            return Prepared(data, picture.height, picture.width, None, rotated=rotated)
        source = f"{picture.format} {picture.mode}{_LOST.get(picture.mode, '')}"
        pixels = _pixels(picture, settings.max_side)
        height, width, _ = pixels.shape
        if max(height, width) > MAX_SIDE:
            raise BadImage(f"{width} x {height} pixels; a side may have {MAX_SIDE:,}, --max-side reduces it")
        if settings.raw:
            return Prepared(pixels.tobytes(), height, width, "stored as pixels", RAW, rotated)
        lossless = picture.format not in ("JPEG", "MPO")
        if lossless and not reduces and height * width <= LOSSLESS_PIXELS:
            return Prepared(pixels.tobytes(), height, width, f"stored as pixels: {source}", RAW, rotated)
    change = "reduced" if reduces and is_jpeg else f"re-encoded as JPEG, with loss: {source}"
    return Prepared(_encoded(pixels, settings.quality), height, width, change, rotated=rotated)


def _encoded(pixels: NDArray[np.uint8], quality: int) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def _pixels(picture: Image.Image, max_side: int | None) -> NDArray[np.uint8]:
    """[H, W, 3], the longer side reduced to `max_side`, keeping the proportions."""
    height, width = _reduced_sides(picture, max_side)
    if picture.width * picture.height > USUAL_PIXELS:
        picture.draft(None, (width, height))  # of a JPEG, libjpeg decodes a half, a quarter or an eighth: less memory
    rgb = _as_rgb(picture)
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(rgb)


def _as_rgb(picture: Image.Image) -> Image.Image:
    """In 8 bits. Pillow's own conversion cuts 16 bits off at 255 (white), and fractions at 0 (black)."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PPM", "PNG")):
        levels = np.asarray(picture).astype(np.int64)
        if levels.min() < 0 or levels.max() > 0xFFFF:
            raise BadImage(f"levels from {levels.min()} to {levels.max()} are not of 16 bits; convert it to 8 bits")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        kind = "floating-point" if picture.mode == "F" else "32-bit"
        raise BadImage(f"{kind} pixels, of a range that the file does not state; convert it to 8 bits")
    return picture.convert("RGB")


def _reduced_sides(picture: Image.Image, max_side: int | None) -> tuple[int, int]:
    """Height and width."""
    share = 1.0 if max_side is None else min(1.0, max_side / max(picture.size))
    return max(1, round(picture.height * share)), max(1, round(picture.width * share))


def decode(data: bytes, max_side: int | None) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] by Pillow, reduced as they would be for a beton.

    Raises:
        BadImage: it does not decode.
    """
    with _opened(data, max_side) as picture:
        return _pixels(picture, max_side)


def size_of(data: bytes, max_side: int | None) -> tuple[int, int]:
    """Height and width of what `decode` returns, without decoding; raises `BadImage` if it is not an image."""
    with _opened(data, max_side) as picture:
        return _reduced_sides(picture, max_side)


def check_jpeg(data: bytes) -> None:
    """Raises `BadImage` if a JPEG of a beton does not decode."""
    with _opened(data, None) as picture:
        _check_decodes(data, picture)


@contextmanager
def _opened(data: bytes, max_side: int | None) -> Iterator[Image.Image]:
    """The picture of a file's bytes; raises `BadImage` on any error.

    One that is not to be reduced may have `USUAL_PIXELS`, others `REDUCIBLE_PIXELS`.
    """
    if not data:
        raise BadImage("an empty file")
    try:
        with _open(data, REDUCIBLE_PIXELS if max_side is not None else USUAL_PIXELS) as picture:
            yield picture
    except Image.DecompressionBombError as error:
        hint = "; --max-side reduces it" if max_side is None else ""
        raise BadImage(f"{' '.join(str(error).split())}{hint}") from error
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadImage(f"not an image: it starts with {data[:12]!r}") from error
    except Exception as error:  # decoders of strangers' bytes raise anything
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


def _open(data: bytes, pixels: int) -> Image.Image:
    """Reads the header of a picture of at most so many pixels."""
    with _LIMIT:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = pixels // 2  # Pillow warns from there, and raises from the double on
        try:
            return Image.open(BytesIO(data))
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_decodes(data: bytes, picture: Image.Image) -> None:
    """By FFCV, which is faster; what it warns of (extraneous bytes) may be sound: Pillow decides, and raises."""
    from pretrain.data.betons.libjpeg import decode_jpeg, has_ffcv

    if not has_ffcv() or decode_jpeg(data, picture.height, picture.width) is None:
        picture.load()
