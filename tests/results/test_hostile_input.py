"""Whatever lies in a folder of runs: one clear line about it, and the tables of the rest."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from results.aggregate import aggregate, main, render, tables_of
from results.claims import main as claims_main
from results.leaderboards.collect import read_proven
from results.leaderboards.table_cells import Cell, Column, Grid
from results.leaderboards.table_formats import inert, to_csv
from results.leaderboards.write import write_tables
from slurm.attempts import read_attempts
from tests.support.run_records import Records, read_csv
from whitebench.errors import UserError
from whitebench.hashing import plain_hash
from whitebench.records import METRICS, RECORD, read_metrics

ROOT = Path(__file__).parents[2]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a record and gives it the id of its changed config."""
    record = json.loads(path.read_text())
    change(record)
    if isinstance(record.get("config"), dict) and isinstance(record.get("id"), str):
        record["id"] = f"{record['id'].rpartition('-')[0]}-{plain_hash(record['config'])[:12]}"
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["metrics"].update(top1=780), "top1 is 780, not between 0 and 100 per cent"),
        (lambda record: record["metrics"].update(top5=-0.5), "top5 is -0.5, not between 0 and 100 per cent"),
        (lambda record: record["cost"].update(wall_s=-3.0), "cost wall_s is -3, below 0"),
        (lambda record: record["cost"].update(gpu_s=-1), "cost gpu_s is -1, below 0"),
        (lambda record: record["cell"].update(recipe="a\ud800"), "not valid Unicode"),
        (lambda record: record.update(data=[1]), "data is not a mapping"),
    ],
)
def test_an_impossible_record_is_named_and_left_out(
    records: Records, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    records.cell("intl", 0, 70.0)
    victim = records.evaluate(records.pretrain("intl", 1), {"top1": 60.0})
    edit(records.root / "linear" / victim / "run.json", change)
    tables = aggregate([records.root], tmp_path / "out")
    assert len(tables.runs) == 1
    [fault] = tables.faults
    assert message in fault
    assert victim in fault
    assert fault in render(tables)


def test_a_pipe_in_place_of_a_record_is_named_and_not_waited_for(records: Records, tmp_path: Path) -> None:
    records.cell("intl", 0, 70.0)
    folder = records.root / "linear" / "pipe-s0-0123456789ab"
    folder.mkdir()
    os.mkfifo(folder / "run.json")
    script = str(ROOT / "results" / "aggregate.py")
    command = [sys.executable, script, str(records.root), "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0
    assert "run.json: not a regular file" in ended.stdout


@pytest.mark.parametrize("kind", ["folder", "dangling", "loop", "device"])
def test_what_is_no_file_in_place_of_a_record_is_named(records: Records, tmp_path: Path, kind: str) -> None:
    records.cell("intl", 0, 70.0)
    folder = records.root / "linear" / "odd-s0-0123456789ab"
    folder.mkdir()
    path = folder / "run.json"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"dangling": "nowhere", "loop": path, "device": "/dev/zero"}[kind])
    tables = aggregate([records.root], tmp_path / "out")
    assert len(tables.runs) == 1
    assert len(tables.faults) == 1


def test_what_records_may_lack_or_hold_of_another_type_is_no_reason_to_stop(records: Records, tmp_path: Path) -> None:
    parent = records.cell("intl", 0, 70.0)
    odd = records.evaluate(parent, {"top1": 60.0}, seed=3)
    changes: dict[str, Any] = {
        "command": None,
        "error": 7,
        "started": None,
        "ended": [],
        "artifacts": [],
        "code": ["x"],
        "hashes": {"data": 4},
        "environment": {"git": None, "dirty": "yes"},
        "parents": [[parent]],
    }
    edit(records.root / "linear" / odd / "run.json", lambda record: record.update(changes))
    tables = aggregate([records.root], tmp_path / "out")
    assert (len(tables.runs), tables.faults) == (2, [])


