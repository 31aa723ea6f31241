"""Parquet files of images, as Hugging Face's datasets ship them: a column of encoded images and one of labels."""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.data.betons.images import BadImage
from pretrain.data.sources.source import UNLABELLED, ImageEntry
from whitebench.errors import UserError

IMAGE_COLUMNS = ("image", "img", "images", "picture", "photo", "png", "jpg", "jpeg", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls")
CACHED_ROW_GROUPS = 4
"""Row groups in memory: one is being read by several threads, and the next is begun by some of them."""


@dataclass(frozen=True)
class ParquetSplit:
    """A split's images, and the names of their classes."""

    classes: tuple[str, ...]
    entries: list[ImageEntry]


def read_parquet(paths: Sequence[Path]) -> ParquetSplit:
    """The images of a split's files, in order. Their bytes are read when they are asked for.

    Raises:
        UserError: pyarrow is missing; a file is not Parquet, or has no column of images; the files disagree.
    """
    parts = [_Table(path) for path in paths]
    stated = next((part.class_names for part in parts if part.class_names), None)
    if any(part.class_names not in (None, stated) for part in parts):
        raise UserError(f"{paths[0].parent}: the Parquet files name different classes")
    labels = [part.labels() for part in parts]
    values = [value for part in labels if part is not None for value in part if value is not None]
    names = _names_of(values, paths[0]) if stated is None else list(stated)
    number = {name: label for label, name in enumerate(names)}
    entries = []
    for part, column in zip(parts, labels, strict=True):
        for row in range(part.rows):
            value = None if column is None else column[row]
            label = _label(value, number, part.path)
            group = names[label] if label != UNLABELLED else "unlabeled"
            name = f"{group}/{part.path.stem}-{row:06d}"
            entries.append(ImageEntry(name, label, part.bytes_per_row, _Cell(part, row)))
    return ParquetSplit(tuple(names) if values else (), entries)


def _names_of(values: Sequence[Any], path: Path) -> list[str]:
    """Class names where the file has none: the labels themselves, numbers in their order."""
    kinds = {type(value) for value in values}
    if not kinds <= {int} and not kinds <= {str}:
        raise UserError(f"{path}: its labels are neither whole numbers nor names")
    if kinds == {int}:
        top = max(values)
        if min(values) < -1 or top >= 1 << 20:
            raise UserError(f"{path}: labels from {min(values)} to {top}; class numbers start from 0")
        width = len(str(top))
        return [f"{number:0{width}d}" for number in range(top + 1)]
    return sorted(set(values))


def _label(value: Any, number: dict[str, int], path: Path) -> int:
    """-1 and nothing at all are how a test split hides its labels."""
    if value is None or value == -1:
        return UNLABELLED
    label = number.get(value, -1) if isinstance(value, str) else value
    if not isinstance(label, int) or not 0 <= label < len(number):
        raise UserError(f"{path}: label {value!r} is not one of its {len(number)} classes")
    return label


@dataclass(frozen=True, slots=True)
class _Cell:
    """An image of a table, read when it is called."""

    table: "_Table"
    row: int

    def __call__(self) -> bytes:
        return self.table.image(self.row)


class _Table:
    """One Parquet file."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise UserError(f"{path}: reading Parquet files needs pyarrow: pip install pyarrow") from error
        self.path = path
        try:
            self.file: Any = parquet.ParquetFile(path)
            schema = self.file.schema_arrow
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
        except Exception as error:  # pyarrow has many
            raise UserError(f"{path}: not a readable Parquet file ({error})") from error
        self.columns = {field.name: str(field.type) for field in schema}
        self.rows = int(self.file.metadata.num_rows)
        self.image_column = self._image_column()
        self.label_column = next((name for name in LABEL_COLUMNS if name in self.columns), None)
        self.class_names = self._class_names(schema.metadata or {})
        groups = [self.file.metadata.row_group(group) for group in range(self.file.num_row_groups)]
        self.bytes_per_row = max([1, *(group.total_byte_size // max(1, group.num_rows) for group in groups)])
        self._starts = [sum(group.num_rows for group in groups[:n]) for n in range(len(groups) + 1)]
        self._cache: OrderedDict[int, list[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def labels(self) -> list[Any] | None:
        """The column of labels, if there is one."""
        if self.label_column is None:
            return None
        return list(self._read(columns=[self.label_column])[self.label_column])

    def image(self, row: int) -> bytes:
        """The encoded image of a row."""
        group = next(group for group, start in enumerate(self._starts[1:]) if row < start)
        with self._lock:
            if group not in self._cache:
                self._cache[group] = self._read(columns=[self.image_column], row_groups=[group])[self.image_column]
                if len(self._cache) > CACHED_ROW_GROUPS:
                    self._cache.popitem(last=False)
            value = self._cache[group][row - self._starts[group]]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadImage("the table holds no bytes of it")
        return data

    def _read(self, columns: list[str], row_groups: list[int] | None = None) -> dict[str, list[Any]]:
        groups = range(self.file.num_row_groups) if row_groups is None else row_groups
        try:
            columns_read: dict[str, list[Any]] = self.file.read_row_groups(list(groups), columns=columns).to_pydict()
        except Exception as error:  # pyarrow has many
            raise UserError(f"{self.path}: damaged: {' '.join(str(error).split())}") from error
        return columns_read

    def _image_column(self) -> str:
        encoded = [name for name, kind in self.columns.items() if "binary" in kind]
        chosen = next((name for name in IMAGE_COLUMNS if name in encoded), None)
        if chosen is None and len(encoded) == 1:
            chosen = encoded[0]
        if chosen is None:
            raise UserError(f"{self.path}: has no column of images (its columns: {', '.join(self.columns) or 'none'})")
        return chosen

    def _class_names(self, metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
        """Hugging Face keeps them in the file's metadata."""
        try:
            feature = json.loads(metadata[b"huggingface"])["info"]["features"][self.label_column]
            names = feature["names"]
        except (KeyError, TypeError, ValueError):
            return None
        return tuple(map(str, names)) if isinstance(names, list) and names else None
