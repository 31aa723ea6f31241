"""Tar archives as sources: read where they lie, also tars of tars (ImageNet's training set is one)."""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from pretrain.data.betons.images import BadImage
from pretrain.data.sources.files import FileTree, LeftOut, has_image_name, is_system_folder
from whitebench.errors import UserError

TAR_NAMES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in an archive; see `StoredFile`."""

    archive: IO[bytes]
    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """See `StoredFile`. Threads may read at once."""
        data = os.pread(self.archive.fileno(), self.size, self.offset)
        if len(data) < self.size:
            raise BadImage("the archive ends within it")
        return data


def is_tar(path: str | Path) -> bool:
    """Whether a file's name is that of a tar archive."""
    return str(path).lower().endswith(TAR_NAMES)


def stem(path: str) -> str:
    """'a/n01440764.tar' -> 'n01440764'."""
    name = path.rpartition("/")[2]
    suffix = next((suffix for suffix in TAR_NAMES[::-1] if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def list_tar(path: Path) -> FileTree:
    """The files of an archive; an archive within becomes a folder of its name. A compressed one is unpacked to $TMPDIR.

    Raises:
        UserError: it is not a tar archive, or damaged.
    """
    tree, file = FileTree(path), None
    try:
        file = _uncompressed(path)
        _list_members(tree, file, 0, os.fstat(file.fileno()).st_size, "", nested=False)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        if file:
            file.close()
        raise UserError(f"{path}: not a readable tar archive ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a tar archive: {error.strerror or error}") from error
    tree.sort()
    return tree


def _uncompressed(path: Path) -> IO[bytes]:
    """The archive itself, or an unpacked copy that vanishes when it is closed."""
    file = open(path, "rb")  # noqa: SIM115 - lives as long as its members
    opener = _opener(file.read(6))
    if opener is None:
        return file
    file.close()
    copy = cast(IO[bytes], tempfile.TemporaryFile())  # noqa: SIM115 - lives as long as its members
    with opener(path) as stream:
        shutil.copyfileobj(stream, copy, 1 << 20)
    copy.flush()
    return copy


def _opener(start: bytes):  # type: ignore[no-untyped-def]
    openers = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    return next((opener for magic, opener in openers.items() if start.startswith(magic)), None)


class _Part:
    """A part of a file as a file of its own, for `tarfile`."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self.file, self.start, self.length, self.position = file, start, length, 0

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self.length - self.position)
        data = os.pread(self.file.fileno(), rest if size < 0 else min(size, rest), self.start + self.position)
        self.position += len(data)
        return data

    def seek(self, position: int, whence: int = 0) -> int:
        self.position = position + (0, self.position, self.length)[whence]
        return self.position

    def tell(self) -> int:
        return self.position


def _list_members(tree: FileTree, file: IO[bytes], start: int, length: int, prefix: str, nested: bool) -> None:
    with tarfile.open(fileobj=cast(IO[bytes], _Part(file, start, length)), mode="r:") as archive:
        for member in archive:
            name = os.path.normpath(member.name).lstrip("/")
            path = f"{prefix}{name}"
            parts = path.split("/")
            if name == "." or any(is_system_folder(part) for part in parts[:-1]):
                continue
            if member.isdir():
                tree.folders.add(path)
            elif not member.isfile() or ".." in parts:
                tree.left_out.append(LeftOut(path, "not a plain file"))
            elif parts[-1].startswith("."):
                tree.left_out.append(LeftOut(path, "a hidden file"))
            elif name.lower().endswith(".tar") and not nested:
                inner = path[: -len(".tar")]
                tree.folders.add(inner)
                _list_members(tree, file, start + member.offset_data, member.size, f"{inner}/", nested=True)
            else:
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("it ends within a file")
                stored = TarMember(file, path, start + member.offset_data, member.size)
                (tree.images if has_image_name(path) else tree.others).append(stored)
            parents = range(1, len(parts))
            tree.folders.update("/".join(parts[:depth]) for depth in parents)
        if 0 < length - archive.offset < tarfile.BLOCKSIZE:  # tarfile takes that for the end
            raise tarfile.ReadError("it ends within a header")