def test_long_names_give_files_of_names_that_a_disk_takes(records: Records, tmp_path: Path) -> None:
    parent = records.pretrain("intl", recipe="r" * 300)
    for letter in "ab":
        records.evaluate(parent, {"top1": 50.0}, config={"dataset": letter * 300, "protocol": {"name": "p" * 300}})
    aggregate([records.root], tmp_path / "out")
    assert len(list((tmp_path / "out").glob("leaderboard_*.csv"))) == 2
    assert main([str(records.root), "--out", str(tmp_path / "out"), "--publish", "--quiet"]) == 0


@pytest.mark.parametrize("place", ["file", "below a file", "folder in place of a table", "pipe in place of a table"])
def test_an_out_that_cannot_be_written_is_one_line(records: Records, tmp_path: Path, place: str) -> None:
    records.cell("intl", 0, 70.0)
    out = tmp_path / "out"
    if place == "folder in place of a table":
        (out / "runs.csv").mkdir(parents=True)
    elif place == "pipe in place of a table":
        out.mkdir()
        os.mkfifo(out / "runs.csv")
        assert main(["--out", str(out), "--check"]) == 1
    else:
        out.write_text("here")
        out = out / "deeper" if place == "below a file" else out
    with pytest.raises(UserError, match=r"cannot be written there"):
        aggregate([records.root], out)


def test_a_read_only_out_is_one_line(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    records.cell("intl", 0, 70.0)
    for module in ("write", "cache"):
        monkeypatch.setattr(f"results.leaderboards.{module}.write_atomically", refuse)
    with pytest.raises(UserError, match=r"the tables cannot be written there \(Permission denied\)"):
        aggregate([records.root], tmp_path / "out")


def test_a_pipe_in_place_of_the_cache_is_not_waited_for(records: Records, tmp_path: Path) -> None:
    records.cell("intl", 0, 70.0)
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / ".collected.json")
    assert len(aggregate([records.root], tmp_path / "out").runs) == 1


def test_claims_read_odd_records_too(records: Records, tmp_path: Path) -> None:
    for seed in range(3):
        parent = records.pretrain("spectral", seed, "claims/bw-zca", config={"arm": "bw-zca"})
        identity = records.evaluate(parent, {"top1": None})
        changes = {"parents": [["a", "list"]]}
        edit(records.root / "linear" / identity / "run.json", lambda record, new=changes: record.update(new))
        record = records.root / "linear" / identity / "run.json"
        edit(record, lambda record: record["config"].update(parent=["a", "list"]))
    odd = records.pretrain("spectral", 7, "claims/mse", config={"arm": "mse"})
    edit(records.root / "pretrain" / odd / "run.json", lambda record: record["config"].update(seed=None))
    assert claims_main([str(records.root), "--out", str(tmp_path / "out")]) == 0


# --- spreadsheets ---------------------------------------------------------------------------------------------------

FORMULAS = ['=cmd|"/c calc"!A1', "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1dcmd", "\uff20SUM(A1)"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text: str) -> None:
    assert inert(text) == f"'{text}".replace("\r", "\n")
    grid = Grid("t", "title", [Column("method")], [[Cell(text)]])
    [_, [cell]] = csv.reader(io.StringIO(to_csv(grid), newline=""))
    assert cell.startswith("'")


@pytest.mark.parametrize("text", ["a\r=1", "a\r\n=1", "a\n=1"])
def test_no_part_of_a_cell_begins_a_row(text: str) -> None:
    grid = Grid("t", "title", [Column("method")], [[Cell(text)]])
    assert list(csv.reader(io.StringIO(to_csv(grid), newline="")))[1:] == [["a\n=1"]]


@pytest.mark.parametrize("text", ["-1.5", "+3", "-2e-5", "-0.0", "", "intl", "a=b", "5-NN"])
def test_numbers_and_plain_texts_stay(text: str) -> None:
    assert inert(text) == text


