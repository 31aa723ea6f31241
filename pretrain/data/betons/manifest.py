"""What a dataset folder of $WHITEBENCH_DATA holds: `manifest.json` beside the betons."""

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pretrain.data.betons.format import check_length
from whitebench.errors import UserError, nearest
from whitebench.files import write_json
from whitebench.hashing import content_hash
from whitebench.records import data_root

MANIFEST = "manifest.json"
SCHEMA = 1
Three = tuple[float, float, float]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STATISTICS: dict[str, tuple[Three, Three]] = {
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "stl": ((0.43, 0.42, 0.39), (0.27, 0.26, 0.27)),
    "tiny": ((0.480, 0.448, 0.398), (0.277, 0.269, 0.282)),
}
"""Mean and standard deviation of the channels, in 0..1, as the papers' code has them; all others as ImageNet."""


@dataclass(frozen=True)
class Split:
    count: int
    beton: str
    """Name of its file in the dataset's folder."""
    content_sha256: str
    """Of the images' bytes and labels, in order."""
    changed: dict[str, int]
    """Images that do not hold their file's own bytes: why, and how many."""
    skipped: int = 0
    """Files that did not decode and were left out."""

    @property
    def files(self) -> str:
        """Name of the list of the images' files, `<class>/<file>` a line, in order."""
        return f"{Path(self.beton).stem}.files.txt"


@dataclass(frozen=True)
class Manifest:
    dataset: str
    folder: Path
    classes: tuple[str, ...]
    splits: dict[str, Split]
    max_side: int | None
    quality: int
    source: str
    """The ImageFolder it was made from; where the `folder` loader looks if the dataset's own folder has no images."""
    source_splits: dict[str, str]
    """Folder of each split below `source`; "" is `source` itself."""
    mean: Three
    std: Three
    raw: bool = False
    """Whether pixels are kept in place of JPEGs."""

    @cached_property
    def content_hash(self) -> str:
        """Of the images, labels, order, and how they were written and are normalised; not of files, paths or names."""
        images = {name: [split.count, split.content_sha256] for name, split in self.splits.items()}
        how = {"max_side": self.max_side, "quality": self.quality, "mean": self.mean, "std": self.std}
        return content_hash({"splits": images, **how, **({"raw": True} if self.raw else {})})

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What a record says of its data: source (its name alone), counts, hashes, how it was written."""
        splits = {
            name: {key: value for key, value in asdict(split).items() if key != "beton"}
            for name, split in self.splits.items()
        }
        return {
            "dataset": self.dataset,
            "source": Path(self.source).name,
            "classes": len(self.classes),
            "splits": splits,
            "written": {"max_side": self.max_side, "quality": self.quality, "raw": self.raw},
            "normalised": {"mean": self.mean, "std": self.std},
            "content_hash": self.content_hash,
        }

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise UserError(f"dataset '{self.dataset}' has no split '{name}'{nearest(name, self.splits)}")
        return self.splits[name]

    def beton(self, split: str) -> Path:
        """The beton of a split, whole.

        Raises:
            UserError: it is missing or cut short.
        """
        path = self.folder / self.split(split).beton
        check_length(path)
        return path

    def file_names(self, split: str) -> list[str]:
        """The files of a split, `<class>/<file>`, in its order."""
        path = self.folder / self.split(split).files
        try:
            names = path.read_text(errors="surrogateescape").split("\n")[:-1]
        except FileNotFoundError as error:
            raise UserError(f"{path}: the list of the images' files is missing; write the dataset again") from error
        if len(names) != self.split(split).count:
            count = self.split(split).count
            raise UserError(f"{path}: names {len(names)} files for {count} images; write the dataset again")
        return names

    def write(self) -> None:
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_json(self.folder / MANIFEST, {"schema": SCHEMA, **content, "content_hash": self.content_hash})


def statistics_for(dataset: str) -> tuple[Three, Three]:
    return next((value for name, value in STATISTICS.items() if dataset.lower().startswith(name)), IMAGENET)


def dataset_names() -> list[str]:
    return sorted(path.parent.name for path in data_root().glob(f"*/{MANIFEST}"))


def read_manifest(dataset: str | Path) -> Manifest:
    """The manifest of a dataset of $WHITEBENCH_DATA, by its name, or of any dataset folder, by its `Path`.

    Raises:
        UserError: there is no such dataset, or its manifest is damaged.
    """
    folder = dataset if isinstance(dataset, Path) else data_root() / dataset
    try:
        state = (folder / MANIFEST).stat()
    except FileNotFoundError as error:
        raise UserError(_absent(folder.name, folder)) from error
    return _read(folder, state.st_mtime_ns, state.st_size)


@lru_cache
def _read(folder: Path, modified: int, size: int) -> Manifest:
    """Once while the file stays as it is: a sweep asks several times a cell."""
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable manifest ({error}); write the dataset again") from error
    manifest = _parsed(raw, folder, path)
    if raw.get("content_hash") != manifest.content_hash:
        raise UserError(f"{path}: its content hash does not fit its content; write the dataset again")
    return manifest


def _parsed(raw: Any, folder: Path, path: Path) -> Manifest:
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a manifest of schema {SCHEMA}; write the dataset again")
    try:
        known = {field.name: raw[field.name] for field in fields(Manifest) if field.name not in ("folder", "raw")}
        known["raw"] = raw.get("raw", False)  # manifests of before know JPEGs only
        known["splits"] = {name: Split(**split) for name, split in known["splits"].items()}
        for key in ("classes", "mean", "std"):
            known[key] = tuple(known[key])
        return Manifest(folder=folder, **known)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a whole manifest ({error}); write the dataset again") from error


def _absent(dataset: str, folder: Path) -> str:
    if dataset == "sample":
        return f"{folder}: the built-in sample is not there yet; python -m pretrain.data sample makes it"
    there = dataset_names()
    known = nearest(dataset, there) if there else f"; {data_root()} holds none yet"
    return f"no dataset '{dataset}' in {folder.parent}{known}. python -m pretrain.data write SOURCE {dataset} makes one"
