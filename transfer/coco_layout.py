"""Where the files of a detection set in COCO's or LVIS's form are: in one of the usual layouts, or as the user says.

<folder>/annotations/instances_{train2017,val2017}.json    <folder>/{train2017,val2017}/*.jpg
<folder>/annotations/instances_{train2014,val2014}.json    <folder>/{train2014,val2014}/*.jpg
<folder>/annotations/instances_{train,val}.json            <folder>/{train,val}/*.jpg
<folder>/{train,valid}/_annotations.coco.json, images next to them (Roboflow)
<folder>/lvis_v1_{train,val}.json, or in annotations/        <folder>/{train2017,val2017}/*.jpg (LVIS)
or the files that `Files` names.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from whitebench.errors import UserError

LVIS_VERSIONS = ("lvis_v1", "lvis_v0.5")
NAMED = (("train2017", "val2017"), ("train2014", "val2014"), ("train", "val"))
ROBOFLOW, ROBOFLOW_FILE = ("train", "valid"), "_annotations.coco.json"


@dataclass(frozen=True)
class Files:
    """Names of the files where a folder has none of the usual layouts: absolute, or relative to the folder."""

    train_json: str | None = None
    train_images: str | None = None
    val_json: str | None = None
    val_images: str | None = None


USUAL_FILES = Files()


@dataclass(frozen=True)
class SplitFiles:
    name: str
    annotations: Path
    images: tuple[Path, ...]
    """Folders in which the images may be; the first one that holds some is taken."""


def is_coco(folder: Path) -> bool:
    """Whether an annotation file of one of the usual layouts exists."""
    return any(path.is_file() for train, val in _layouts(folder) for path in (train.annotations, val.annotations))


def split_files(folder: Path, files: Files = USUAL_FILES) -> tuple[SplitFiles, SplitFiles]:
    """Where train and val are.

    Raises:
        UserError: an annotation file is missing.
    """
    layouts = _layouts(folder)
    whole = [pair for pair in layouts if all(split.annotations.is_file() for split in pair)]
    partly = [pair for pair in layouts if any(split.annotations.is_file() for split in pair)]
    train, val = (whole or partly or layouts)[0]
    train = _named_by_user(folder, train, files.train_json, files.train_images)
    val = _named_by_user(folder, val, files.val_json, files.val_images)
    for split in (train, val):
        if not split.annotations.is_file():
            named = os.path.relpath(split.annotations, folder)
            others = (
                "" if partly else "; other names are given by --train-json, --train-images, --val-json, --val-images"
            )
            raise UserError(f"{folder}: not a COCO folder, its {named} is missing{others}")
    return train, val


def _layouts(folder: Path) -> list[tuple[SplitFiles, SplitFiles]]:
    def named(name: str) -> SplitFiles:
        images = (folder / name, folder / "images" / name, folder / "images", folder)
        return SplitFiles(name, folder / "annotations" / f"instances_{name}.json", images)

    def roboflow(name: str) -> SplitFiles:
        return SplitFiles(name, folder / name / ROBOFLOW_FILE, (folder / name, folder / name / "images"))

    def lvis(stem: str, name: str, annotations: Path) -> SplitFiles:
        return SplitFiles(
            name, annotations / f"{stem}_{name}.json", (folder, folder / "images", folder / "coco", annotations)
        )

    lvis_layouts = [
        (lvis(stem, "train", annotations), lvis(stem, "val", annotations))
        for stem in LVIS_VERSIONS
        for annotations in (folder, folder / "annotations")
    ]
    return [
        *((named(train), named(val)) for train, val in NAMED),
        (roboflow(ROBOFLOW[0]), roboflow(ROBOFLOW[1])),
        *lvis_layouts,
    ]


def _named_by_user(folder: Path, split: SplitFiles, annotations: str | None, images: str | None) -> SplitFiles:
    if annotations is None and images is None:
        return split
    path = folder / annotations if annotations else split.annotations
    defaults = (path.parent, path.parent / "images", folder, folder / "images", folder / path.stem)
    folders = (folder / images,) if images else (*split.images, *defaults)
    return SplitFiles(split.name if not annotations else split.name.rstrip("0123456789"), path, folders)
