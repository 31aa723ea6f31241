"""Files that are written whole or not at all, and the names of those in a run's folder that several packages use."""

import errno
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from whitebench.hashing import canonical

BACKBONE = "backbone.safetensors"
"""What a pretraining leaves for others."""
CHECKPOINT, PREVIOUS, CHECKPOINT_HASHES = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.sha256"
"""The state from which a stopped run goes on; the one before it; the hashes of both."""
SPECTRA = "spectra.jsonl"
"""Spectra of the encoder's outputs during a pretraining, one line per probe."""


def write_atomically(path: Path, content: bytes) -> None:
    """Whole or not at all, also after a crash: temporary file, fsync, rename, fsync of the folder.

    A symbolic link is followed: its target is replaced, and the link stays.

    Raises:
        OSError: the file could not be written, or `path` is a folder, a device, a FIFO or a circle of links.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path = _regular_target(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # unique across hosts, too
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _regular_target(path: Path) -> Path:
    """The file to replace: `path`, or what a symbolic link there leads to. A rename would replace whatever is there."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENXIO, "not a regular file", str(path))  # the number that `whitebench.errors` words so
    return target


def read_regular(path: Path) -> bytes:
    """The content of a regular file, by one look at its name: on a slow file system each further look costs as much.

    Raises:
        OSError: it cannot be read; with ENXIO where it is a folder, a device or a FIFO, which could wait for ever.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.ENXIO, "not a regular file", str(path))
        with open(file, "rb", closefd=False) as opened:
            return opened.read()
    finally:
        os.close(file)


def read_input(path: Path) -> bytes:
    """The content of a file that a user names, or of a pipe as the shell's `<(command)`.

    Raises:
        OSError: it cannot be read; with ENXIO where it is a device, whose end may never come. A FIFO to which nobody
            writes is empty: opening it in the usual way would wait for ever.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(file).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.ENXIO, "not a regular file", str(path))
        os.set_blocking(file, True)
        with open(file, "rb", closefd=False) as opened:
            return opened.read()
    finally:
        os.close(file)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(canonical(value), indent=1) + "\n").encode())


def append_json_line(path: Path, value: Any) -> None:
    """Appends `value` as one line of JSON, or nothing on a full disk: half a line would corrupt the next.

    Raises:
        OSError: the line could not be written.
    """
    content = json.dumps(canonical(value)).encode() + b"\n"
    with open(path, "ab", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        written = 0
        try:
            while written < len(content):
                written += file.write(content[written:])
        except OSError:
            file.truncate(start)
            raise


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in a file with one per line; [] if it is not a regular file.

    Lines that are not JSON objects are left out: a kill can cut a line short, and hosts can interleave two.
    """
    return _objects(path.read_bytes()) if path.is_file() else []


def last_json_line(path: Path) -> dict[str, Any]:
    """The last JSON object of a file with one per line, {} without any; reads the file's end only."""
    if not path.is_file():
        return {}
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        objects = _objects(file.read())
    return objects[-1] if objects else {}


TAIL = 1 << 16
"""Bytes from the end of a file, many times a line's length."""


def _objects(content: bytes) -> list[dict[str, Any]]:
    values = []
    for line in content.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            values.append(value)
    return values
