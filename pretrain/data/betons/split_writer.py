"""Writes the images of one split as a beton and reads them back."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pretrain.data.betons.format import JPEG, BetonWriter, Samples, page_size_for, read_samples
from pretrain.data.betons.images import BadImage, Prepared, WriteSettings, prepare, size_of
from pretrain.data.betons.manifest import Split
from pretrain.data.betons.sources import Item
from whitebench.errors import UserError

Progress = Callable[[str, int, int], None]
"""Is told what is done, how many images are done and how many there are."""
In = TypeVar("In")
Out = TypeVar("Out")


def quiet(what: str, done: int, total: int) -> None:
    """No progress shown."""


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[In], Out], items: Sequence[In], progress: Callable[[int, int], None]
) -> Iterator[Out]:
    """`work` of each item, in order, done on the pool only some items ahead: memory stays bounded."""
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


class SplitWriter:
    """Writes `split` to the new file `path`."""

    def __init__(self, path: Path, split: str, pool: ThreadPoolExecutor, progress: Progress) -> None:
        self.path, self.split, self.pool, self.progress = path, split, pool, progress
        self._written: list[Item] = []
        self._digests: list[bytes] = []
        self._changed: Counter[str] = Counter()

    def write(self, items: Sequence[Item], settings: WriteSettings, skip_bad: bool) -> Split:
        """Writes the images, and the list of their files beside; verified.

        Raises:
            UserError: an image does not decode (without `skip_bad`), or none does.
        """

        def prepared(item: Item) -> Prepared | None:
            try:
                return prepare(item.read(), settings)
            except BadImage as error:
                if skip_bad:
                    return None
                where = f"{self.split}/{item.name}"
                raise UserError(f"{where}: does not decode ({error}); --skip-bad leaves such images out") from error

        with BetonWriter(self.path, len(items), page_size_for(self._largest(items, settings))) as beton:
            images = in_order(self.pool, prepared, items, lambda *done: self.progress(f"write {self.split}", *done))
            for item, image in zip(items, images, strict=True):
                if image is not None:
                    beton.append(image.payload, image.height, image.width, item.label, image.mode)
                    self._note(item, image)
        if not self._written:
            raise UserError(f"{self.split}: none of its {len(items)} images decodes")
        self._verify()
        labels = [item.label for item in self._written]
        skipped = len(items) - len(self._written)
        changed = dict(sorted(self._changed.items()))
        split = Split(len(labels), self.path.name, content_digest(self._digests, labels), changed, skipped)
        self.path.with_name(split.files).write_text(
            "".join(f"{item.name}\n" for item in self._written), errors="surrogateescape"
        )
        return split

    def _largest(self, items: Sequence[Item], settings: WriteSettings) -> int:
        """More bytes than any image will take."""
        if settings.raw:
            sides = in_order(self.pool, lambda item: _sides(item, settings), items, lambda *done: None)
            return max(3 * height * width for height, width in sides)
        return 2 * max(item.size for item in items)

    def _note(self, item: Item, image: Prepared) -> None:
        self._written.append(item)
        self._digests.append(hashlib.sha256(image.payload).digest())
        if image.change:
            self._changed[image.change] += 1

    def _verify(self) -> None:
        samples = read_samples(self.path)
        if samples.label.tolist() != [item.label for item in self._written]:
            raise UserError(f"{self.path}: labels read back differ from those written")
        digests = read_digests(samples, self.pool, lambda *done: self.progress(f"verify {self.split}", *done))
        for item, digest, found in zip(self._written, self._digests, digests, strict=True):
            if digest != found:
                raise UserError(f"{self.path}: {item.name} reads back differently than it was written")


def content_digest(digests: Sequence[bytes], labels: Sequence[int]) -> str:
    """sha256 (hex) of a split's content: the digest of each image's bytes and its label, in order."""
    content = hashlib.sha256()
    for digest, label in zip(digests, labels, strict=True):
        content.update(digest + label.to_bytes(8, "little"))
    return content.hexdigest()


def read_digests(samples: Samples, pool: ThreadPoolExecutor, progress: Callable[[int, int], None]) -> Iterator[bytes]:
    """sha256 of each image's bytes, in order; each is decoded, too.

    Raises:
        UserError: an image does not decode as it is.
    """
    with samples.open() as file:

        def digest(index: int) -> bytes:
            data = samples.bytes_of(index, file)
            if samples.mode[index] == JPEG and not _is_sound(data):
                raise UserError(f"{samples.path}: image {index} does not decode; write the dataset again")
            return hashlib.sha256(data).digest()

        yield from in_order(pool, digest, range(len(samples)), progress)


def _sides(item: Item, settings: WriteSettings) -> tuple[int, int]:
    try:
        return size_of(item.read(), settings.max_side)
    except BadImage:  # to be told when it is to be written
        return 0, 0


def _is_sound(data: bytes) -> bool:
    try:
        return prepare(data, WriteSettings()).change is None
    except BadImage:
        return False
