"""Labels from a file.

Kaggle's LOC_val_solution.csv, Tiny-ImageNet's val_annotations.txt, the ground truth of ILSVRC's development kit, or any
list of file and class.
"""

import csv
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from pretrain.data.sources.class_lists import read_text
from pretrain.data.sources.files import StoredFile, has_image_name
from whitebench.errors import UserError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KNOWN_NAMES = ("{split}_annotations.txt", "LOC_{split}_solution.csv", GROUND_TRUTH)
"""Files that hold a split's labels without being named by the user."""
DEVKIT = ("", "ILSVRC2012_devkit_t12/data", "devkit/data", "data")
"""Where they are looked for, below a folder."""
HEADERS = frozenset({"imageid", "image_id", "id", "file", "filename", "file_name", "image", "img", "name", "path"})
_NUMBER = re.compile("[0-9]{1,9}")
_BOXES = re.compile(r"^(\S+)((?:\s+-?\d+(?:\.\d+)?){4})")
"""Kaggle's predictions: a class and a box, several times."""


def known_label_file(split: str, folders: Sequence[Path]) -> Path | None:
    """The first file with one of `KNOWN_NAMES` in the folders."""
    for folder in folders:
        for below in DEVKIT:
            for name in KNOWN_NAMES:
                path = folder / below / name.format(split=split)
                if path.is_file():
                    return path
    return None


def labels_of(path: Path, files: Sequence[StoredFile]) -> dict[str, str]:
    """The class of each file, by the file's path, as the list `path` has it.

    Raises:
        UserError: the list cannot be read, contradicts itself, or says nothing of a file.
    """
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: holds no labels")
    if all(_NUMBER.fullmatch(line.strip()) for line in lines):
        return _numbered(path, [int(line) for line in lines], files)
    return _matched(path, _named(path, lines), files)


def _named(path: Path, lines: Sequence[str]) -> dict[str, str]:
    """Class by the file's name (without folder and extension) of lines `file<separator>class`."""
    classes: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        fields = _fields(line)
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise UserError(f"{path}: line {number}: not a file and its class: '{line[:60]}'")
        if number == 1 and fields[0].lower().replace(" ", "") in HEADERS:
            continue
        name, label = _stem(fields[0]), fields[1]
        if classes.setdefault(name, label) != label:
            raise UserError(f"{path}: line {number}: '{fields[0]}' has the classes '{classes[name]}' and '{label}'")
    return classes


def _fields(line: str) -> list[str]:
    if "\t" in line:
        return [field.strip() for field in line.split("\t")]
    if "," in line:
        try:
            name, label, *rest = (field.strip() for field in next(csv.reader([line])))
        except (csv.Error, ValueError):
            return []
        boxes = _BOXES.match(label)
        return [name, boxes[1] if boxes else label, *rest]
    return line.split(maxsplit=1) if not _BOXES.match(line.partition(" ")[2]) else line.split()


def _matched(path: Path, classes: dict[str, str], files: Sequence[StoredFile]) -> dict[str, str]:
    labels: dict[str, str] = {}
    missing = []
    for file in files:
        label = classes.get(_stem(file.path))
        if label is None:
            missing.append(file.path)
        else:
            labels[file.path] = label
    if missing:
        examples = ", ".join(missing[:3])
        raise UserError(f"{path}: has no label for {len(missing)} of {len(files)} images, e.g. {examples}")
    if len({_stem(file.path) for file in files}) < len(files):
        raise UserError(f"{path}: several images have one name; labels from a file need names of their own")
    return labels


def _numbered(path: Path, numbers: Sequence[int], files: Sequence[StoredFile]) -> dict[str, str]:
    """ILSVRC's ground truth: a number per image, in the order of the files' names; meta.mat says which class it is."""
    if len(numbers) != len(files):
        raise UserError(f"{path}: holds {len(numbers)} labels for {len(files)} images")
    wnids = _wnids(path)
    absent = sorted({number for number in numbers if number not in wnids})
    if absent:
        raise UserError(f"{path}: label {absent[0]} is not a class of meta.mat")
    ordered = sorted(files, key=lambda file: file.path)
    return {file.path: wnids[number] for file, number in zip(ordered, numbers, strict=True)}


def _wnids(path: Path) -> dict[int, str]:
    """ILSVRC2012_ID -> WordNet id, from the development kit's meta.mat next to the ground truth."""
    meta = next(
        (folder / "meta.mat" for folder in (path.parent, path.parent / "data") if (folder / "meta.mat").is_file()), None
    )
    if meta is None:
        raise UserError(
            f"{path}: its numbers are not in the order of the classes' names; put the development kit's meta.mat "
            "next to it, or give a file with the classes' names (Kaggle's LOC_val_solution.csv)"
        )
    from scipy.io import loadmat

    try:
        synsets = loadmat(BytesIO(meta.read_bytes()), squeeze_me=True)["synsets"]
        return {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    except Exception as error:  # scipy raises anything on a file that is not MATLAB's
        raise UserError(f"{meta}: not the development kit's meta.mat ({error})") from error


def _stem(path: str) -> str:
    """'val/images/val_0.JPEG' -> 'val_0'."""
    name = path.replace("\\", "/").rpartition("/")[2]
    return name.rpartition(".")[0] if has_image_name(name) else name
