"""Writes datasets: the images of a folder, or of another dataset, as betons with a manifest, verified by reading back.

Everything is written into a hidden folder beside its place and moved there when it is whole, the manifest last: whatever
stops a write, a dataset is there or it is not.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.data.beton_format import BetonWriter, page_size_for, read_samples
from pretrain.data.images import EXTENSIONS, BadImage, Prepared, WriteSettings, prepare
from pretrain.data.manifest import MANIFEST, Manifest, Split, Three, read_manifest, statistics_for
from results.command import UserError, nearest

Progress = Callable[[str, int, int], None]
"""Is told what is done, how many images are done and how many there are."""
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "test")}
"""Where the splits are looked for in a source."""


def quiet(what: str, done: int, total: int) -> None:
    """No progress shown."""


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
    """Where images come from: lists of items, all labels below len(classes)."""

    path: str
    classes: tuple[str, ...]
    splits: dict[str, list[Item]]
    split_folders: dict[str, str] = field(default_factory=dict)


def write_image_folder(
    source: Path,
    folder: Path,
    *,
    splits: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    val_fraction: float = 0.0,
    settings: WriteSettings = WriteSettings(),  # noqa: B008: immutable
    statistics: tuple[Three, Three] | None = None,
    workers: int = 1,
    skip_bad: bool = False,
    force: bool = False,
    progress: Progress = quiet,
) -> Manifest:
    """Writes the ImageFolder `source` as the dataset `folder` (`$WHITEBENCH_DATA/<dataset>`, which may be `source`).

    Args:
        splits: name to folder below `source`; by default train/ and val/ (or test/), else `source` itself is train.
        classes: only these, and they are numbered in sorted order.
        val_fraction: share of the training images (of each class) that become the split val.
        statistics: mean and standard deviation of the channels, in 0..1; by default those usual for the dataset's name.
        skip_bad: images that do not decode are counted and left out; otherwise they are an error.
    Raises:
        UserError: nothing to write, an image that does not decode, a dataset already there (without `force`).
    """
    images = image_folder(source, splits, classes)
    if val_fraction:
        images = _with_val(images, val_fraction)
    return _write(images, folder, settings, statistics, workers, skip_bad, force, progress)


def write_subset(
    source: Manifest, folder: Path, classes: Sequence[str], *, force: bool = False, workers: int = 1, progress: Progress = quiet
) -> Manifest:
    """Writes the images of some `classes` of a dataset as another dataset, numbered in sorted order; bytes stay as they are."""
    settings = WriteSettings(source.max_side, source.quality)
    statistics = (source.mean, source.std)
    return _write(_subset(source, classes), folder, settings, statistics, workers, False, force, progress)


def image_folder(source: Path, splits: Mapping[str, str] | None, classes: Sequence[str] | None) -> Source:
    """What an ImageFolder holds: `<split>/<class>/**/<image>`, classes and files sorted by name."""
    if not source.is_dir():
        raise UserError(f"{source}: there is no such folder")
    folders = dict(splits) if splits else _find_splits(source)
    found = {name: _classes_in(source / folder) for name, folder in folders.items()}
    every = sorted(set().union(*found.values()))
    chosen = chosen_classes(every, classes, source)
    items = {name: _items_in(source / folder, chosen) for name, folder in folders.items()}
    return Source(str(source.resolve()), chosen, items, folders)


def chosen_classes(every: Iterable[str], wanted: Sequence[str] | None, where: object) -> tuple[str, ...]:
    """The wanted classes, sorted; all where None."""
    every = sorted(every)
    for name in wanted or ():
        if name not in every:
            raise UserError(f"{where}: no class '{name}'{nearest(name, every)}")
    return tuple(sorted(set(wanted)) if wanted else every)


def _find_splits(source: Path) -> dict[str, str]:
    found = {
        split: next((name for name in names if (source / name).is_dir()), None) for split, names in SPLIT_FOLDERS.items()
    }
    splits = {split: name for split, name in found.items() if name is not None}
    if splits and "train" not in splits:
        raise UserError(f"{source}: has {splits['val']}/ but no train/; name the folders with --splits train=FOLDER ...")
    return splits or {"train": ""}


def _classes_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
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


def _with_val(source: Source, share: float) -> Source:
    """Moves a share of each class from train to val: the images whose names have the smallest hashes."""
    if "val" in source.splits:
        raise UserError(f"{source.path}: already has a split for validation; --val-fraction is for sources without one")
    val: set[str] = set()
    for label in range(len(source.classes)):
        names = [item.name for item in source.splits["train"] if item.label == label]
        names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        val.update(names[: round(share * len(names))])
    train = source.splits["train"]
    parts = {"train": [item for item in train if item.name not in val], "val": [item for item in train if item.name in val]}
    for name, part in parts.items():
        if not part:
            raise UserError(f"{source.path}: with --val-fraction {share} nothing is left for {name}")
    return Source(source.path, source.classes, parts, dict.fromkeys(parts, source.split_folders["train"]))


def _subset(source: Manifest, wanted: Sequence[str]) -> Source:
    classes = chosen_classes(source.classes, wanted, source.folder)
    new_label = {source.classes.index(name): label for label, name in enumerate(classes)}
    splits: dict[str, list[Item]] = {}
    for name, split in source.splits.items():
        samples = read_samples(source.beton(name))
        names = (source.folder / split.files).read_text().splitlines()
        file = samples.open()
        splits[name] = [
            Item(names[i], new_label[label], int(samples.size[i]), lambda i=i, s=samples, f=file: s.bytes_of(i, f))
            for i, label in enumerate(samples.label.tolist())
            if label in new_label
        ]
    return Source(source.source, classes, splits, dict(source.source_splits))


def _write(
    source: Source,
    folder: Path,
    settings: WriteSettings,
    statistics: tuple[Three, Three] | None,
    workers: int,
    skip_bad: bool,
    force: bool,
    progress: Progress,
) -> Manifest:
    if (folder / MANIFEST).exists() and not force:
        raise UserError(f"{folder}: this dataset is there already; --force writes it anew")
    mean, std = statistics or statistics_for(folder.name)
    with _workplace(folder, source) as place, ThreadPoolExecutor(workers) as pool:
        splits = {}
        for name, items in source.splits.items():
            writing = _SplitWriter(place / f"{name}.beton", name, pool, 4 * workers, progress)
            splits[name] = writing.write(items, settings, skip_bad)
        how = {"max_side": settings.max_side, "quality": settings.quality, "mean": mean, "std": std}
        origin = {"source": source.path, "source_splits": source.split_folders}
        manifest = Manifest(folder.name, folder, source.classes, splits, **how, **origin)
        (folder / MANIFEST).unlink(missing_ok=True)  # from here on the old dataset is no more
        for path in place.iterdir():
            os.replace(path, folder / path.name)
        manifest.write()
    return manifest


@contextmanager
def _workplace(folder: Path, source: Source) -> Iterator[Path]:
    """A hidden folder inside `folder` that is gone afterwards, and `folder` with it where it was not there before."""
    new = not folder.exists()
    place = folder / f".writing-{os.getpid()}"
    try:
        place.mkdir(parents=True)
        need, free = sum(item.size for items in source.splits.values() for item in items), shutil.disk_usage(place).free
        if need > free:
            raise UserError(f"{folder}: {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        yield place
    except BaseException:
        shutil.rmtree(folder if new else place, ignore_errors=True)
        raise
    place.rmdir()


class _SplitWriter:
    """Writes one split, and reads it back."""

    def __init__(self, path: Path, split: str, pool: ThreadPoolExecutor, ahead: int, progress: Progress) -> None:
        self.path, self.split, self.pool, self.ahead, self.progress = path, split, pool, ahead, progress
        self.digests: list[bytes] = []
        self.written: list[Item] = []
        self.skipped = 0
        self.changed: Counter[str] = Counter()

    def write(self, items: list[Item], settings: WriteSettings, skip_bad: bool) -> Split:
        content = hashlib.sha256()
        with BetonWriter(self.path, len(items), page_size_for(2 * max(item.size for item in items))) as writer:
            prepared = self._each(lambda item: self._prepared(item, settings, skip_bad), items, f"write {self.split}")
            for item, image in zip(items, prepared, strict=True):
                if image is None:
                    self.skipped += 1
                    continue
                writer.append(image.payload, image.height, image.width, item.label)
                self.digests.append(hashlib.sha256(image.payload).digest())
                content.update(self.digests[-1] + item.label.to_bytes(8, "little"))
                self.written.append(item)
                if image.change:
                    self.changed[image.change] += 1
        if not self.written:
            raise UserError(f"{self.split}: not one of {len(items)} images decodes")
        self._verify()
        split = Split(len(self.written), self.path.name, content.hexdigest(), dict(sorted(self.changed.items())), self.skipped)
        self.path.with_name(split.files).write_text("".join(f"{item.name}\n" for item in self.written))
        return split

    def _prepared(self, item: Item, settings: WriteSettings, skip_bad: bool) -> Prepared | None:
        try:
            return prepare(item.read(), settings)
        except BadImage as error:
            if skip_bad:
                return None
            raise UserError(
                f"{self.split}/{item.name}: does not decode ({error}); --skip-bad leaves such images out"
            ) from error

    def _verify(self) -> None:
        """Every image of the file decodes, has its label and the bytes that were meant."""
        samples = read_samples(self.path)
        if samples.label.tolist() != [item.label for item in self.written]:
            raise UserError(f"{self.path}: labels read back differ from those written")
        with samples.open() as file:

            def check(index: int) -> bool:
                data = samples.bytes_of(index, file)
                sound = prepare(data, WriteSettings()).change is None
                return sound and hashlib.sha256(data).digest() == self.digests[index]

            indices = range(len(samples))
            for index, sound in zip(indices, self._each(check, indices, f"verify {self.split}"), strict=True):
                if not sound:
                    raise UserError(f"{self.path}: {self.written[index].name} reads back differently than it was written")

    def _each(self, work: Callable[[Any], Any], items: Sequence[Any], what: str) -> Iterator[Any]:
        """`work` of each item in order, on the pool, only some items ahead so that memory stays bounded."""
        pending: list[Any] = []
        taken = iter(items)
        try:
            for done in range(len(items)):
                while len(pending) < self.ahead and (item := next(taken, _END)) is not _END:
                    pending.append(self.pool.submit(work, item))
                yield pending.pop(0).result()
                self.progress(what, done + 1, len(items))
        finally:
            for future in pending:
                future.cancel()


_END: Any = object()


def verify_dataset(dataset: str | Path, *, workers: int = 1, progress: Progress = quiet) -> Manifest:
    """Reads every image of a dataset and compares with its manifest; raises `UserError` at the first difference."""
    manifest = read_manifest(dataset)
    for name, split in manifest.splits.items():
        samples = read_samples(manifest.beton(name))
        content = hashlib.sha256()
        with samples.open() as file, ThreadPoolExecutor(workers) as pool:

            def digest(index: int) -> bytes:
                data = samples.bytes_of(index, file)  # noqa: B023: used within the iteration
                prepare(data, WriteSettings())
                return hashlib.sha256(data).digest()

            for index, value in enumerate(pool.map(digest, range(len(samples)))):
                content.update(value + int(samples.label[index]).to_bytes(8, "little"))
                progress(f"verify {name}", index + 1, len(samples))
        if content.hexdigest() != split.content_sha256:
            raise UserError(f"{manifest.folder}: {split.beton} does not hold what its manifest says; write it again")
    return manifest
