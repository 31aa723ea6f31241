"""Writes datasets: images of a source, or of another dataset, as betons with a manifest, verified by reading back.

Everything is written into a hidden folder inside the dataset's folder and moved when it is complete, the manifest last:
an interrupted write never leaves an incomplete dataset. The next write removes the files of a killed one and starts
over; two writes into one folder at the same time are refused.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pretrain.data.betons.format import read_samples
from pretrain.data.betons.images import BadImage, WriteSettings, size_of
from pretrain.data.betons.manifest import MANIFEST, Manifest, read_manifest
from pretrain.data.betons.split_writer import Progress, SplitWriter, content_digest, in_order, quiet, read_digests
from pretrain.data.sources.open import open_source
from pretrain.data.sources.source import (
    ImageEntry,
    ImageSource,
    dataset_source,
    with_classes,
    with_per_class,
    with_validation,
    without_empty_splits,
)
from pretrain.data.statistics import Three, statistics_for
from whitebench.errors import UserError

ORIGINAL = WriteSettings()
"""Every image as it is."""
WRITING = ".writing"
"""The hidden folder inside a dataset's folder."""


def write_dataset(
    source: Path,
    folder: Path,
    *,
    splits: Mapping[str, str] | None = None,
    labels: Mapping[str, Path] | None = None,
    classes: Sequence[str] | None = None,
    val_fraction: float = 0.0,
    per_class: int | None = None,
    settings: WriteSettings = ORIGINAL,
    statistics: tuple[Three, Three] | None = None,
    workers: int = 1,
    skip_bad: bool = False,
    force: bool = False,
    progress: Progress = quiet,
) -> Manifest:
    """Writes `source` as the dataset `folder` (`$WHITEBENCH_DATA/<dataset>`, which may be `source`).

    Args:
        splits, labels, classes: see `sources.open.open_source`.
        val_fraction: share of the training images (of each class) that become the split val.
        per_class: at most this many images of each class in every split, see `sources.source.with_per_class`.
        statistics: mean and standard deviation of the channels, in 0..1; by default those usual for the dataset's name.
        skip_bad: images that do not decode are counted and left out; otherwise they are an error.
    Raises:
        UserError: nothing to write, an image that does not decode, the dataset exists already (without `force`).
    """
    _check_target(folder, force)
    images = open_source(source, splits, labels, classes)
    if val_fraction:
        images = with_validation(images, val_fraction)
    if per_class:
        images = with_per_class(images, per_class)
    return _write(images, folder, settings, statistics, workers, skip_bad, progress)


def write_subset(
    source: Manifest,
    folder: Path,
    classes: Sequence[str] | None,
    *,
    per_class: int | None = None,
    workers: int = 1,
    force: bool = False,
    progress: Progress = quiet,
) -> Manifest:
    """Writes some `classes` of a dataset (None: all), or some images of each, as another one; images keep their bytes.

    Classes are numbered in sorted order. `per_class`: see `sources.source.with_per_class`.
    """
    _check_target(folder, force)
    settings = WriteSettings(source.max_side, source.quality, source.raw)  # of the images as they are; none is changed
    images = dataset_source(source)
    if classes is not None:
        images = without_empty_splits(with_classes(images, classes))
    if per_class:
        images = with_per_class(images, per_class)
    return _write(images, folder, settings, (source.mean, source.std), workers, False, progress)


def verify_dataset(dataset: str | Path, *, workers: int = 1, progress: Progress = quiet) -> Manifest:
    """Reads every image of a dataset; raises `UserError` if one does not decode or differs from what was written."""
    manifest = read_manifest(dataset)
    with ThreadPoolExecutor(workers) as pool:
        for name, split in manifest.splits.items():
            samples = read_samples(manifest.beton(name))
            digests = read_digests(samples, pool, lambda *done, name=name: progress(f"verify {name}", *done))
            if content_digest(list(digests), samples.label.tolist()) != split.content_sha256:
                raise UserError(f"{samples.path}: its content differs from its manifest; write the dataset again")
    return manifest


