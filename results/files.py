"""The tables' files: the same records always give the same bytes, and a reader always sees a whole file."""

from pathlib import Path

import pandas as pd

from results.command import UserError
from results.content import write_atomically
from results.leaderboard import Tables
from results.record import parse_record

RUNS, PATTERN = "runs.csv", "leaderboard_*.csv"


def write_tables(tables: Tables, out: Path) -> None:
    """Writes the tables to `out`, and removes leaderboards there that these records do not give.

    Raises:
        UserError: there is no evaluation at all; nothing is changed then.
    """
    if tables.runs.empty:
        raise UserError(_nothing_found(tables))
    contents = _contents(tables)
    for name, content in contents.items():
        if not (out / name).exists() or (out / name).read_bytes() != content:
            write_atomically(out / name, content)
    for stale in set(out.glob(PATTERN)) - {out / name for name in contents}:
        stale.unlink(missing_ok=True)


def publish(tables: Tables, records: Path) -> int:
    """Copies the `run.json` files behind the tables to `records/<stage>/<id>.json`; returns how many there are."""
    for path in tables.sources:
        content = path.read_bytes()
        record = parse_record(content, path)
        write_atomically(records / record.stage / f"{record.id}.json", content)
    return len(tables.sources)


def first_difference(tables: Tables, out: Path) -> str | None:
    """Where the tables in `out` first differ from `tables`; None where they do not."""
    if tables.faults:
        return tables.faults[0]
    wanted = {} if tables.runs.empty else _contents(tables)
    present = {path.name: path.read_bytes() for path in [out / RUNS, *out.glob(PATTERN)] if path.exists()}
    for name in sorted(wanted.keys() | present.keys()):
        if name not in present:
            return f"{out / name}: is missing"
        if name not in wanted:
            return f"{out / name}: no published record stands behind it"
        if wanted[name] != present[name]:
            return f"{out / name}: {_first_line(present[name].decode(errors='replace'), wanted[name].decode())}"
    return None


def _first_line(present: str, wanted: str) -> str:
    ours, theirs = present.splitlines(), wanted.splitlines()
    for number, (a, b) in enumerate(zip(ours, theirs), start=1):
        if a != b:
            return f"line {number} is\n  {a}\nbut the records give\n  {b}"
    return f"has {len(ours)} lines, but the records give {len(theirs)}"


def _contents(tables: Tables) -> dict[str, bytes]:
    boards = {f"leaderboard_{board.name}.csv": board.table for board in tables.leaderboards}
    return {name: csv_bytes(table) for name, table in {RUNS: tables.runs, **boards}.items()}


def csv_bytes(table: pd.DataFrame) -> bytes:
    """Plain floats of up to six decimals, whatever their size; empty where there is no value."""
    text: str = table.to_csv(index=False, float_format=_plain, lineterminator="\n")
    return text.encode()


def _plain(value: object) -> str:
    whole, _, decimals = f"{value:.6f}".partition(".")
    text = f"{whole}.{decimals.rstrip('0') or '0'}"
    return "0.0" if text == "-0.0" else text


def _nothing_found(tables: Tables) -> str:
    others = ", ".join(f"{n} {stage} {status}" for (stage, status), n in sorted(tables.counts.items()))
    faults = f"; {len(tables.faults)} unusable, e.g. {tables.faults[0]}" if tables.faults else ""
    return f"no evaluation has ended in these folders of runs{f' (there are {others})' if others else ''}{faults}"
