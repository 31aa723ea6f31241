"""What a dataset folder of $WHITEBENCH_DATA holds: `manifest.json` next to the betons."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.betons.format import check_length, read_samples
from pretrain.data.statistics import Three
from whitebench.errors import UserError, nearest
from whitebench.files import write_json
from whitebench.hashing import content_hash
from whitebench.records import data_root

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True)
class SplitRecord:
    """What was written of a split."""

    count: int
    beton: str
    """Name of its file in the dataset's folder."""
    content_sha256: str
    """Of the images' bytes and labels, in order."""
    changed: dict[str, int]
    """Images that do not hold their file's own bytes: how they differ, and how many."""
    skipped: int = 0
    """Files that did not decode and were left out."""
    left_out: dict[str, int] = field(default_factory=dict)
    """All that was left out: why, and how many; their names are in `left_out_list`."""
    unlabelled: int = 0
    """Images without a label, which are trained on and not evaluated."""
    rotated: int = 0
    """Images whose EXIF orientation is not applied (torchvision does not apply it, either)."""

    @property
    def files(self) -> str:
        """Name of the list of the images' files, `<class>/<file>`, one per line, in order."""
        return f"{Path(self.beton).stem}.files.txt"

    @property
    def left_out_list(self) -> str:
        """Name of the list of what was left out, a file and a reason per line."""
        return f"{Path(self.beton).stem}.left_out.txt"

    @property
    def record(self) -> dict[str, Any]:
        """The fields as JSON, without optional counts that are empty."""
        return {
            key: value
            for key, value in asdict(self).items()
            if value or key not in ("left_out", "unlabelled", "rotated")
        }


@dataclass(frozen=True)
class Manifest:
    dataset: str
    folder: Path
    classes: tuple[str, ...]
    splits: dict[str, SplitRecord]
    max_side: int | None
    quality: int
    source: str
    """What it was written from; where the `folder` loader looks if the dataset's own folder has no images."""
    source_splits: dict[str, str]
    """Folder of each split below `source`; "" is `source` itself."""
    mean: Three
    std: Three
    raw: bool = False
    """Whether all images are stored as pixels."""
    notes: tuple[str, ...] = ()
    """What `write` had to say about its classes and splits."""

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
            name: {key: value for key, value in split.record.items() if key != "beton"}
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

    def split(self, name: str) -> SplitRecord:
        """A split by its name; raises `UserError` if there is none."""
        if name not in self.splits:
            raise UserError(f"dataset '{self.dataset}' has no split '{name}'{nearest(name, self.splits)}")
        return self.splits[name]

    def beton(self, split: str) -> Path:
        """The complete beton of a split.

        Raises:
            UserError: it is missing or truncated.
        """
        path = self.folder / self.split(split).beton
        check_length(path)
        return path

    def file_names(self, split: str) -> list[str]:
        """The files of a split, `<class>/<file>`, in its order."""
        path = self.folder / self.split(split).files
        try:
            lines = path.read_bytes().decode(errors="surrogateescape").split("\n")[:-1]
            names = [json.loads(line) if line.startswith('"') else line for line in lines]
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: the list of the images' files is missing or damaged; write the dataset again"
            ) from error
        if len(names) != self.split(split).count:
            count = self.split(split).count
            raise UserError(f"{path}: names {len(names)} files for {count} images; write the dataset again")
        return names

    def labelled(self, split: str) -> NDArray[np.int64] | None:
        """Dataset indices of the images that have labels; None if all have."""
        if not self.split(split).unlabelled:
            return None
        return np.flatnonzero(read_samples(self.beton(split)).label >= 0)

    def write(self) -> None:
        """Writes the manifest into the dataset's folder."""
        content = {key: value for key, value in asdict(self).items() if key != "folder" and (value or key != "notes")}
        content["splits"] = {name: split.record for name, split in self.splits.items()}
        write_json(self.folder / MANIFEST, {"schema": SCHEMA, **content, "content_hash": self.content_hash})


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A text file of names, one per line; a name with a line break in it is written as JSON has it."""
    quoted = [json.dumps(line) if line.startswith('"') or "\n" in line or "\r" in line else line for line in lines]
    path.write_bytes("".join(f"{line}\n" for line in quoted).encode(errors="surrogateescape"))


def dataset_names() -> list[str]:
    """Of all datasets in $WHITEBENCH_DATA."""
    return sorted(path.parent.name for path in data_root().glob(f"*/{MANIFEST}"))


def read_manifest(dataset: str | Path) -> Manifest:
    """The manifest of a dataset of $WHITEBENCH_DATA, by its name, or of any dataset folder, by its `Path`.

    Raises:
        UserError: the dataset does not exist, or its manifest is damaged.
    """
    folder = dataset if isinstance(dataset, Path) else data_root() / dataset
    try:
        state = (folder / MANIFEST).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(_absent(folder.name, folder)) from error
    except (OSError, ValueError) as error:  # a name that is too long, or holds a null byte
        raise UserError(f"{folder}: cannot be read: {error}") from error
    return _read(folder, state.st_mtime_ns, state.st_size)


@lru_cache
def _read(folder: Path, modified: int, size: int) -> Manifest:
    """Read once per version of the file: a sweep asks several times per cell."""
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable manifest ({error}); write the dataset again") from error
    manifest = _parsed(raw, folder, path)
    if raw.get("content_hash") != manifest.content_hash:
        raise UserError(f"{path}: its content hash does not match its content; write the dataset again")
    return manifest


def _parsed(raw: Any, folder: Path, path: Path) -> Manifest:
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a manifest of schema {SCHEMA}; write the dataset again")
    try:
        optional = {"raw": False, "notes": ()}
        values = {
            column.name: raw.get(column.name, optional[column.name]) if column.name in optional else raw[column.name]
            for column in fields(Manifest)
            if column.name not in ("folder", "dataset")
        }
        values["splits"] = {name: SplitRecord(**split) for name, split in values["splits"].items()}
        for key in ("classes", "mean", "std", "notes"):
            values[key] = tuple(values[key])
        return Manifest(dataset=folder.name, folder=folder, **values)  # a folder that was renamed has a new name
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: an incomplete manifest ({error}); write the dataset again") from error


def _absent(dataset: str, folder: Path) -> str:
    if dataset == "sample":
        return f"{folder}: the built-in sample has not been made yet; create it with: python -m pretrain.data sample"
    names = dataset_names()
    hint = nearest(dataset, names) if names else f"; {data_root()} has no datasets yet"
    advice = f"Create it with: python -m pretrain.data write SOURCE {dataset}"
    return f"no dataset '{dataset}' in {folder.parent}{hint}. {advice}"
