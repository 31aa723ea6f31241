"""Lists of classes: which ones to keep, one per line."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from whitebench.errors import UserError, nearest
from whitebench.files import read_input


def read_text(path: Path) -> str:
    """A text file in UTF-8 or UTF-16, with or without a byte order mark.

    Raises:
        UserError: it cannot be read.
    """
    try:
        data = read_input(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    if "\0" in text:
        raise UserError(f"{path}: not a text file")
    return text


def read_class_list(path: Path) -> list[str]:
    """The lines of a list of classes that say something; what part of a line is the name, `choose_classes` finds out.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"{path}: names no classes")
    return lines


def choose_classes(classes: Iterable[str], lines: Sequence[str], where: str) -> tuple[str, ...]:
    """The classes that the lines name, sorted.

    Raises:
        UserError: a line names none of them.
    """
    valid = set(classes)
    chosen = set()
    for line in lines:
        name = next((name for name in _readings(line) if name in valid), None)
        if name is None:
            first = line if "," not in line and "\t" not in line else _cut(_cut(line, "\t"), ",")
            raise UserError(f"{where}: no class '{first}'{nearest(first, valid)}")
        chosen.add(name)
    return tuple(sorted(chosen))


def _readings(line: str) -> Iterator[str]:
    """What a line may name: all of it; without a comment; its first field; its first word."""
    for text in (line, line.partition("#")[0].strip()):
        yield text
        yield text.strip("\"'")
        for separator in ("\t", ",", ";"):
            yield _cut(text, separator)
        words = text.split()
        yield words[0] if words else ""


def _cut(text: str, separator: str) -> str:
    return text.partition(separator)[0].strip().strip("\"'")
