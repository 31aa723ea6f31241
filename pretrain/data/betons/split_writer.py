"""Writes the images of one split as a beton and reads them back."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pretrain.data.betons.format import JPEG, BetonWriter, ImageLargerThanPage, Samples, page_size_for, read_samples
from pretrain.data.betons.images import BadImage, Prepared, WriteSettings, check_jpeg, prepare
from pretrain.data.betons.manifest import SplitRecord, write_lines
from pretrain.data.sources.files import LeftOut, printable
from pretrain.data.sources.source import UNLABELLED, ImageEntry
from whitebench.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, how many images are done and how many there are."""
In = TypeVar("In")
Out = TypeVar("Out")


def quiet(what: str, done: int, total: int) -> None:
    """Shows no progress."""


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[In], Out], items: Sequence[In], progress: Callable[[int, int], None]
) -> Iterator[Out]:
    """`work` of each item, in order, done on the pool a few items ahead: memory stays bounded."""
    ahead = 4 * pool._max_workers
    pending: list[Future[Out]] = []
    try:
        for number in range(len(items)):
            missing = items[number + len(pending) : number + ahead]
            pending.extend(pool.submit(work, item) for item in missing)
            yield pending.pop(0).result()
            progress(number + 1, len(items))
    finally:
        for future in pending:
            future.cancel()


@dataclass
class _Written:
    """What has gone into a beton."""

    entries: list[ImageEntry] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    bad: list[LeftOut] = field(default_factory=list)
    rotated: int = 0

    def add(self, entry: ImageEntry, image: Prepared) -> None:
        self.entries.append(entry)
        self.digests.append(hashlib.sha256(image.payload).digest())
        self.rotated += image.rotated
        if image.change:
            self.changes[image.change] += 1


class SplitWriter:
    """Writes `split` to the new file `path`."""

    def __init__(self, path: Path, split: str, pool: ThreadPoolExecutor, progress: Progress) -> None:
        self.path, self.split, self.pool, self.progress = path, split, pool, progress

    def write(
        self, entries: Sequence[ImageEntry], settings: WriteSettings, skip_bad: bool, left_out: Sequence[LeftOut] = ()
    ) -> SplitRecord:
        """Writes the images, verified, and next to them the lists of their files and of what is left out.

        Raises:
            UserError: an image does not decode (without `skip_bad`), or none does.
        """
        page_size = page_size_for(2 * max(entry.size for entry in entries))
        while True:
            try:
                written = self._write_images(entries, settings, skip_bad, page_size)
                break
            except ImageLargerThanPage as error:  # of a file that expands: to pixels, or from a very flat PNG
                page_size = page_size_for(error.size)
        if not written.entries:
            raise UserError(f"{self.split}: none of its {len(entries)} images decodes ({written.bad[0].reason})")
        self._verify(written)
        return self._record(written, [*left_out, *written.bad])

    def _write_images(
        self, entries: Sequence[ImageEntry], settings: WriteSettings, skip_bad: bool, page_size: int
    ) -> _Written:
        def prepared(entry: ImageEntry) -> Prepared | LeftOut:
            try:
                data = entry.read()
                return entry.stored(data) if entry.stored else prepare(data, settings)
            except BadImage as error:
                if skip_bad:
                    return LeftOut(entry.name, f"does not decode: {error}")
                raise UserError(
                    f"{self.split}/{printable(entry.name)}: does not decode ({error}); --skip-bad leaves such images "
                    "out and lists them"
                ) from error

        written = _Written()
        with BetonWriter(self.path, len(entries), page_size) as beton:
            images = in_order(self.pool, prepared, entries, lambda *done: self.progress(f"write {self.split}", *done))
            for entry, image in zip(entries, images, strict=True):
                if isinstance(image, LeftOut):
                    written.bad.append(image)
                else:
                    beton.append(image.payload, image.height, image.width, entry.label, image.mode)
                    written.add(entry, image)
        return written

    def _record(self, written: _Written, left_out: Sequence[LeftOut]) -> SplitRecord:
        labels = [entry.label for entry in written.entries]
        record = SplitRecord(
            count=len(labels),
            beton=self.path.name,
            content_sha256=content_digest(written.digests, labels),
            changed=dict(sorted(written.changes.items())),
            skipped=len(written.bad),
            left_out=dict(sorted(Counter(item.reason.partition(":")[0] for item in left_out).items())),
            unlabelled=labels.count(UNLABELLED),
            rotated=written.rotated,
        )
        write_lines(self.path.with_name(record.files), [entry.name for entry in written.entries])
        if left_out:
            lines = [f"{item.path}\t{item.reason}" for item in left_out]
            write_lines(self.path.with_name(record.left_out_list), lines)
        return record

    def _verify(self, written: _Written) -> None:
        samples = read_samples(self.path)
        if samples.label.tolist() != [entry.label for entry in written.entries]:
            raise UserError(f"{self.path}: labels read back differ from those written")
        digests = read_digests(samples, self.pool, lambda *done: self.progress(f"verify {self.split}", *done))
        for entry, expected, digest in zip(written.entries, written.digests, digests, strict=True):
            if digest != expected:
                raise UserError(f"{self.path}: {printable(entry.name)} reads back differently than it was written")


def content_digest(digests: Sequence[bytes], labels: Sequence[int]) -> str:
    """sha256 (hex) of a split's content: the digest of each image's bytes and its label, in order."""
    content = hashlib.sha256()
    for digest, label in zip(digests, labels, strict=True):
        content.update(digest + label.to_bytes(8, "little", signed=True))
    return content.hexdigest()


def read_digests(samples: Samples, pool: ThreadPoolExecutor, progress: Callable[[int, int], None]) -> Iterator[bytes]:
    """sha256 of each image's bytes, in order; each is decoded, too.

    Raises:
        UserError: an image does not decode as it is.
    """
    with samples.open() as file:

        def digest(index: int) -> bytes:
            data = samples.bytes_of(index, file)
            if samples.mode[index] == JPEG:
                try:
                    check_jpeg(data)
                except BadImage as error:
                    raise UserError(
                        f"{samples.path}: image {index} does not decode ({error}); write the dataset again"
                    ) from error
            return hashlib.sha256(data).digest()

        yield from in_order(pool, digest, range(len(samples)), progress)
