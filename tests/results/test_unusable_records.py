"""Records that are damaged, unfinished, hostile or alone: each is named, none is silently taken or dropped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results.aggregate import aggregate, render, tables_of
from tests.support.run_records import Records, Rows, csv_contents, read_csv
from whitebench.errors import UserError


def _damage(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_text(path.read_text()[:200]), "not a readable record"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n"), "not a readable record"),
        (lambda path: path.write_text("[" * 100_000), "not a readable record"),
        (lambda path: path.write_text('{"name": "another tool"}'), "not a record of schema 1"),
        (lambda path: path.unlink(), "no run.json (half-written?)"),
        (_damage(lambda record: record.update(schema=9)), "not a record of schema 1"),
        (_damage(lambda record: record.pop("config")), "not a complete record"),
        (_damage(lambda record: record.update(config=[1])), "config is not a mapping"),
        (_damage(lambda record: record.update(metrics="top1")), "metrics is not a mapping"),
        (_damage(lambda record: record.update(status="finished")), "id, stage or status"),
        (_damage(lambda record: record.update(id=7)), "id, stage or status"),
        (_damage(lambda record: record.update(parents="x")), "parents is not a list"),
        (_damage(lambda record: record["config"].update(seed=99)), "changed after it was written"),
        (
            _damage(lambda record: record.update(config={}, status="failed", error="no disk")),
            "failed before it began: no disk",
        ),
    ],
)
def test_an_unusable_record_is_named_and_left_out(
    records: Records, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    records.cell("intl", 0, 70.0)
    victim = records.evaluate(records.pretrain("intl", 1), {"top1": 99.0})
    damage(records.root / "linear" / victim / "run.json")
    tables = aggregate([records.root], tmp_path / "out")
    [row] = read_csv(tmp_path / "out" / "leaderboard_sample_linear-features.csv")
    assert (row["n_pretrain"], row["top1_mean"]) == ("1", "70.0")
    [fault] = tables.faults
    assert said in fault
    assert victim in fault
    assert "left out: 1" in render(tables)
    assert fault in render(tables)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "71.5", None, [1], 10**400])
def test_a_metric_that_is_no_number_is_no_value(records: Records, table: Callable[..., Rows], value: Any) -> None:
    records.evaluate(records.pretrain("intl"), {"top1": value})
    [row] = table()
    assert (row["n_pretrain"], row["top1_mean"]) == ("0", "")
    assert "1 of 1 without a value" in row["flags"]


def test_settings_of_impossible_types_stay_empty(records: Records, table: Callable[..., Rows]) -> None:
    config = {"batch": {"x": 1}, "precision": 7, "network": 3, "schedule": {"epochs": "many"}, "threads": [2]}
    records.cell(
        "intl", 0, 70.0, config=config, hashes={"method": 4}, environment={"git": None}, cost={"wall_s": "long"}
    )
    [row] = table()
    assert [row[key] for key in ("batch", "epochs", "backbone", "precision", "pretrain_wall_s")] == [""] * 5


def test_runs_at_work_and_failed_ones_are_counted_and_failures_marked(
    records: Records, tmp_path: Path, table: Callable[..., Rows]
) -> None:
    records.cell("intl", 0, 70.0)
    records.pretrain("intl", 1, status="failed")
    records.pretrain("intl", 2, status="running")
    records.evaluate(records.pretrain("intl", 3), {}, status="failed")
    [row] = table()
    assert (row["n_pretrain"], row["n_failed"], row["flags"]) == ("1", "2", "2 failed; one pretraining")
    printed = render(tables_of([records.root]))
    assert "running: 1 pretrain" in printed
    assert "failed: 1 linear, 1 pretrain" in printed
    assert [r["status"] for r in table("runs.csv")] == ["done", "failed"]


def test_evaluations_without_a_pretraining_of_ours_stand_alone(records: Records, table: Callable[..., Rows]) -> None:
    cell = {"recipe": "moco.pth", "method": "foreign", "dataset": "sample"}
    for digest in ("a" * 64, "b" * 64):
        records.evaluate(f"sha256:{digest}", {"top1": 60.0}, cell=cell)
    records.evaluate("lost-s0-0123456789ab", {"top1": 50.0}, cell={"recipe": "sample/intl", "method": "intl"})
    rows = table()
    assert [(r["recipe"], r["n_pretrain"], r["flags"]) for r in rows] == [
        ("moco.pth", "1", "one pretraining; foreign checkpoint"),
        ("moco.pth", "1", "one pretraining; foreign checkpoint"),
        ("sample/intl", "1", "one pretraining; pretraining's record is missing"),
    ]


def test_hostile_names_stay_in_their_cells_and_files_in_their_folder(records: Records, tmp_path: Path) -> None:
    names = ["../../etc/passwd", "/etc", "a/b", "a b", "a\nb,\"c'", "[bold red]x[/bold]", "", "..", "[/]"]
    parent = records.pretrain("intl", recipe="[link=x]y,\n[/]")
    for name in names:
        records.evaluate(parent, {"top1": 50.0}, config={"dataset": name, "protocol": {"name": name}})
    tables = aggregate([records.root], tmp_path / "deep" / "out")
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.csv")]
    assert {str(path.parent) for path in written} == {"deep/out", "deep/out/tables"}
    assert sum(path.parent.name == "out" for path in written) == len(names) + 2
    assert {row["recipe"] for row in read_csv(tmp_path / "deep" / "out" / "runs.csv")} == {"[link=x]y, [/]"}
    assert "[bold red]x[/bold]" in render(tables)
    assert "[link=x]y" in render(tables, colour=True)


def test_without_any_evaluation_nothing_is_changed(records: Records, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "leaderboard_x.csv").write_text("kept")
    records.pretrain("intl", status="running")
    with pytest.raises(UserError, match=r"no evaluation has ended.*1 pretrain running"):
        aggregate([records.root], tmp_path / "out")
    assert csv_contents(tmp_path / "out") == {"leaderboard_x.csv": b"kept"}
