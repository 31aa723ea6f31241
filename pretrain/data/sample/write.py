"""The built-in sample: a classification and a detection set made of the real images that scikit-learn ships.

Its 1,797 handwritten digits (8x8) are placed on its two photos (`drawing.py`). Digits are split between train
and val, and so are the photos (left half, right half): nothing seen in training is part of a validation picture.
The same versions of the packages write the same bytes.

    sample/      {train,val}/<digit>/NNNN.jpg, one digit a picture on plain gray, their betons and manifest
    sample-det/  annotations/instances_{train,val}2017.json, {train,val}2017/*.jpg: scenes of several digits,
                 some overlapping, in COCO's layout

Version 1 had soft photo backgrounds and tinted digits. Two views of a picture then share more than the digit, and in
short trainings half of the methods ended no better than an untrained network (`benchmarks/README.md` has the figures).
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretrain.data.sample.drawing import (
    CLASSES,
    CLASSIFICATION,
    DETECTION,
    SCENE_SIDE,
    Object,
    Pixels,
    Scene,
    material,
    picture,
    scene,
)
from whitebench.errors import UserError
from whitebench.files import write_json
from whitebench.hashing import file_hash

VERSION = 2
"""Of this generator: a sample that another version has written is replaced."""
STAMP = "sample.json"
SCENE_COUNTS = {"train": 400, "val": 100}
JPEG_QUALITY = 92


def write_sample(root: Path, force: bool = False) -> None:
    """Writes `root/sample` and `root/sample-det`; a complete and unaltered sample is not replaced, unless `force`.

    Raises:
        UserError: a folder of that name exists and was not written by this function.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / ".sample.lock"):
        for name, write in ((CLASSIFICATION, _write_classification), (DETECTION, _write_detection)):
            if force or not is_whole(root / name):
                _publish(root / name, write)


def is_whole(folder: Path) -> bool:
    """Whether `folder` is a sample as this version writes it, every byte in its place; further files do not matter."""
    stamp = _read_stamp(folder)
    if stamp is None or stamp["generator"] != VERSION:
        return False
    return all((folder / name).is_file() and file_hash(folder / name) == sha for name, sha in stamp["files"].items())


def _write_classification(folder: Path) -> None:
    from pretrain.data.betons.write import write_dataset

    for split, made_of in material().items():
        for number, label in enumerate(made_of.labels):
            _save_jpeg(folder / split / CLASSES[label] / f"{number:04d}.jpg", picture(split, number, made_of))
    manifest = write_dataset(folder, folder)
    replace(manifest, source=f"scikit-learn's digits and photos, version {VERSION}").write()  # not the path


def _write_detection(folder: Path) -> None:
    (folder / "annotations").mkdir()
    for split, made_of in material().items():
        scenes = []
        for number in range(SCENE_COUNTS[split]):
            scenes.append(scene(split, number, made_of))
            _save_jpeg(folder / f"{split}2017" / _file_name(number), scenes[-1].image)
        annotations = json.dumps(coco_annotations(scenes), separators=(",", ":"))
        (folder / "annotations" / f"instances_{split}2017.json").write_text(annotations)


def coco_annotations(scenes: Sequence[Scene]) -> dict[str, Any]:
    """The scenes in COCO's instance format.

    Masks are compressed RLE, the one form that is exact to the pixel, also with holes: Detectron2 reads it with
    INPUT.MASK_FORMAT "bitmask".
    """
    objects = [(number, item) for number, drawn in enumerate(scenes) for item in drawn.objects]
    return {
        "info": {"description": "digits on photos: the built-in sample of Whitebench", "version": str(VERSION)},
        "licenses": [],
        "images": [
            {"id": number + 1, "file_name": _file_name(number), "height": SCENE_SIDE, "width": SCENE_SIDE}
            for number in range(len(scenes))
        ],
        "annotations": [
            {"id": i, **_annotation(number + 1, item)} for i, (number, item) in enumerate(objects, start=1)
        ],
        "categories": [{"id": i, "name": name, "supercategory": "digit"} for i, name in enumerate(CLASSES, start=1)],
    }


def _annotation(image_id: int, item: Object) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(item.mask, dtype=np.uint8))
    return {
        "image_id": image_id,
        "category_id": item.label + 1,
        "bbox": [float(side) for side in coco_mask.toBbox(rle)],
        "area": int(item.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(item.mask.shape), "counts": rle["counts"].decode("ascii")},
    }


def _file_name(number: int) -> str:
    return f"{number + 1:012d}.jpg"


def _save_jpeg(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=JPEG_QUALITY, subsampling=0)


def _publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a new folder, stamps it and moves it to `folder`, so that `folder` is never incomplete."""
    if folder.exists() and _read_stamp(folder) is None and any(folder.iterdir()):
        raise UserError(f"{folder}: already exists and is not the built-in sample; move it away, its name is needed")
    staging, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    _remove(staging, old)  # left by a run that was killed
    new = staging / folder.name
    new.mkdir(parents=True)
    try:
        write(new)
        write_json(new / STAMP, {"generator": VERSION, "files": file_hashes(new)})
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        _remove(staging, old)


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def file_hashes(folder: Path) -> dict[str, str]:
    """Path below `folder` -> sha256, of all its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    """None where `folder` has no stamp of any version of this generator."""
    try:
        stamp = json.loads((folder / STAMP).read_bytes())
    except (OSError, ValueError):
        return None
    whole = isinstance(stamp, dict) and "generator" in stamp and isinstance(stamp.get("files"), dict)
    return stamp if whole else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time writes the sample; another waits, and then finds it whole."""
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
