"""CIFAR-10, CIFAR-100 and STL-10 as their sites ship them: pickles and binaries of uint8 pixels."""

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.data.sources.files import FileTree, StoredFile
from pretrain.data.sources.source import UNLABELLED, ImageEntry, ImageSource
from whitebench.errors import UserError

CIFAR_SIDE, STL_SIDE = 32, 96
Pixels = NDArray[np.uint8]
_Arrays = tuple[Pixels, list[int]]
"""Images [N, H, W, 3] and a label each."""


@dataclass(frozen=True)
class _Format:
    """Files of one of these datasets: a pattern of names per split, and their reader."""

    files: dict[str, tuple[str, ...]]
    read: Callable[[StoredFile], _Arrays]
    names_file: str
    """Holds the names of the classes."""
    classes: int


def array_source(tree: FileTree) -> ImageSource | None:
    """The images, if the tree holds one of these datasets; else None.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    by_folder: dict[str, dict[str, StoredFile]] = {}
    for file in tree.others:
        folder, _, name = file.path.rpartition("/")
        by_folder.setdefault(folder, {})[name] = file
    for files in by_folder.values():
        if "train_X.bin" in files or "unlabeled_X.bin" in files:
            return _stl(tree, files)
        for kind in _formats():
            if any(name in files for names in kind.files.values() for name in names) and _fits(kind, files):
                return _cifar(tree, files, kind)
    return None


def _formats() -> list[_Format]:
    batches = tuple(f"data_batch_{number}" for number in range(1, 6))
    binaries = tuple(f"{name}.bin" for name in batches)
    return [
        _Format({"train": batches, "val": ("test_batch",)}, partial(_pickled, key="labels"), "batches.meta", 10),
        _Format({"train": binaries, "val": ("test_batch.bin",)}, partial(_binary, skip=0), "batches.meta.txt", 10),
        _Format({"train": ("train",), "val": ("test",)}, partial(_pickled, key="fine_labels"), "meta", 100),
        _Format({"train": ("train.bin",), "val": ("test.bin",)}, partial(_binary, skip=1), "fine_label_names.txt", 100),
    ]


def _fits(kind: _Format, files: dict[str, StoredFile]) -> bool:
    """CIFAR-100's files have common names: its list of classes must be next to them."""
    return kind.classes == 10 or kind.names_file in files


def _cifar(tree: FileTree, files: dict[str, StoredFile], kind: _Format) -> ImageSource:
    missing = [name for names in kind.files.values() for name in names if name not in files]
    if missing:
        raise UserError(f"{tree.root}: CIFAR-{kind.classes}'s file {missing[0]} is missing")
    classes = _class_names(files.get(kind.names_file), kind.classes)
    splits = {}
    for split, names in kind.files.items():
        entries: list[ImageEntry] = []
        for name in names:
            pixels, labels = _checked(kind.read, files[name], kind.classes)
            entries += _entries(pixels, labels, classes, first=len(entries))
        splits[split] = entries
    return ImageSource(str(tree.root.resolve()), classes, splits)


def _stl(tree: FileTree, files: dict[str, StoredFile]) -> ImageSource:
    """STL-10. Its unlabelled images belong to the training split: they are what self-supervised methods train on."""
    classes = _class_names(files.get("class_names.txt"), 10)
    splits: dict[str, list[ImageEntry]] = {}
    for split, prefix in (("train", "train"), ("train", "unlabeled"), ("val", "test")):
        if f"{prefix}_X.bin" not in files:
            if prefix == "train":
                raise UserError(f"{tree.root}: STL-10's file train_X.bin is missing")
            continue
        pixels = _stl_pixels(files[f"{prefix}_X.bin"])
        labels = [UNLABELLED] * len(pixels)
        if prefix != "unlabeled":
            if f"{prefix}_y.bin" not in files:
                raise UserError(f"{tree.root}: STL-10's file {prefix}_y.bin is missing")
            labels = [value - 1 for value in _read(files[f"{prefix}_y.bin"])]  # 1 is the first class
            _check_labels(files[f"{prefix}_y.bin"], labels, len(pixels), 10)
        before = splits.setdefault(split, [])
        before += _entries(pixels, labels, classes, first=len(before))
    return ImageSource(str(tree.root.resolve()), classes, splits)


