"""VOC 2007 and 2012 in their own folder layout, as MoCo takes them: 07+12 trainval to train, 07 test to judge by.

<folder>/VOC2007/{Annotations/*.xml, ImageSets/Main/{trainval,test}.txt, JPEGImages/*.jpg}
<folder>/VOC2012/{Annotations/*.xml, ImageSets/Main/trainval.txt, JPEGImages/*.jpg}
"""

import hashlib
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transfer.data_checks import Faults, box_fault, check_files
from transfer.detectron import quiet
from whitebench.errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PARTS = {"train": (("VOC2007", "trainval"), ("VOC2012", "trainval")), "val": (("VOC2007", "test"),)}


@dataclass(frozen=True)
class VocPart:
    """One list of one year."""

    folder: Path
    """.../VOC2007"""
    split: str
    names: tuple[str, ...]
    """Of its images, without extension."""
    objects: int


@dataclass(frozen=True)
class VocSet:
    """Both years, found whole."""

    folder: Path
    train: tuple[VocPart, ...]
    val: tuple[VocPart, ...]
    notes: tuple[str, ...]
    categories: tuple[str, ...] = CLASSES
    mask_format: str = "polygon"
    """Detectron2's default: there are no masks."""

    @property
    def counts(self) -> dict[str, int]:
        return {
            f"{name}_{what}": sum(len(part.names) if what == "images" else part.objects for part in parts)
            for name, parts in (("train", self.train), ("val", self.val))
            for what in ("images", "objects")
        }


def is_voc(folder: Path) -> bool:
    return (folder / "VOC2007").is_dir()


def annotation_hashes(folder: Path) -> dict[str, str]:
    """sha256 of all annotations of each use: {"train": ..., "val": ...}."""
    return {use: _hash(folder.resolve(), use, _changed(folder, use)) for use in PARTS}


def read_voc(folder: Path) -> VocSet:
    """Reads and checks both years.

    Raises:
        UserError: lists, annotations or images missing, not VOC's XML, an unknown class, faulty boxes.
    """
    found, notes = {}, []
    for use, parts in PARTS.items():
        read = [_read_part(folder / year, split) for year, split in parts]
        found[use] = tuple(part for part, _ in read)
        notes += [note for _, more in read for note in more]
    return VocSet(folder, found["train"], found["val"], tuple(notes))


def register(voc: VocSet) -> tuple[list[str], str]:
    """Makes the parts known to Detectron2; the names of those to train with, and of the one to judge by."""
    from detectron2.data import DatasetCatalog
    from detectron2.data.datasets import register_pascal_voc

    hashes, names = annotation_hashes(voc.folder), []
    for use, part in [*(("train", part) for part in voc.train), ("val", voc.val[0])]:
        year = int(part.folder.name.removeprefix("VOC"))
        name = f"voc-{hashes[use][:12]}-{year}-{part.split}-{voc.folder.resolve()}"
        if name not in DatasetCatalog:
            with quiet("detectron2"):
                register_pascal_voc(name, str(part.folder), part.split, year, list(CLASSES))
        names.append(name)
    return names[:-1], names[-1]


def _list(folder: Path, split: str) -> Path:
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        raise UserError(f"{folder.parent}: not VOC's folder, its {path.relative_to(folder.parent)} is missing")
    return path


def _changed(folder: Path, use: str) -> tuple[int, ...]:
    lists = [_list(folder / year, split) for year, split in PARTS[use]]
    return tuple(path.stat().st_mtime_ns for path in [*lists, *(path.parents[2] / "Annotations" for path in lists)])


@lru_cache
def _hash(folder: Path, use: str, changed: tuple[int, ...]) -> str:
    """Of lists and annotations that have these times: 21,000 small files, and a sweep asks for them once a cell."""
    digest = hashlib.sha256()
    for year, split in PARTS[use]:
        path = _list(folder / year, split)
        for name in path.read_text().split():
            annotation = folder / year / "Annotations" / f"{name}.xml"
            if not annotation.is_file():
                raise UserError(f"{annotation}: is missing, though {path.name} lists it")
            digest.update(f"{year}/{name}\0".encode() + annotation.read_bytes())
    return digest.hexdigest()


def _read_part(folder: Path, split: str) -> tuple[VocPart, list[str]]:
    path = _list(folder, split)
    names = tuple(path.read_text().split())
    if len(names) < 2:  # Detectron2's reader takes no list of one
        raise UserError(f"{path}: lists {len(names)} images; at least 2 are needed")
    there = {entry.name for entry in (folder / "JPEGImages").iterdir()} if (folder / "JPEGImages").is_dir() else set()
    missing = [name for name in names if f"{name}.jpg" not in there]
    if missing:
        raise UserError(
            f"{folder / 'JPEGImages'}: {len(missing)} of {len(names)} images are missing, e.g. {missing[0]}.jpg"
        )
    trees = {name: _parse(folder / "Annotations" / f"{name}.xml") for name in names}
    objects = sum(len(tree.findall("object")) for tree in trees.values())
    if not objects:
        raise UserError(f"{path}: its images hold no objects")
    faults, sizes = Faults(path, objects), []
    for name, tree in trees.items():
        annotation = folder / "Annotations" / f"{name}.xml"
        width, height = (int(_number(annotation, tree.find("size"), side)) for side in ("width", "height"))
        sizes.append((f"{name}.jpg", width, height))
        for item in tree.findall("object"):
            kind = _object_fault(annotation, item, width, height)
            if kind:
                faults.add(kind, f"{annotation.name}")
    check_files(folder / "JPEGImages", sizes)
    return VocPart(folder, split, names, objects), faults.notes()


def _object_fault(path: Path, item: ET.Element, width: int, height: int) -> str | None:
    name = item.findtext("name")
    if name not in CLASSES:
        raise UserError(f"{path}: '{name}' is none of VOC's classes")
    if item.findtext("difficult") not in ("0", "1"):
        raise UserError(f"{path}: an object does not say whether it is difficult (0 or 1)")
    left, top, right, bottom = (_number(path, item.find("bndbox"), side) for side in ("xmin", "ymin", "xmax", "ymax"))
    return box_fault(left - 1, top - 1, right, bottom, width, height)  # VOC counts pixels from 1, both ends within


def _parse(path: Path) -> ET.Element:
    try:
        return ET.parse(path).getroot()
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing, though the lists name it") from error
    except ET.ParseError as error:
        raise UserError(f"{path}: not XML, or truncated ({error})") from error


def _number(path: Path, node: Any, key: str) -> float:
    text = node.findtext(key) if node is not None else None
    try:
        return float(text or "")
    except ValueError as error:
        raise UserError(f"{path}: '{key}' is {f'no number: {text[:40]}' if text else 'missing'}") from error