def test_names_from_records_are_no_formulas_in_any_table(records: Records, tmp_path: Path) -> None:
    for i, text in enumerate(FORMULAS[:4]):
        parent = records.pretrain("intl", recipe=text, config={"lr": i})
        records.evaluate(parent, {"top1": 50.0 + i}, config={"dataset": text})
        records.evaluate(parent, {"top1": 50.0 + i})
    aggregate([records.root], tmp_path / "out")
    cells = [
        cell
        for path in (tmp_path / "out").rglob("*.csv")
        for row in csv.reader(path.read_text().splitlines())
        for cell in row
    ]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "-2+"))]
    assert [cell for cell in cells if cell.startswith("'=cmd")]


def test_tables_read_back_with_sensible_types(records: Records, tmp_path: Path) -> None:
    for seed in range(3):
        for method in ("intl", "random"):
            records.cell(method, seed, 60.0 + seed / 3, environment={})
    aggregate([records.root], tmp_path / "out")
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    kinds = {name: runs[name].dtype.kind for name in ("seed", "top1", "collapsed", "dirty", "contradicts", "epochs")}
    assert kinds == {"seed": "i", "top1": "f", "collapsed": "b", "dirty": "b", "contradicts": "b", "epochs": "i"}
    board = pd.read_csv(tmp_path / "out" / "leaderboard_sample_linear-features.csv")
    assert board.n_pretrain.dtype.kind == "i"
    assert board.top1_low.dtype.kind == "f"
    assert list(board.seeds) == ["0 1 2", "0 1 2"]
    assert dict(zip(board.method, board.epochs)) == {"intl": 20, "random": 0}


# --- fuzzed ---------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(), max_size=20)  # lone surrogates, too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXTS, children, max_size=3),
    max_leaves=6,
)
FIELDS = (
    *("schema", "id", "stage", "config", "status", "cell", "hashes", "data", "parents", "metrics", "artifacts", "cost"),
    *("started", "ended", "environment", "earlier", "command", "error", "code"),
)
INNER = ("method", "data", "network", "schedule", "seed", "protocol", "parent", "top1", "deviations", "wall_s", "git")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_record_stops_the_tables(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    check_tables(tmp_path_factory, data)


@pytest.mark.long
@pytest.mark.timeout(7200)
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_record_of_many_stops_the_tables(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    check_tables(tmp_path_factory, data)


def check_tables(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    records = Records(root / "runs")
    records.cell("simclr", 0, 50.0)
    parent = records.pretrain("intl", 0)
    changes = data.draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2))
    inner = data.draw(st.dictionaries(st.sampled_from(INNER), VALUES, max_size=2))
    identity = records.evaluate(parent, {"top1": 60.0})
    for path in (records.root / "linear" / identity, records.root / "pretrain" / parent):

        def change(record: dict[str, Any]) -> None:
            for section in ("config", "metrics", "cost", "environment", "cell"):
                record[section].update(inner)
            record.update(changes)

        edit(path / "run.json", change)
    tables = tables_of([records.root])
    write_tables(tables, root / "out")
    assert "simclr" in {row["method"] for row in read_csv(root / "out" / "runs.csv")}
    render(tables)


CONTENT = st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode())


@settings(max_examples=60, deadline=None)
@given(content=CONTENT)
def test_no_content_of_a_file_stops_its_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    check_content(tmp_path_factory, content)


@pytest.mark.long
@pytest.mark.timeout(7200)
@settings(max_examples=10_000, deadline=None)
@given(content=CONTENT)
def test_no_content_of_many_stops_its_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    check_content(tmp_path_factory, content)


def check_content(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for name in (RECORD, METRICS, "attempts.jsonl"):
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json: "):
        read_proven(folder / RECORD)
    assert all(isinstance(line, dict) for line in [*read_metrics(folder), *read_attempts(folder)])
