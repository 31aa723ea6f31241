"""A detection set in COCO's own folder layout: checked before anything is trained, and given to Detectron2.

<folder>/annotations/instances_{train2017,val2017}.json    <folder>/{train2017,val2017}/*.jpg
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transfer.data_checks import check_coco, check_files
from transfer.detectron import quiet
from whitebench.errors import UserError
from whitebench.hashing import file_hash

SPLITS = ("train2017", "val2017")
SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Split:
    annotations: Path
    images: Path
    names: tuple[str, ...]
    """File names of its images."""
    objects: int


@dataclass(frozen=True)
class CocoSet:
    """A set that was found whole."""

    folder: Path
    train: Split
    val: Split
    categories: tuple[str, ...]
    """Names, in the order of their ids."""
    mask_format: str
    """Detectron2's INPUT.MASK_FORMAT: "bitmask" where masks are run-length coded, else "polygon"."""
    notes: tuple[str, ...] = ()
    """Faults of single annotations, few enough to go on with."""

    @property
    def counts(self) -> dict[str, int]:
        return {
            f"{name}_{what}": len(split.names) if what == "images" else split.objects
            for name, split in (("train", self.train), ("val", self.val))
            for what in ("images", "objects")
        }


def annotation_hashes(folder: Path) -> dict[str, str]:
    """sha256 of both annotation files: {"train2017": ..., "val2017": ...}."""
    files = {split: _annotations(folder, split) for split in SPLITS}
    return {split: _hash(path, path.stat().st_size, path.stat().st_mtime_ns) for split, path in files.items()}


@lru_cache
def _hash(path: Path, size: int, modified: int) -> str:
    """Of a file that has this size and time: COCO's is 450 MB, and a sweep asks for it once a cell."""
    return file_hash(path)


def read_coco(folder: Path) -> CocoSet:
    """Reads and checks both splits.

    Raises:
        UserError: annotations or images missing (counted, the first named), not COCO's JSON, splits that do not fit.
    """
    raw = {split: _load(_annotations(folder, split)) for split in SPLITS}
    categories = {split: _categories(raw[split]) for split in SPLITS}
    if categories["train2017"] != categories["val2017"]:
        raise UserError(f"{folder}: the categories of train2017 and val2017 are not the same")
    train, val = (_split(folder, split, raw[split]) for split in SPLITS)
    coded = any(isinstance(item.get("segmentation"), dict) for item in _objects(raw["train2017"]))
    names = tuple(categories["train2017"].values())
    notes = [note for split in SPLITS for note in _check_content(folder, split, raw[split])]
    return CocoSet(folder, train, val, names, "bitmask" if coded else "polygon", tuple(notes))


def register(coco: CocoSet) -> tuple[list[str], str]:
    """Makes the set known to Detectron2; the names there of what to train with, and of what to judge by."""
    from detectron2.data import DatasetCatalog
    from detectron2.data.datasets import register_coco_instances

    hashes = annotation_hashes(coco.folder)
    names = []
    for split, part in (("train2017", coco.train), ("val2017", coco.val)):
        name = f"coco-{hashes[split][:12]}-{split}-{coco.folder.resolve()}"
        if name not in DatasetCatalog:
            with quiet("detectron2"):
                register_coco_instances(name, {}, str(part.annotations), str(part.images))
        names.append(name)
    return names[:-1], names[-1]


def _annotations(folder: Path, split: str) -> Path:
    path = folder / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        raise UserError(f"{folder}: not a COCO folder, its annotations/{path.name} is missing")
    return path


def _load(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON, or truncated ({error})") from error
    missing = [key for key in SECTIONS if not isinstance(raw, dict) or not isinstance(raw.get(key), list)]
    if missing:
        raise UserError(f"{path}: not COCO annotations, it has no list '{missing[0]}'")
    for section, needed in (
        ("images", ("id", "file_name", "width", "height")),
        ("annotations", ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")),
        ("categories", ("id", "name")),
    ):
        for item in raw[section]:
            absent = [key for key in needed if not isinstance(item, dict) or key not in item]
            if absent:
                raise UserError(f"{path}: an entry of '{section}' has no '{absent[0]}': {str(item)[:80]}")
    return raw


def _categories(raw: dict[str, Any]) -> dict[int, str]:
    return {item["id"]: item["name"] for item in sorted(raw["categories"], key=lambda item: item["id"])}


def _objects(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """Annotations that count; crowd regions are left out of training and only ignored in evaluation."""
    return [item for item in raw["annotations"] if not item["iscrowd"]]


def _split(folder: Path, split: str, raw: dict[str, Any]) -> Split:
    path, images = _annotations(folder, split), folder / split
    names = tuple(str(item["file_name"]) for item in raw["images"])
    if not names or not _objects(raw):
        raise UserError(f"{path}: holds no {'objects' if names else 'images'}")
    _check_references(path, raw)
    there = {entry.name for entry in images.iterdir()} if images.is_dir() else set()
    missing = [name for name in names if name not in there and not (images / name).is_file()]
    if missing:
        raise UserError(f"{images}: {len(missing)} of {len(names)} images are missing, e.g. {missing[0]}")
    return Split(path, images, names, len(_objects(raw)))


def _check_content(folder: Path, split: str, raw: dict[str, Any]) -> list[str]:
    notes = check_coco(_annotations(folder, split), raw["images"], _objects(raw))
    check_files(folder / split, ((str(item["file_name"]), item["width"], item["height"]) for item in raw["images"]))
    return notes


def _check_references(path: Path, raw: dict[str, Any]) -> None:
    for key, section in (("image_id", "images"), ("category_id", "categories")):
        known = {item["id"] for item in raw[section]}
        lost = [item for item in raw["annotations"] if item[key] not in known]
        if lost:
            raise UserError(f"{path}: {len(lost)} annotations name an unknown {key}, e.g. annotation {lost[0]['id']}")
