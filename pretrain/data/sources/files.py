"""The files below a folder: images, what else may matter, and what is left out and why."""

import os
import stat
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from pretrain.data.betons.images import EXTENSIONS, BadImage
from whitebench.errors import UserError

SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "__pycache__", "lost+found", "$recycle.bin", "system volume information", "#recycle"}
)
"""Made by operating systems, network drives and notebooks, in lower case; so is every folder whose name starts with
a dot or an @. Their images are thumbnails and copies."""
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")
"""First bytes of image files, for names without an extension."""


class StoredFile(Protocol):
    """A file of a folder or of an archive."""

    @property
    def path(self) -> str:
        """Below the source, separated by `/`."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read(self) -> bytes:
        """Its content; raises `BadImage` where it cannot be read."""
        ...


class LeftOut(NamedTuple):
    """A file or folder that does not become part of a dataset."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file on disk; see `StoredFile`."""

    root: str
    path: str
    size: int

    @property
    def location(self) -> Path:
        """Its path on disk."""
        return Path(self.root, self.path)

    def read(self) -> bytes:
        """See `StoredFile`."""
        try:
            return self.location.read_bytes()
        except FileNotFoundError as error:
            broken = self.location.is_symlink()
            raise BadImage("a link to a file that does not exist" if broken else "no longer exists") from error
        except OSError as error:
            raise BadImage(f"cannot be read: {(error.strerror or str(error)).lower()}") from error


@dataclass(frozen=True, slots=True)
class Mounted:
    """A file of another tree, in a folder of this one; see `StoredFile`."""

    path: str
    file: StoredFile

    @property
    def size(self) -> int:
        """See `StoredFile`."""
        return self.file.size

    def read(self) -> bytes:
        """See `StoredFile`."""
        return self.file.read()


def is_on_disk(file: StoredFile) -> bool:
    """Whether a file is one of the file system's, and no part of an archive."""
    return isinstance(file, DiskFile) or (isinstance(file, Mounted) and is_on_disk(file.file))


def is_file(path: Path) -> bool:
    """Whether `path` is a file; raises `UserError` where that cannot be seen."""
    try:
        return path.is_file()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error


@dataclass
class FileTree:
    """What a folder or an archive holds, sorted by path."""

    root: Path
    images: list[StoredFile] = field(default_factory=list)
    others: list[StoredFile] = field(default_factory=list)
    """Files whose names are not those of images: lists of labels, archives, anything."""
    folders: set[str] = field(default_factory=set)
    """All folders below the root, empty ones too."""
    left_out: list[LeftOut] = field(default_factory=list)
    origins: dict[str, Path] = field(default_factory=dict)
    """Where the files of a folder come from that is not one of the root's own."""

    @cached_property
    def image_paths(self) -> list[str]:
        """Of all images, sorted as `images` is; ask only when all are listed."""
        return [file.path for file in self.images]

    def sort(self) -> None:
        """Sorts images and others by their paths."""
        self.images.sort(key=lambda file: file.path)
        self.others.sort(key=lambda file: file.path)
        self.__dict__.pop("image_paths", None)

    def images_below(self, folder: str) -> list[StoredFile]:
        """The images in `folder` and its subfolders; "" is the root."""
        return self.images[slice(*self._range(folder))]

    def has_images(self, folder: str) -> bool:
        """Whether there are images in `folder` or its subfolders."""
        first, last = self._range(folder)
        return first < last

    def _range(self, folder: str) -> tuple[int, int]:
        if not folder:
            return 0, len(self.images)
        after = chr(ord("/") + 1)
        return bisect_left(self.image_paths, f"{folder}/"), bisect_left(self.image_paths, f"{folder}{after}")


def list_folder(root: Path) -> FileTree:
    """All files below `root`; links are followed, but not around a circle.

    Raises:
        UserError: it is not a folder, or a folder below cannot be read.
    """
    try:
        if not root.exists():
            raise UserError(f"{root}: not found")
    except OSError as error:
        raise UserError(f"{root}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    tree = FileTree(root)
    _scan(tree, "", ())
    tree.sort()
    return tree


def _scan(tree: FileTree, below: str, ancestors: tuple[tuple[int, int], ...]) -> None:
    """Adds the folder `below` to the tree; `ancestors`: device and inode of the folders it is in."""
    folder = tree.root / below
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            tree.left_out.append(LeftOut(below, "a link to a folder above it"))
            return
        if below:
            tree.folders.add(below)
        subfolders = []
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                subfolders.append(path)
            else:
                _add_file(tree, path, entry)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    for path in subfolders:
        if is_system_folder(path.rpartition("/")[2]):
            tree.left_out.append(LeftOut(path, "a system folder"))
        else:
            _scan(tree, path, (*ancestors, identity))


def _add_file(tree: FileTree, path: str, entry: "os.DirEntry[str]") -> None:
    if entry.name.startswith("."):
        tree.left_out.append(LeftOut(path, "a hidden file"))
        return
    try:
        status = entry.stat()
        if not stat.S_ISREG(status.st_mode):  # a FIFO or device, which has no end
            tree.left_out.append(LeftOut(path, "not a plain file"))
            return
        size = status.st_size
    except FileNotFoundError:  # a broken link: reported when it is read
        size = 0
    file = DiskFile(str(tree.root), path, size)
    if has_image_name(path) or ("." not in entry.name and size and _starts_as_image(file)):
        tree.images.append(file)
    else:
        tree.others.append(file)


def has_image_name(path: str) -> bool:
    """Whether a file's name ends as that of an image."""
    return path.lower().endswith(EXTENSIONS)


def is_system_folder(name: str) -> bool:
    """Whether a folder of this name holds no images of the user's."""
    return name.startswith((".", "@")) or name.lower() in SYSTEM_FOLDERS


def _starts_as_image(file: DiskFile) -> bool:
    try:
        with open(file.location, "rb") as opened:
            start = opened.read(16)
    except OSError:
        return False
    return start.startswith(MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def relative(path: str, folder: str) -> str:
    """'train/a/b.jpg' below 'train' -> 'a/b.jpg'."""
    return path.removeprefix(f"{folder}/") if folder else path


def is_below(path: str, folder: str) -> bool:
    """Whether a path is in `folder` or its subfolders; "" is the root."""
    return not folder or path.startswith(f"{folder}/")


def printable(text: str) -> str:
    """A text with file names in it as one line of any terminal: names may hold line breaks, and bytes of no letter."""
    escaped = text.encode(errors="backslashreplace").decode()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in escaped)
