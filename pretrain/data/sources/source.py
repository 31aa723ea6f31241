"""The images of a dataset to be written: entries by split, their classes, and what is left out."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from pretrain.data.betons.format import read_samples
from pretrain.data.betons.images import Prepared
from pretrain.data.betons.manifest import Manifest
from pretrain.data.sources.class_lists import choose_classes
from pretrain.data.sources.files import LeftOut
from whitebench.errors import UserError

UNLABELLED = -1
"""The label of an image without one."""
EXAMPLES = 3
"""Names that a message gives of many."""


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image to be written."""

    name: str
    """`<class>/<file>`, by which lists name it."""
    label: int
    size: int
    """Bytes of the file, or an estimate."""
    read: Callable[[], bytes]
    """May raise `BadImage`."""
    stored: Callable[[bytes], Prepared] | None = None
    """Where the bytes come from a beton: they are copied."""


@dataclass(frozen=True)
class ImageSource:
    """Images by split. `classes` are numbered in their order here."""

    path: str
    classes: tuple[str, ...]
    splits: dict[str, list[ImageEntry]]
    split_folders: dict[str, str] = field(default_factory=dict)
    """Of each split, below `path`; empty where the images are not files of a folder."""
    left_out: dict[str, list[LeftOut]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the user should know, one line each."""

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entries in self.splits.values() for entry in entries)


def some(names: Sequence[str]) -> str:
    """'a, b, c, ...': a few names for a message."""
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")


def with_checked_classes(source: ImageSource) -> ImageSource:
    """The source, with a note on classes that a split lacks.

    Raises:
        UserError: a split is empty, or has images of classes that train lacks: no probe could ever name them.
    """
    for split, entries in source.splits.items():
        if not entries:
            raise UserError(
                f"{source.path}: the split {split} ({source.split_folders.get(split, split)}) has no images"
            )
    if "train" not in source.splits or not source.classes:
        return source
    present = {split: {entry.label for entry in entries} for split, entries in source.splits.items()}
    notes, every = list(source.notes), range(len(source.classes))
    empty = [source.classes[label] for label in every if not any(label in labels for labels in present.values())]
    if empty:
        notes.append(f"no image at all of {len(empty)} of {len(source.classes)} classes: {some(empty)}")
    for split, labels in present.items():
        if split == "train":
            continue
        extra = [source.classes[label] for label in sorted(labels - present["train"] - {UNLABELLED})]
        common = labels & present["train"] - {UNLABELLED}
        if extra and not common:
            raise UserError(
                f"{source.path}: the {split} split has none of train's classes (its own: {some(extra)}); if a file "
                f"holds its labels, name it: --labels {split}=FILE"
            )
        if extra:
            raise UserError(
                f"{source.path}: train has no image of {len(extra)} of {split}'s {len(labels)} classes: {some(extra)}; "
                "add them, or choose the classes with --classes FILE"
            )
        missing = [source.classes[label] for label in sorted(present["train"] - labels - {UNLABELLED})]
        if missing:
            count = len(present["train"] - {UNLABELLED})
            notes.append(f"{split} has no image of {len(missing)} of train's {count} classes: {some(missing)}")
    return replace(source, notes=tuple(notes))


def with_validation(source: ImageSource, share: float) -> ImageSource:
    """Moves a share of each class from train to val: the images whose names have the smallest hashes."""
    if "val" in source.splits:
        raise UserError(f"{source.path}: has a validation split; --val-fraction is for sources without one")
    if not source.classes:
        raise UserError(f"{source.path}: its images have no labels; --val-fraction needs them")
    val: set[str] = set()
    for names in _shuffled_names(source, "train"):
        val.update(names[: round(share * len(names))])
    parts: dict[str, list[ImageEntry]] = {"train": [], "val": []}
    for entry in source.splits["train"]:
        parts["val" if entry.name in val else "train"].append(entry)
    for name, part in parts.items():
        if not part:
            raise UserError(f"{source.path}: with --val-fraction {share} nothing is left for {name}")
    folders = dict.fromkeys(parts, source.split_folders["train"]) if source.split_folders else {}
    return replace(source, splits=parts, split_folders=folders)


def with_per_class(source: ImageSource, per_class: int) -> ImageSource:
    """At most `per_class` images of each class in every split: those whose names have the smallest hashes."""
    splits = {}
    for split, entries in source.splits.items():
        chosen = {name for names in _shuffled_names(source, split) for name in names[:per_class]}
        splits[split] = [entry for entry in entries if entry.name in chosen or entry.label == UNLABELLED]
    return replace(source, splits=splits)


def with_classes(source: ImageSource, lines: Sequence[str]) -> ImageSource:
    """Only the classes that the `lines` of a list name, numbered in sorted order; unlabelled images stay.

    Raises:
        UserError: a line names no class.
    """
    chosen = choose_classes(source.classes, lines, source.path)
    label_of = {source.classes.index(name): label for label, name in enumerate(chosen)}
    label_of[UNLABELLED] = UNLABELLED
    splits = {
        split: [replace(entry, label=label_of[entry.label]) for entry in entries if entry.label in label_of]
        for split, entries in source.splits.items()
    }
    return replace(source, classes=chosen, splits=splits)


def dataset_source(manifest: Manifest) -> ImageSource:
    """The images of a dataset, with the bytes that its betons hold."""
    splits = {}
    for split in manifest.splits:
        samples, names = read_samples(manifest.beton(split)), manifest.file_names(split)
        file = samples.open()
        splits[split] = [
            ImageEntry(
                name=names[index],
                label=int(samples.label[index]),
                size=int(samples.size[index]),
                read=partial(samples.bytes_of, index, file),
                stored=partial(
                    Prepared,
                    height=int(samples.height[index]),
                    width=int(samples.width[index]),
                    change=None,
                    mode=int(samples.mode[index]),
                ),
            )
            for index in range(len(samples))
        ]
    return ImageSource(manifest.source, manifest.classes, splits, dict(manifest.source_splits))


def without_empty_splits(source: ImageSource) -> ImageSource:
    """Splits other than train that a choice of classes has left empty are dropped, with a note."""
    empty = [name for name, entries in source.splits.items() if not entries]
    if "train" in empty or len(empty) == len(source.splits):
        raise UserError(f"{source.path}: no image of the chosen classes in {' or '.join(empty)}")
    notes = [f"{name}: left out, it has no image of the chosen classes" for name in empty]
    splits = {name: entries for name, entries in source.splits.items() if entries}
    return replace(source, splits=splits, notes=(*source.notes, *notes))


def _shuffled_names(source: ImageSource, split: str) -> Iterator[list[str]]:
    """The names of each class's images in a split, by their hashes: an order as good as random, always the same."""
    by_label: list[list[str]] = [[] for _ in source.classes]
    for entry in source.splits[split]:
        if entry.label != UNLABELLED:
            by_label[entry.label].append(entry.name)
    for names in by_label:
        # a name that is not UTF-8 is hashed by the bytes that it has on disk
        yield sorted(names, key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).digest())
