"""The file format of FFCV (version 2), for one kind of sample: an image and an integer label.

    header | field descriptors | metadata per sample | pages of image bytes | allocation table (sample, offset, size)

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
MIN_PAGE_SIZE = 1 << 21
"""Bytes; FFCV's own smallest."""
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
MAX_SIDE = (1 << 16) - 1
"""Pixels: width and height are stored in 16 bits."""


@dataclass(frozen=True)
class Samples:
    """Where the images of a beton are, in the order of the dataset; all arrays are [N]."""

    path: Path
    offset: NDArray[np.int64]
    """Of the first byte, in the file."""
    size: NDArray[np.int64]
    """Bytes."""
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    mode: NDArray[np.int64]
    label: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offset)

    def bytes_of(self, index: int, file: mmap.mmap) -> bytes:
        """JPEG or raw pixels of image `index`; `file` is what `open` returned."""
        return file[self.offset[index] : self.offset[index] + self.size[index]]

    def open(self) -> mmap.mmap:
        """The beton, mapped into memory."""
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def check_length(path: Path) -> None:
    """Raises `UserError` if the beton is missing, truncated or not a beton; reads only its header."""
    if not path.is_file():
        advice = f"create it with: python -m pretrain.data write SOURCE {path.parent.name}"
        raise UserError(f"{path}: beton not found; {advice}")
    _read_header(path)


def read_samples(path: Path) -> Samples:
    """The samples of a beton that holds images and labels.

    Raises:
        UserError: the file is missing, truncated, or not such a beton.
    """
    check_length(path)
    header = _read_header(path)
    count = int(header["num_samples"])
    samples = np.fromfile(path, SAMPLE, count, offset=HEADER.itemsize + 2 * FIELD.itemsize)
    table = np.fromfile(path, ALLOCATION, count, offset=int(header["alloc_table_ptr"]))
    if (table["ptr"] + table["size"] > header["alloc_table_ptr"]).any():
        raise UserError(f"{path}: damaged: an image lies outside the file; write it again")
    order = np.argsort(table["ptr"], kind="stable")
    image = samples["image"]
    entry = order[np.minimum(np.searchsorted(table["ptr"], image["data_ptr"], sorter=order), count - 1)]
    if (table["ptr"][entry] != image["data_ptr"]).any() or not (image["height"].all() and image["width"].all()):
        raise UserError(f"{path}: damaged: its allocation table does not match its images; write it again")
    raw = image["mode"] == RAW
    if (table["size"][entry][raw] != 3 * image["height"][raw].astype(np.uint64) * image["width"][raw]).any():
        raise UserError(f"{path}: damaged: an uncompressed image of another size than stated; write it again")
    sides = image["height"], image["width"]
    columns = (image["data_ptr"], table["size"][entry], *sides, image["mode"], samples["label"])
    return Samples(path, *(column.astype(np.int64) for column in columns))


def _read_header(path: Path) -> np.void:
    """The header, after a check that the file is as long as it says."""
    length = path.stat().st_size
    if length < HEADER.itemsize + 2 * FIELD.itemsize:
        raise UserError(f"{path}: not a beton, or truncated: {length} bytes")
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
        first_lost = _first_lost(path, header, length)
        where = f" (image {first_lost} is the first incomplete one)" if first_lost is not None else ""
        raise UserError(
            f"{path}: truncated or damaged: {length} bytes but its header says {end}{where}; write it again"
        )
    return header


def _first_lost(path: Path, header: np.void, length: int) -> int | None:
    """The first image, in dataset order, that a file of `length` bytes does not hold completely; None if all are."""
    count = min(int(header["num_samples"]), length // SAMPLE.itemsize)
    starts = np.fromfile(path, SAMPLE, count, offset=HEADER.itemsize + 2 * FIELD.itemsize)["image"]["data_ptr"]
    ends = np.append(starts[1:], header["alloc_table_ptr"])  # an image ends where the next begins, or before
    beyond = np.flatnonzero(ends > length)
    return int(beyond[0]) if len(beyond) else None


class ImageLargerThanPage(Exception):
    """An image does not fit a beton's pages; `size` is its bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"an image of {size} bytes is larger than a page")
        self.size = size


class BetonWriter:
    """Writes a beton at `path`, sample by sample; valid only if the context is left without an exception."""

    def __init__(self, path: Path, capacity: int, page_size: int) -> None:
        """At most `capacity` samples, none larger than `page_size` bytes (a power of two)."""
        self.path, self.page_size = path, page_size
        self._metadata = np.zeros(capacity, SAMPLE)
        self._table = np.zeros(capacity, ALLOCATION)
        self._count = 0
        first = HEADER.itemsize + 2 * FIELD.itemsize + self._metadata.nbytes
        self._end = -(-first // page_size) * page_size
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._file = open(self.path, "wb")
        return self

    def append(self, payload: bytes, height: int, width: int, label: int, mode: int = JPEG) -> None:
        """Adds an image of these sides: `payload` is its JPEG, or its pixels where `mode` is RAW."""
        assert self._file is not None
        if len(payload) > self.page_size:
            raise ImageLargerThanPage(len(payload))
        if self._end // self.page_size != (self._end + len(payload) - 1) // self.page_size:
            self._end = (
                -(-self._end // self.page_size) * self.page_size
            )  # FFCV reads page by page: no image may cross one
        self._file.seek(self._end)
        self._file.write(payload)
        self._metadata[self._count] = ((mode, width, height, self._end), label)
        self._table[self._count] = (self._count, self._end, len(payload))
        self._end += len(payload)
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        with self._file as file:
            if error is None:
                file.seek(self._end)
                file.write(self._table[: self._count].tobytes())
                file.seek(0)
                for part in (self._header(), _descriptors(), self._metadata[: self._count]):
                    file.write(part.tobytes())

    def _header(self) -> NDArray[np.void]:
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, 2, self.page_size, self._count, self._end)
        return header


def _descriptors() -> NDArray[np.void]:
    fields = np.zeros(2, FIELD)
    for field, kind, name in zip(fields, (IMAGE_FIELD, INTEGER_FIELD), (b"image", b"label"), strict=True):
        field["type_id"] = kind
        field["name"][: len(name)] = np.frombuffer(name, np.uint8)
    return fields


def page_size_for(largest: int) -> int:
    """A page that holds an image of `largest` bytes, a power of two."""
    return max(MIN_PAGE_SIZE, 1 << (largest - 1).bit_length())