def _stl_pixels(file: StoredFile) -> Pixels:
    data = np.frombuffer(_read(file), np.uint8)
    if len(data) == 0 or len(data) % (3 * STL_SIDE**2):
        raise UserError(f"{file.path}: damaged: {len(data)} bytes are not images of 3 x {STL_SIDE} x {STL_SIDE}")
    # a channel after the other, each in columns
    return data.reshape(-1, 3, STL_SIDE, STL_SIDE).transpose(0, 3, 2, 1)


def _entries(pixels: Pixels, labels: Sequence[int], classes: Sequence[str], first: int) -> list[ImageEntry]:
    names = [classes[label] if label != UNLABELLED else "unlabeled" for label in labels]
    return [
        ImageEntry(f"{name}/{number:06d}", label, pixels[0].size, partial(_png, pixels, number - first))
        for number, (name, label) in enumerate(zip(names, labels, strict=True), start=first)
    ]


def _png(pixels: Pixels, index: int) -> bytes:
    out = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[index])).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _checked(read: Callable[[StoredFile], _Arrays], file: StoredFile, classes: int) -> _Arrays:
    try:
        pixels, labels = read(file)
    except UserError:
        raise
    except Exception as error:  # unpickling strangers' bytes raises anything
        raise UserError(f"{file.path}: damaged, or not a file of CIFAR-{classes} ({error})") from error
    _check_labels(file, labels, len(pixels), classes)
    return pixels, labels


def _check_labels(file: StoredFile, labels: Sequence[int], count: int, classes: int) -> None:
    if len(labels) != count or not all(0 <= label < classes for label in labels):
        raise UserError(f"{file.path}: damaged: its labels are not {count} numbers of {classes} classes")


def _binary(file: StoredFile, skip: int) -> _Arrays:
    """Records of a label (after `skip` others) and pixels."""
    data, record = np.frombuffer(_read(file), np.uint8), skip + 1 + 3 * CIFAR_SIDE**2
    if len(data) == 0 or len(data) % record:
        raise UserError(f"{file.path}: damaged: {len(data)} bytes are not records of {record}")
    rows = data.reshape(-1, record)
    return _planes(rows[:, skip + 1 :]), rows[:, skip].tolist()


def _pickled(file: StoredFile, key: str) -> _Arrays:
    content = _unpickled(_read(file))
    return _planes(np.asarray(content["data"], np.uint8)), [int(label) for label in content[key]]


def _planes(rows: Pixels) -> Pixels:
    return rows.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1)


def _class_names(file: StoredFile | None, count: int) -> tuple[str, ...]:
    """From the dataset's own list; numbers without one."""
    if file is None:
        return tuple(f"{number:0{len(str(count - 1))}d}" for number in range(count))
    data = _read(file)
    try:
        if file.path.endswith(".txt"):
            names = data.decode().split()
        else:
            content = _unpickled(data)
            names = [str(name) for name in content.get("label_names") or content["fine_label_names"]]
    except Exception as error:  # as in `_checked`
        raise UserError(f"{file.path}: damaged ({error})") from error
    if len(names) != count or len(set(names)) != count or any("/" in name for name in names):
        raise UserError(f"{file.path}: damaged: names {len(names)} classes of {count}")
    return tuple(names)


class _Unpickler(pickle.Unpickler):
    """Arrays and plain values alone: a pickle may otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        safe = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
        if module.partition(".")[0] == "numpy" and name in safe:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not data")


def _unpickled(data: bytes) -> dict[str, Any]:
    content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    if not isinstance(content, dict):
        raise ValueError("not a table")
    return content


def _read(file: StoredFile) -> bytes:
    from pretrain.data.betons.images import BadImage

    try:
        return file.read()
    except BadImage as error:
        raise UserError(f"{file.path}: {error}") from error
