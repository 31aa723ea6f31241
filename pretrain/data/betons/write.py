"""Writes datasets: images of a folder, or of another dataset, as betons with a manifest, verified by reading back.

Everything is written into a hidden folder inside its place and moved when it is whole, the manifest last: whatever
stops a write, a dataset is there or it is not. What a killed write left is cleared away by the next, which starts anew;
two at once into one place are refused.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pretrain.data.betons.format import read_samples
from pretrain.data.betons.images import WriteSettings
from pretrain.data.betons.manifest import MANIFEST, Manifest, Three, read_manifest, statistics_for
from pretrain.data.betons.sources import Source, image_folder, reduced, subset, with_validation
from pretrain.data.betons.split_writer import Progress, SplitWriter, content_digest, quiet, read_digests
from whitebench.errors import UserError

ORIGINAL = WriteSettings()
"""Every image as it is."""
WRITING = ".writing"
"""The hidden folder inside a dataset's place."""


def write_image_folder(
    source: Path,
    folder: Path,
    *,
    splits: Mapping[str, str] | None = None,
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
    """Writes the ImageFolder `source` as the dataset `folder` (`$WHITEBENCH_DATA/<dataset>`, which may be `source`).

    Args:
        splits, classes: see `sources.image_folder`.
        val_fraction: share of the training images (of each class) that become the split val.
        per_class: at most so many images of each class in every split, see `sources.reduced`.
        statistics: mean and standard deviation of the channels, in 0..1; by default those usual for the dataset's name.
        skip_bad: images that do not decode are counted and left out; otherwise they are an error.
    Raises:
        UserError: nothing to write, an image that does not decode, a dataset already there (without `force`).
    """
    images = image_folder(source, splits, classes)
    if val_fraction:
        images = with_validation(images, val_fraction)
    if per_class:
        images = reduced(images, per_class)
    return _write(images, folder, settings, statistics, workers, skip_bad, force, progress)


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

    Classes are numbered in sorted order. `per_class`: see `sources.reduced`.
    """
    if source.raw:
        raise UserError(
            f"{source.folder}: holds raw pixels; python -m pretrain.data write {source.source} {folder.name} "
            "--raw --classes FILE makes a subset from the images"
        )
    settings = WriteSettings(source.max_side, source.quality)  # nothing is left to reduce, but the manifest says it
    statistics = (source.mean, source.std)
    images = subset(source, source.classes if classes is None else classes)
    if per_class:
        images = reduced(images, per_class)
    return _write(images, folder, settings, statistics, workers, False, force, progress)


def verify_dataset(dataset: str | Path, *, workers: int = 1, progress: Progress = quiet) -> Manifest:
    """Reads every image of a dataset; raises `UserError` where one does not decode or is not what the manifest says."""
    manifest = read_manifest(dataset)
    with ThreadPoolExecutor(workers) as pool:
        for name, split in manifest.splits.items():
            samples = read_samples(manifest.beton(name))
            digests = read_digests(samples, pool, lambda *done, name=name: progress(f"verify {name}", *done))
            if content_digest(list(digests), samples.label.tolist()) != split.content_sha256:
                raise UserError(f"{samples.path}: does not hold what its manifest says; write the dataset again")
    return manifest


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
    with _workplace(folder, source.size) as place, ThreadPoolExecutor(workers) as pool:
        splits = {
            name: SplitWriter(place / f"{name}.beton", name, pool, progress).write(items, settings, skip_bad)
            for name, items in source.splits.items()
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
        )
        (folder / MANIFEST).unlink(missing_ok=True)  # from here on an old dataset is no more
        for path in place.iterdir():
            os.replace(path, folder / path.name)
        manifest.write()
    return manifest


@contextmanager
def _workplace(folder: Path, size: int) -> Iterator[Path]:
    """A hidden folder in `folder` with room for `size` bytes; gone afterwards, and `folder` with it if that was new."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / WRITING
    with _alone_in(folder):
        try:
            shutil.rmtree(place, ignore_errors=True)  # of a write that was killed
            place.mkdir()
            free = shutil.disk_usage(place).free
            if size > free:
                raise UserError(f"{folder}: {size / 1e9:.1f} GB are needed there, {free / 1e9:.1f} GB are free")
            yield place
        except BaseException:
            shutil.rmtree(folder if new else place, ignore_errors=True)
            raise
        place.rmdir()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """A lock on the folder itself, which dies with its holder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is writing this dataset") from error
        yield
    finally:
        os.close(handle)
