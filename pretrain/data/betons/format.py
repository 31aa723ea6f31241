"""The file format of FFCV (version 2), for one kind of sample: an image and an integer label.

    header | field descriptors | metadata of each sample | pages of image bytes | allocation table (sample, place, size)

Written here in the order of the samples, so that the same images give the same bytes; FFCV's own writer hands pages to
processes as they come, re-encodes JPEGs, and waits for ever when one of its processes fails.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from whitebench.errors import UserError

VERSION = 2
JPEG, RAW = 0, 1
"""Modes of an image: JPEG bytes, or pixels as they are."""
LEAST_PAGE = 1 << 21
GREATEST_PAGE = 1 << 31
IMAGE_FIELD, INTEGER_FIELD = 2, 1

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
GREATEST_SIDE = (1 << 16) - 1


@dataclass(frozen=True)
class Samples:
    """Where the images of a beton are, in the order of the dataset; all arrays are [N]."""

    path: Path
    place: NDArray[np.int64]
    """Of the first byte, in the file."""
    size: NDArray[np.int64]
    """Bytes."""
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    mode: NDArray[np.int64]
    label: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.place)

    def bytes_of(self, index: int, file: mmap.mmap) -> bytes:
        return file[self.place[index] : self.place[index] + self.size[index]]

    def open(self) -> mmap.mmap:
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def check_length(path: Path) -> None:
    """Raises `UserError` where the beton is missing, cut short or something else; reads only its header."""
    if not path.is_file():
        advice = f"python -m pretrain.data write SOURCE {path.parent.name} makes one"
        raise UserError(f"{path}: there is no such beton; {advice}")
    _read_header(path)


def read_samples(path: Path) -> Samples:
    """The samples of a beton that holds images and labels.

    Raises:
        UserError: the file is missing, cut short, or not such a beton.
    """
    check_length(path)
    header = _read_header(path)
    count = int(header["num_samples"])
    samples = np.fromfile(path, SAMPLE, count, offset=HEADER.itemsize + 2 * FIELD.itemsize)
    table = np.fromfile(path, ALLOCATION, count, offset=int(header["alloc_table_ptr"]))
    if (table["ptr"] + table["size"] > header["alloc_table_ptr"]).any():
        raise UserError(f"{path}: damaged: an image lies outside of the file; write it again")
    order = np.argsort(table["ptr"], kind="stable")
    image = samples["image"]
    found = order[np.minimum(np.searchsorted(table["ptr"], image["data_ptr"], sorter=order), count - 1)]
    if (table["ptr"][found] != image["data_ptr"]).any() or not (image["height"].all() and image["width"].all()):
        raise UserError(f"{path}: damaged: its table does not fit its images; write it again")
    raw = image["mode"] == RAW
    if (table["size"][found][raw] != 3 * image["height"][raw].astype(np.uint64) * image["width"][raw]).any():
        raise UserError(f"{path}: damaged: an uncompressed image of another size than stated; write it again")
    sides = image["height"], image["width"]
    columns = (image["data_ptr"], table["size"][found], *sides, image["mode"], samples["label"])
    return Samples(path, *(column.astype(np.int64) for column in columns))


def _read_header(path: Path) -> np.void:
    """The header, after a check that the file is as long as it says."""
    length = path.stat().st_size
    if length < HEADER.itemsize + 2 * FIELD.itemsize:
        raise UserError(f"{path}: not a beton, or cut short: {length} bytes")
    header: np.void = np.fromfile(path, HEADER, 1)[0]
    fields = np.fromfile(path, FIELD, 2, offset=HEADER.itemsize)
    if header["version"] != VERSION or header["num_fields"] != 2:
        raise UserError(f"{path}: not a beton of version {VERSION} with an image and a label")
    if list(fields["type_id"]) != [IMAGE_FIELD, INTEGER_FIELD]:
        raise UserError(f"{path}: its fields are not an image and an integer label")
    end = int(header["alloc_table_ptr"]) + int(header["num_samples"]) * ALLOCATION.itemsize
    if header["num_samples"] == 0:
        raise UserError(f"{path}: holds no images")
    if length != end or header["alloc_table_ptr"] < HEADER.itemsize:
        lost = _first_beyond(path, header, length)
        where = f" (image {lost} is the first that is not whole)" if lost is not None else ""
        raise UserError(
            f"{path}: cut short or damaged: {length} bytes where its header says {end}{where}; write it again"
        )
    return header


def _first_beyond(path: Path, header: np.void, length: int) -> int | None:
    """The first image, in the order of the dataset, that a file of `length` bytes does not hold whole, if any."""
    count = min(int(header["num_samples"]), length // SAMPLE.itemsize)
    places = np.fromfile(path, SAMPLE, count, offset=HEADER.itemsize + 2 * FIELD.itemsize)["image"]["data_ptr"]
    ends = np.append(places[1:], header["alloc_table_ptr"])  # an image ends where the next begins, or before
    beyond = np.flatnonzero(ends > length)
    return int(beyond[0]) if len(beyond) else None


class BetonWriter:
    """Writes a beton at `path`, sample after sample; whole only when left without an exception."""

    def __init__(self, path: Path, capacity: int, page_size: int) -> None:
        """At most `capacity` samples, none larger than `page_size` bytes (a power of two)."""
        self.path, self.page_size = path, page_size
        self._metadata = np.zeros(capacity, SAMPLE)
        self._table = np.zeros(capacity, ALLOCATION)
        self._count = 0
        first = HEADER.itemsize + 2 * FIELD.itemsize + self._metadata.nbytes
        self._place = -(-first // page_size) * page_size
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._file = open(self.path, "wb")
        return self

    def append(self, payload: bytes, height: int, width: int, label: int, mode: int = JPEG) -> None:
        """Adds an image of these sides: `payload` is its JPEG, or its pixels where `mode` is RAW."""
        assert self._file is not None
        if len(payload) > self.page_size:
            raise UserError(f"an image of {len(payload)} bytes is larger than a page ({self.page_size} bytes)")
        if self._place // self.page_size != (self._place + len(payload) - 1) // self.page_size:
            self._place = -(-self._place // self.page_size) * self.page_size  # an image does not cross pages
        self._file.seek(self._place)
        self._file.write(payload)
        self._metadata[self._count] = ((mode, width, height, self._place), label)
        self._table[self._count] = (self._count, self._place, len(payload))
        self._place += len(payload)
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        with self._file as file:
            if error is None:
                file.seek(self._place)
                file.write(self._table[: self._count].tobytes())
                file.seek(0)
                for part in (self._header(), _descriptors(), self._metadata[: self._count]):
                    file.write(part.tobytes())

    def _header(self) -> NDArray[np.void]:
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, 2, self.page_size, self._count, self._place)
        return header


def _descriptors() -> NDArray[np.void]:
    fields = np.zeros(2, FIELD)
    for field, kind, name in zip(fields, (IMAGE_FIELD, INTEGER_FIELD), (b"image", b"label"), strict=True):
        field["type_id"] = kind
        field["name"][: len(name)] = np.frombuffer(name, np.uint8)
    return fields


def page_size_for(largest: int) -> int:
    """A page that holds an image of `largest` bytes, a power of two."""
    return max(LEAST_PAGE, 1 << (largest - 1).bit_length())