def _check_target(folder: Path, force: bool) -> None:
    """Before anything is read: reading a large source takes minutes."""
    try:
        if (folder / MANIFEST).exists() and not force:
            raise UserError(f"{folder}: dataset exists; use --force to overwrite it")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: a file with the name of the dataset is in the way")
    except OSError as error:
        raise UserError(f"{folder}: cannot be used: {(error.strerror or str(error)).lower()}") from error


def _write(
    source: ImageSource,
    folder: Path,
    settings: WriteSettings,
    statistics: tuple[Three, Three] | None,
    workers: int,
    skip_bad: bool,
    progress: Progress,
) -> Manifest:
    mean, std = statistics or statistics_for(folder.name)
    with ThreadPoolExecutor(workers) as pool, _staging(folder, _bytes_needed(source, settings, pool)) as staging:
        splits = {
            name: SplitWriter(staging / f"{name}.beton", name, pool, progress).write(
                entries, settings, skip_bad, source.left_out.get(name, ())
            )
            for name, entries in source.splits.items()
        }
        manifest = Manifest(
            dataset=folder.name,
            folder=folder,
            classes=source.classes,
            splits=splits,
            max_side=settings.max_side,
            quality=settings.quality,
            source=source.path,
            source_splits=source.split_folders,
            mean=mean,
            std=std,
            raw=settings.raw,
            notes=source.notes,
        )
        (folder / MANIFEST).unlink(missing_ok=True)  # from here on the old dataset no longer exists
        for path in folder.glob("*.left_out.txt"):
            path.unlink()
        for path in staging.iterdir():
            os.replace(path, folder / path.name)
        manifest.write()
    return manifest


def _bytes_needed(source: ImageSource, settings: WriteSettings, pool: ThreadPoolExecutor) -> int:
    """At least what a write will take; of images that are reduced to JPEGs nobody knows before."""
    entries = [entry for split in source.splits.values() for entry in split]
    if all(entry.stored for entry in entries):
        return source.size
    if settings.raw:
        return sum(in_order(pool, lambda entry: _raw_size(entry, settings), entries, lambda *done: None))
    return 0 if settings.max_side else source.size


def _raw_size(entry: ImageEntry, settings: WriteSettings) -> int:
    try:
        height, width = size_of(entry.read(), settings.max_side)
    except BadImage:  # reported when it is to be written
        return 0
    return 3 * height * width


def _size(count: int) -> str:
    """12 kB, 3.4 MB, 5.6 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if count >= factor / 10:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1000:.0f} kB"


@contextmanager
def _staging(folder: Path, size: int) -> Iterator[Path]:
    """A hidden folder in `folder` with room for `size` bytes; removed afterwards, with `folder` if that was new.

    Raises:
        UserError: the disk is or becomes full, or nothing can be written there.
    """
    created = None
    try:
        created = _make_folders(folder)
        with _alone_in(folder):
            staging = folder / WRITING
            try:
                shutil.rmtree(staging, ignore_errors=True)  # of a write that was killed
                staging.mkdir()
                free = shutil.disk_usage(staging).free
                if size > free:
                    raise UserError(f"{folder}: at least {_size(size)} are needed, {_size(free)} are free on its disk")
                yield staging
            except BaseException:
                shutil.rmtree(created or staging, ignore_errors=True)
                raise
            staging.rmdir()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{folder}: no space left on the disk; nothing was written") from error
        if isinstance(error, FileExistsError | NotADirectoryError):
            raise UserError(f"{error.filename or folder}: a file is where a folder is needed") from error
        raise UserError(f"{error.filename or folder}: {(error.strerror or str(error)).lower()}") from error


def _make_folders(folder: Path) -> Path | None:
    """Creates `folder` and those above it; the first one that was new, or None."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return new[-1] if new else None


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """A lock on the folder itself, which ends with its holder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is writing this dataset") from error
        yield
    finally:
        os.close(handle)
