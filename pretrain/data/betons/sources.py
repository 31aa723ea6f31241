"""What there is to write: the images of an ImageFolder, or some classes of a dataset."""

import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pretrain.data.betons.format import read_samples
from pretrain.data.betons.images import EXTENSIONS
from pretrain.data.betons.manifest import Manifest
from whitebench.errors import UserError, nearest

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "test")}
"""Where the splits are looked for."""


@dataclass(frozen=True)
class Item:
    """An image to be written."""

    name: str
    """`<class>/<file>` below the split's folder."""
    label: int
    size: int
    """Bytes of the file."""
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Source:
    path: str
    classes: tuple[str, ...]
    splits: dict[str, list[Item]]
    split_folders: dict[str, str] = field(default_factory=dict)
    """Of each split, below `path`."""

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(item.size for items in self.splits.values() for item in items)


def image_folder(folder: Path, splits: Mapping[str, str] | None, classes: Sequence[str] | None) -> Source:
    """What an ImageFolder holds: `<split>/<class>/**/<image>`, classes and files sorted by name.

    Args:
        splits: name to folder; None finds train/ and val/ (or test/), or takes `folder` itself as train.
        classes: only these; None takes all.
    Raises:
        UserError: a folder, its classes or its images are not there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    folders = dict(splits) if splits else _find_splits(folder)
    every = set().union(*(_classes_in(folder / below) for below in folders.values()))
    chosen = _chosen(every, classes, folder)
    items = {name: _items_in(folder / below, chosen) for name, below in folders.items()}
    return Source(str(folder.resolve()), chosen, items, folders)


def with_validation(source: Source, share: float) -> Source:
    """Moves a share of each class from train to val: the images whose names have the smallest hashes."""
    if "val" in source.splits:
        raise UserError(f"{source.path}: has a validation split; --val-fraction is for sources without one")
    val: set[str] = set()
    for names in _shuffled_names(source, "train"):
        val.update(names[: round(share * len(names))])
    parts: dict[str, list[Item]] = {"train": [], "val": []}
    for item in source.splits["train"]:
        parts["val" if item.name in val else "train"].append(item)
    for name, part in parts.items():
        if not part:
            raise UserError(f"{source.path}: with --val-fraction {share} nothing is left for {name}")
    return Source(source.path, source.classes, parts, dict.fromkeys(parts, source.split_folders["train"]))


def subset(manifest: Manifest, classes: Sequence[str]) -> Source:
    """Some classes of a dataset, numbered in sorted order."""
    chosen = _chosen(manifest.classes, classes, manifest.folder)
    label_of = {manifest.classes.index(name): label for label, name in enumerate(chosen)}
    splits = {}
    for split in manifest.splits:
        samples, names = read_samples(manifest.beton(split)), manifest.file_names(split)
        file = samples.open()
        splits[split] = [
            Item(names[i], label_of[label], size, partial(_part, file, place, size))
            for i, (label, place, size) in enumerate(
                zip(samples.label.tolist(), samples.offset.tolist(), samples.size.tolist())
            )
            if label in label_of
        ]
    return Source(manifest.source, chosen, splits, dict(manifest.source_splits))


def reduced(source: Source, per_class: int) -> Source:
    """At most `per_class` images of each class in every split: those whose names have the smallest hashes."""
    splits = {}
    for split, items in source.splits.items():
        kept = {name for names in _shuffled_names(source, split) for name in names[:per_class]}
        splits[split] = [item for item in items if item.name in kept]
    return replace(source, splits=splits)


def _shuffled_names(source: Source, split: str) -> Iterator[list[str]]:
    """The names of each class's images in a split, by their hashes: an order as good as drawn, always the same."""
    for label in range(len(source.classes)):
        names = [item.name for item in source.splits[split] if item.label == label]
        yield sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def _part(file: mmap.mmap, place: int, size: int) -> bytes:
    return file[place : place + size]


def _chosen(every: Iterable[str], wanted: Sequence[str] | None, where: Path) -> tuple[str, ...]:
    """The wanted classes, sorted; all where None."""
    every = set(every)
    for name in wanted or ():
        if name not in every:
            raise UserError(f"{where}: no class '{name}'{nearest(name, every)}")
    return tuple(sorted(every if wanted is None else set(wanted)))


def _find_splits(folder: Path) -> dict[str, str]:
    splits = {}
    for split, names in SPLIT_FOLDERS.items():
        found = [name for name in names if (folder / name).is_dir()]
        if found:
            splits[split] = found[0]
    if splits and "train" not in splits:
        raise UserError(
            f"{folder}: has {splits['val']}/ but no train/; name the folders with --splits train=FOLDER ..."
        )
    return splits or {"train": ""}


def _classes_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    classes = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    if not classes:
        raise UserError(f"{folder}: has no folders of classes; an ImageFolder is <split>/<class>/<image>")
    return classes


def _items_in(folder: Path, classes: Sequence[str]) -> list[Item]:
    items = [
        Item(path.relative_to(folder).as_posix(), label, path.stat().st_size, path.read_bytes)
        for label, name in enumerate(classes)
        for path in _images_below(folder / name)
    ]
    if not items:
        raise UserError(f"{folder}: holds no images ({', '.join(EXTENSIONS)})")
    return items


def _images_below(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(where) / name
