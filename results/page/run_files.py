"""Reads the files of run folders for a page that is sent on.

Only regular files below the given folders are read, links followed: a run folder that somebody else made cannot bring
another file of this machine into the page, nor stop it by a pipe. What cannot be read is a line on the page.
"""

import json
import math
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LINES_LIMIT, TAIL_LIMIT = 32_000_000, 64_000
"""Bytes that are read of a file of JSON lines, and of a log."""

Lines = list[dict[str, Any]]


class Unreadable(Exception):
    """Why a file was not read, for the page."""


def read_inside(path: Path, folders: Sequence[Path], limit: int, from_end: bool = False) -> bytes:
    """The first (or last) `limit` bytes of a regular file that lies below one of `folders`.

    Raises:
        FileNotFoundError: the file does not exist.
        Unreadable: it is not a regular file, is outside the folder, or cannot be read.
    """
    try:
        real = path.resolve(strict=True)
        if not any(real.is_relative_to(folder.resolve()) for folder in folders):
            raise Unreadable("outside the run's folder, not read")
        with open(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unreadable("not a regular file")
            if from_end:
                file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
            return file.read(limit)
    except FileNotFoundError:
        if path.is_symlink():
            raise Unreadable("a link to a file that does not exist") from None
        raise
    except IsADirectoryError as error:
        raise Unreadable("a folder, not a file") from error
    except (OSError, ValueError, RuntimeError) as error:  # permissions, names too long, null bytes, circular links
        raise Unreadable(f"not readable ({getattr(error, 'strerror', None) or error})") from error


def json_lines(path: Path, folder: Path) -> tuple[Lines, str]:
    """The objects of a file of JSON lines, and a sentence about lines that are none ("" where all are).

    A last line without its end is one that is being written, or was cut short by a kill; it is left out silently.

    Raises:
        FileNotFoundError: the file does not exist.
        Unreadable: see `read_inside`.
    """
    content = read_inside(path, [folder], LINES_LIMIT)
    whole, _, _ = content.rpartition(b"\n")
    objects: Lines = []
    problems: list[str] = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        if line.strip():
            value, problem = _json_object(line)
            objects += [value] if value is not None else []
            problems += [f"line {number} {problem}"] if problem else []
    if len(content) == LINES_LIMIT:
        problems.append(f"only the first {LINES_LIMIT // 1_000_000} MB were read")
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return objects, f"{path.name}: {problems[0]}{more}" if problems else ""


def _json_object(line: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return None, "is not UTF-8"
    except (ValueError, RecursionError):
        return None, "is not JSON"
    return (value, "") if isinstance(value, dict) else (None, "is not a JSON object")


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        real = float(value)
    except OverflowError:
        return None
    return real if math.isfinite(real) else None


def tail(path: Path, folders: Sequence[Path], lines: int) -> str:
    """The last lines of a text file as a terminal would show them: no colours, the last state of overwritten lines.

    Raises:
        FileNotFoundError: the file does not exist.
        Unreadable: see `read_inside`.
    """
    text = read_inside(path, folders, TAIL_LIMIT, from_end=True).decode(errors="replace")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")
    last = plain.removesuffix("\n").split("\n")[-lines:]
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in last)
