"""Where the files of a set in VOC's layout are; see `transfer.voc_set` for the layouts."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from whitebench.errors import UserError

YEARS = ("VOC2007", "VOC2012")
LISTS = (("trainval", "test"), ("train", "val"), ("train", "test"), ("trainval", "val"))
"""Lists to train and to evaluate with: the first pair that a folder has."""
EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp")


@dataclass(frozen=True)
class VocList:
    """One list of images of one folder."""

    folder: Path
    """.../VOC2007"""
    split: str

    @property
    def path(self) -> Path:
        return self.folder / "ImageSets" / "Main" / f"{self.split}.txt"

    def names(self) -> tuple[str, ...]:
        """Of its images, without extension.

        Raises:
            UserError: the list is missing, or not a text.
        """
        if not self.path.is_file():
            where = self.path.relative_to(self.folder.parent)
            raise UserError(f"{self.folder.parent}: not VOC's folder, its {where} is missing")
        try:
            lines = self.path.read_text().splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: not a list of names ({error})") from error
        return tuple(line.split()[0] for line in lines if line.strip())


def is_voc(folder: Path) -> bool:
    return _root(folder) is not None


def annotation_hashes(folder: Path) -> dict[str, str]:
    """sha256 of lists and annotations of each use: {"train": ..., "val": ...}."""
    return {use: _hash(tuple(lists), _changed(lists)) for use, lists in voc_lists(folder).items()}


def voc_lists(folder: Path) -> dict[str, list[VocList]]:
    """{"train": lists to train with, "val": the one to evaluate with}."""
    root = _root(folder)
    if root is None:
        raise UserError(f"{folder}: not VOC's folder: it holds neither VOC2007 nor Annotations and ImageSets")
    folders = [root / year for year in YEARS if (root / year).is_dir()] or [root]
    if len(folders) == 2:
        return {"train": [VocList(f, "trainval") for f in folders], "val": [VocList(folders[0], "test")]}
    pairs = [tuple(VocList(folders[0], split) for split in pair) for pair in LISTS]
    train, val = next((pair for pair in pairs if all(one.path.is_file() for one in pair)), pairs[0])
    return {"train": [train], "val": [val]}


def image_files(folder: Path) -> dict[str, Path]:
    """By name without extension: the image; of several, the first of `EXTENSIONS`."""
    files: dict[str, Path] = {}
    entries = [entry for entry in folder.iterdir() if _rank(entry) is not None] if folder.is_dir() else []
    for entry in sorted(entries, key=lambda entry: (_rank(entry), entry.name), reverse=True):
        files[entry.stem] = entry
    return files


def _root(folder: Path) -> Path | None:
    """The folder that holds the years, or Annotations itself."""
    for candidate in (folder, folder / "VOCdevkit"):
        if any((candidate / year).is_dir() for year in YEARS) or _is_year(candidate):
            return candidate
    return None


def _is_year(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "ImageSets" / "Main").is_dir()


def _changed(lists: list[VocList]) -> tuple[int, ...]:
    paths = [path for one in lists for path in (one.path, one.folder / "Annotations")]
    return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)


@lru_cache
def _hash(lists: tuple[VocList, ...], changed: tuple[int, ...]) -> str:
    """Of lists and annotations that have these times: 21,000 small files, and a sweep asks for them once per cell."""
    digest = hashlib.sha256()
    for one in lists:
        for name in one.names():
            annotation = one.folder / "Annotations" / f"{name}.xml"
            if not annotation.is_file():
                raise UserError(f"{annotation}: is missing, though {one.path.name} lists it")
            digest.update(f"{one.folder.name}/{name}\0".encode() + annotation.read_bytes())
    return digest.hexdigest()


def _rank(path: Path) -> int | None:
    extension = path.suffix.lower().removeprefix(".")
    return EXTENSIONS.index(extension) if extension in EXTENSIONS else None
