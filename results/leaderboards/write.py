"""The tables' files: the same records always give the same bytes, and a reader always sees a whole file."""

import csv
import errno
import io
import json
import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from results.leaderboards.leaderboard import Tables
from results.leaderboards.paper_tables import layouts
from results.leaderboards.published import Published
from results.leaderboards.published_tables import paper_tables
from results.leaderboards.table_formats import FORMATS, inert
from whitebench.errors import UserError
from whitebench.files import read_regular, write_atomically
from whitebench.records import parse_record

RUNS, PAIRS, ACROSS, LAYOUTS = "runs.csv", "comparisons.csv", "across.csv", "tables"
EPOCHS = "over_epochs.csv"
TABLE_PATTERNS = (
    RUNS,
    PAIRS,
    ACROSS,
    EPOCHS,
    "leaderboard_*.csv",
    "transfer_*.csv",
    *(f"{LAYOUTS}/*.{end}" for end in FORMATS),
)
"""Patterns of the files that are written, and removed where the records do not give them."""

LONGEST_NAME = 200
"""Bytes of a file's name that every file system takes, with room for endings."""

STALE = "stale"
"""The column that says what has changed in this checkout since: every other column depends on the records alone."""


def write_tables(tables: Tables, out: Path) -> None:
    """Writes the tables to `out`, and removes leaderboards there that these records do not give.

    Raises:
        UserError: no evaluation was found; nothing is changed then.
    """
    if tables.runs.empty:
        raise UserError(_nothing_found(tables))
    write_contents(tables, out)


def write_contents(tables: Tables, out: Path) -> None:
    """As `write_tables`; without any evaluation only the published papers' tables."""
    contents = _contents(tables)
    with writing_to(out):
        for name, content in contents.items():
            if _content(out / name) != content:
                write_atomically(out / name, content)
        for name in _present(out) - contents.keys():
            (out / name).unlink(missing_ok=True)


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Turns what keeps tables from being written to `out` into a `UserError`, except a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{error.filename or out}: the tables cannot be written there ({error.strerror})") from error


def publish(sources: Collection[Path], records: Path) -> int:
    """Copies the `run.json` files `sources` to `records/<stage>/<id>.json`; returns how many there are.

    Of absolute paths in their commands the last part stays: where things lie on a machine is no one else's concern.
    """
    for path in sources:
        content = path.read_bytes()
        record = parse_record(content, path)
        command = json.loads(content).get("command")
        if isinstance(command, str):
            for ascii_only in (True, False):  # as records are written, and as other writers may
                old, new = (json.dumps(x, ensure_ascii=ascii_only) for x in (command, _without_folders(command)))
                content = content.replace(old.encode(errors="replace"), new.encode(errors="replace"))
        write_atomically(records / record.stage / f"{short_name(record.id)}.json", content)
    return len(sources)


def _without_folders(command: str) -> str:
    """`python -m x /a/b/c --out=/d` as `python -m x c --out=d`."""
    return re.sub(r"(?<![^\s='\":,\[])/(?:[^\s'\",\]]*/)?", "", command)


def short_name(identity: str) -> str:
    """A run's id as the name of a file: of one that is too long the beginning, and the hash at its end."""
    return identity if len(identity.encode()) <= LONGEST_NAME else f"{identity[:40]}{identity[-13:]}"


def first_difference(tables: Tables, out: Path) -> str | None:
    """Where the tables in `out` first differ from `tables` in what records say (not in `stale`); None where nowhere."""
    if tables.faults:
        return tables.faults[0]
    expected = _contents(tables)
    try:
        present = {name: read_regular(out / name) for name in _present(out)}
    except OSError as error:
        return f"{error.filename}: not readable ({error.strerror})"
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            return f"{out / name}: is missing"
        if name not in expected:
            return f"{out / name}: no published record gives it"
        texts = [_without_stale(content.decode(errors="replace")) for content in (present[name], expected[name])]
        if texts[0] != texts[1]:
            return f"{out / name}: {_first_line(*texts)}"
    return None


def _content(path: Path) -> bytes | None:
    """Of a table that was written before; None where there is none."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        return None


def _present(out: Path) -> set[str]:
    """The tables' files in `out`, relative to it."""
    return {path.relative_to(out).as_posix() for pattern in TABLE_PATTERNS for path in out.glob(pattern)}


def _without_stale(text: str) -> str:
    """A table without the column that depends on this checkout, not on the records."""
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or STALE not in rows[0]:
        return text
    index, stream = rows[0].index(STALE), io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(row[:index] + row[index + 1 :] for row in rows)
    return stream.getvalue()


def _first_line(present: str, expected: str) -> str:
    lines, rebuilt = present.splitlines(), expected.splitlines()
    for number, (a, b) in enumerate(zip(lines, rebuilt), start=1):
        if a != b:
            return f"line {number} is\n  {a}\nbut the records give\n  {b}"
    return f"has {len(lines)} lines, but the records give {len(rebuilt)}"


def _contents(tables: Tables) -> dict[str, bytes]:
    if tables.runs.empty:
        return _renderings(tables, Published())
    boards = {f"leaderboard_{board.name}.csv": board.table for board in tables.leaderboards}
    data_tables = {RUNS: tables.runs, PAIRS: tables.comparisons}
    data_tables |= {ACROSS: tables.across} if len(tables.across) else {}
    data_tables |= {EPOCHS: tables.over_epochs} if len(tables.over_epochs) else {}
    data_tables |= {f"{name}.csv": table for name, table in tables.transfer.items()}
    plain = {name: csv_bytes(table) for name, table in {**data_tables, **boards}.items()}
    return plain | _renderings(tables, Published())


def _renderings(tables: Tables, published: Published) -> dict[str, bytes]:
    """The tables in the papers' layouts, and the whitening papers' own tables, in every format."""
    grids = [*layouts(tables, published), *paper_tables(published)]
    return {f"{LAYOUTS}/{grid.name}.{end}": form(grid).encode() for grid in grids for end, form in FORMATS.items()}


def csv_bytes(table: pd.DataFrame) -> bytes:
    """Plain floats of up to six decimals, whatever their size; empty where there is no value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([inert(str(name)) for name in table])  # some hold the names of datasets
    writer.writerows(zip(*(map(_field, table[name].tolist()) for name in table), strict=True))
    return stream.getvalue().encode()


def _field(value: object) -> object:
    """A cell as it is written: a float plainly, a text so that no spreadsheet runs it, nothing where it is missing."""
    if isinstance(value, float):
        return "" if math.isnan(value) else _plain(value)
    return "" if value is None or value is pd.NA else inert(value)


def _plain(value: float) -> str:
    whole, _, decimals = f"{value:.6f}".partition(".")
    text = f"{whole}.{decimals.rstrip('0') or '0'}"
    return "0.0" if text == "-0.0" else text


def _nothing_found(tables: Tables) -> str:
    others = ", ".join(f"{n} {stage} {status}" for (stage, status), n in sorted(tables.counts.items()))
    faults = f"; {len(tables.faults)} unusable, e.g. {tables.faults[0]}" if tables.faults else ""
    return f"no evaluation has ended in these folders of runs{f' (there are {others})' if others else ''}{faults}"
