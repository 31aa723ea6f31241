"""Image files of a detection set: whether they decode, and to the size for which their annotations are."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from whitebench.errors import UserError

ORIENTATION = 0x0112
"""EXIF's tag. Detectron2 turns a photo accordingly when it reads it."""
TURNED = (5, 6, 7, 8)
"""Its values that exchange width and height."""
THREADS = 8
END_OF_JPEG = b"\xff\xd9"
Size = tuple[int, int]


def check_images(files: Iterable[tuple[Path, int, int]], decode: bool) -> None:
    """Opens all images and compares their sizes with what their annotations say.

    Args:
        files: path of each image, and the width and height of its annotations.
        decode: decode all of them; otherwise only JPEGs whose end is missing are decoded, of others the header is read.
    Raises:
        UserError: one does not decode, or is of another size.
    """
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for fault in pool.map(lambda file: _fault(file[0], file[1], file[2], decode), list(files)):
            if fault:
                raise UserError(fault)


def _fault(path: Path, width: int, height: int, decode: bool) -> str | None:
    from PIL import Image

    try:
        if not path.is_file():
            return f"{path}: not a plain file"  # a FIFO or device, which has no end
        with Image.open(path) as image:
            stored, oriented, mode = image.size, oriented_size(image), image.mode
            if decode or (image.format == "JPEG" and not _ends(path)):
                image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{path}: does not decode ({error})"
    if mode.startswith(("I", "F")):
        return f"{path}: has 16 or 32 bits per channel (mode {mode}), which Detectron2 cuts to 8; convert it to 8 bits"
    if oriented == (width, height):
        return None
    turned = f" as its EXIF orientation shows it ({_text(stored)} as stored)" if oriented != stored else ""
    return f"{path}: is {_text(oriented)} pixels{turned}, its annotations are for {_text((width, height))}"


def oriented_size(image: Any) -> Size:
    """Width and height of a PIL image after its EXIF orientation, as Detectron2's reader returns it."""
    read: Callable[[], Any] = image.getexif
    try:
        orientation = read().get(ORIENTATION)
    except Exception:  # broken EXIF data, which Detectron2 ignores
        orientation = None
    width, height = image.size
    return (height, width) if orientation in TURNED else (width, height)


def _ends(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(64, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return END_OF_JPEG in file.read()


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
