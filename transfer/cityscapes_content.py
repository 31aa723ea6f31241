"""Cityscapes' folders as annotations in COCO's form, made of the images of instance ids that its own metric reads.

<folder>/leftImg8bit/{train,val}/<city>/<name>_leftImg8bit.png
<folder>/gtFine/{train,val}/<city>/<name>_gtFine_instanceIds.png

An id from 1000 on is label * 1000 + number, one object; a smaller one is a label: of a class with objects, a group,
which is a crowd here. As Detectron2's loader of such images (`load_cityscapes_instances` with from_json=False), also in
that a box ends at the last pixel of its object, not after it.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from whitebench.errors import UserError

CLASSES = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""By Cityscapes' label: those with objects that its metric evaluates."""
LABELS = 34
"""Labels are 0 to 33."""
OBJECT = 1000
IMAGES, TRUTHS = "leftImg8bit", "gtFine"
IMAGE_END, TRUTH_END = "_leftImg8bit.png", "_gtFine_instanceIds.png"
SPLITS = ("train", "val")
THREADS = 8
Entry = dict[str, Any]


def is_cityscapes(folder: Path) -> bool:
    return (folder / IMAGES / SPLITS[0]).is_dir() or (folder / TRUTHS / SPLITS[0]).is_dir()


def annotation_hashes(folder: Path) -> dict[str, str]:
    """sha256 of the instance ids of each split."""
    return {split: _hash(tuple(_truths(folder, split))) for split in SPLITS}


def read_split(folder: Path, split: str) -> dict[str, list[Entry]]:
    """The split as the content of a COCO annotation file; file names are relative to leftImg8bit/<split>.

    Raises:
        UserError: folders are missing; an image without its ids, or ids without their image; ids that are not
            Cityscapes'.
    """
    truths = _truths(folder, split)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        read = list(pool.map(_read, truths))
    images: list[Entry] = []
    annotations: list[Entry] = []
    for number, (path, ((height, width), objects)) in enumerate(zip(truths, read), 1):
        name = f"{path.parent.name}/{path.name.removesuffix(TRUTH_END)}{IMAGE_END}"
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for item in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **item})
    categories = [{"id": label, "name": name} for label, name in CLASSES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def image_folder(folder: Path, split: str) -> Path:
    return folder / IMAGES / split


def truth_of(folder: Path, split: str, image: Path) -> Path:
    """The file of instance ids of an image."""
    return folder / TRUTHS / split / image.parent.name / f"{image.name.removesuffix(IMAGE_END)}{TRUTH_END}"


def _truths(folder: Path, split: str) -> list[Path]:
    """Files of instance ids, sorted, after the images were compared with them."""
    truths = _named(folder / TRUTHS / split, TRUTH_END)
    images = _named(folder / IMAGES / split, IMAGE_END)
    for these, those, what in ((images, truths, f"its {TRUTH_END[1:]}"), (truths, images, f"its {IMAGE_END[1:]}")):
        alone = sorted(these.keys() - those.keys())
        if alone:
            raise UserError(f"{folder}: {len(alone)} of {len(these)} in {split} are without {what}, e.g. {alone[0]}")
    return [truths[name] for name in sorted(truths)]


def _named(folder: Path, end: str) -> dict[str, Path]:
    """<city>/<name>: file."""
    paths = {f"{path.parent.name}/{path.name.removesuffix(end)}": path for path in folder.glob(f"*/*{end}")}
    if not paths:
        raise UserError(f"{folder}: no Cityscapes folder with <city>/*{end}")
    return paths


@lru_cache
def _hash(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.parent.name}/{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[tuple[int, int], list[Entry]]:
    """Height and width, and the objects, of one file of instance ids."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: does not decode ({error})") from error
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise UserError(f"{path}: holds no ids, but pixels of {ids.shape[2:] or 1} channels of {ids.dtype}")
    occurring = [int(value) for value in np.unique(ids)]
    unknown = [value for value in occurring if not 0 <= _label(value) < LABELS]
    if unknown:
        raise UserError(f"{path}: {unknown[0]} is no instance id of Cityscapes, whose labels are 0 to {LABELS - 1}")
    objects = (_object(ids, value) for value in occurring if _label(value) in CLASSES)
    return (ids.shape[0], ids.shape[1]), [item for item in objects if item is not None]


def _label(value: int) -> int:
    return value // OBJECT if value >= OBJECT else value


def _object(ids: Any, value: int) -> Entry | None:
    """In COCO's form; None of one that is a pixel wide or high, as Detectron2 leaves it out."""
    from pycocotools import mask

    drawn = ids == value
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
    if right <= left or bottom <= top:
        return None
    coded = mask.encode(np.asfortranarray(drawn, dtype=np.uint8))
    return {
        "category_id": _label(value),
        "iscrowd": int(value < OBJECT),
        "bbox": [left, top, right - left, bottom - top],
        "area": int(drawn.sum()),
        "segmentation": {"size": list(drawn.shape), "counts": coded["counts"].decode()},
    }
