"""Pictures of runs as thumbnails inside the page, within a limit for the whole page."""

import base64
import io
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from results.page.run_files import Unreadable, read_inside

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
PAGE_BYTES = 2_000_000
"""Of all pictures of a page together, as they are in it."""

RUN_PICTURES, FILE_BYTES, PIXELS, SIDE, QUALITY = 8, 30_000_000, 60_000_000, 640, 78
"""Thumbnails per run; bytes and pixels of a file that is opened; longest side and WebP quality of a thumbnail."""


@dataclass(frozen=True)
class Picture:
    name: str
    source: str
    """A data URI; "" where the picture is only named."""
    note: str = ""
    """Why it is only named."""


class PictureBudget:
    """Thumbnails until PAGE_BYTES are spent; later pictures are named."""

    def __init__(self, remaining: int = PAGE_BYTES) -> None:
        self.remaining = remaining

    def of_run(self, folder: Path) -> list[Picture]:
        """The pictures in a run's folder and one level below it."""
        paths = picture_files(folder)
        pictures = [self.add(path, folder) for path in paths[:RUN_PICTURES]]
        more = len(paths) - len(pictures)
        return [*pictures, Picture(f"{more} more pictures", "", "not shown")] if more else pictures

    def add(self, path: Path, folder: Path) -> Picture:
        name = _name(path, folder)
        if self.remaining <= 0:
            return Picture(name, "", "not shown: the page's pictures have reached their limit")
        try:
            state = path.stat()
            content = _thumbnail(path, folder, state.st_mtime_ns, state.st_size)
        except Unreadable as error:
            return Picture(name, "", str(error))
        except OSError as error:
            return Picture(name, "", f"not a readable picture ({error.strerror or type(error).__name__})")
        except Exception as error:  # Pillow raises many kinds for damaged files
            return Picture(name, "", f"not a readable picture ({type(error).__name__})")
        source = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
        if len(source) > self.remaining:
            return Picture(name, "", "not shown: the page's pictures have reached their limit")
        self.remaining -= len(source)
        return Picture(name, source)


@lru_cache(maxsize=256)
def _thumbnail(path: Path, folder: Path, modified: int, size: int) -> bytes:
    """WebP; only the pixels go into the page, no metadata. A live page asks for the same ones again and again."""
    from PIL import Image

    content = read_inside(path, [folder], FILE_BYTES)
    with Image.open(io.BytesIO(content)) as image:
        if image.width * image.height > PIXELS:
            raise Unreadable(f"not shown: {image.width} x {image.height} pixels")
        image.draft("RGB", (SIDE * 2, SIDE * 2))
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    small.save(stream, "webp", quality=QUALITY)
    return stream.getvalue()


def picture_files(folder: Path) -> list[Path]:
    """Entries with a picture's suffix in a folder and the folders in it (no links), by name."""
    paths: list[Path] = []
    for below in [folder, *_folders(folder)]:
        try:
            paths += [Path(entry.path) for entry in os.scandir(below) if entry.name.lower().endswith(SUFFIXES)]
        except OSError:
            continue
    return sorted(paths)


def _folders(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
