"""Tables say what the records say: the right n, the right spread, the right published value, and nothing silently."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results.aggregate import aggregate, main, render, tables_of
from results.leaderboards import collect
from results.leaderboards import recipe_papers as recipes
from results.leaderboards.collect import read_proven
from results.leaderboards.intervals import half_width, summarise
from results.leaderboards.published import CSV, Published, parse_views
from results.leaderboards.run_table import COLUMNS, flat, views_text
from results.leaderboards.write import csv_bytes
from tests.support.run_records import Records, Rows, read_csv
from whitebench.code_hash import code_files
from whitebench.errors import UserError
from whitebench.hashing import canonical
from whitebench.inheritance import Library
from whitebench.records import Run

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "runs")


@pytest.fixture
def table(records: Records, tmp_path: Path) -> Callable[..., Rows]:
    """Aggregates what the records hold, and reads one of the files."""

    def read(name: str = "leaderboard_sample_linear-features.csv") -> Rows:
        aggregate([records.root], tmp_path / "out")
        return read_csv(tmp_path / "out" / name)

    return read


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


# --- statistics -----------------------------------------------------------------------------------------------------


def test_intervals_are_those_computed_by_hand() -> None:
    """t(0.975; 1) = 12.7062, t(0.975; 4) = 2.7764."""
    assert half_width([1.0], [2])[0] == pytest.approx(12.7062 / 2**0.5, abs=1e-4)
    assert half_width([np.std([1, 2, 3, 4, 5], ddof=1)], [5])[0] == pytest.approx(2.7764 * 1.58114 / 5**0.5, abs=1e-4)
    assert np.isnan(half_width([0.0, 1.0], [1, 0])).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_intervals_are_those_of_scipy_stats(values: list[float]) -> None:
    from scipy import stats

    sd = float(np.std(values, ddof=1))
    low, high = stats.t.interval(0.95, len(values) - 1, scale=sd / len(values) ** 0.5) if sd else (0.0, 0.0)
    assert half_width([sd], [len(values)])[0] == pytest.approx((high - low) / 2)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0).normal(70, 2, (4000, 3))
    width = half_width(draws.std(axis=1, ddof=1), np.full(4000, 3))
    covered = np.abs(draws.mean(axis=1) - 70) <= width
    assert 0.94 < covered.mean() < 0.96


def test_seeds_of_one_pretraining_are_averaged_before_pretrainings_are() -> None:
    runs = pd.DataFrame({"method": "intl", "parent": ["a", "a", "b"], "ap": [1.0, 3.0, 10.0]})
    row = summarise(runs, ["method"], "parent", ["ap"]).iloc[0]
    assert (row.n_pretrain, row.n_eval, row.spread_of) == (2, 3, "pretraining")
    assert row.ap_mean == 6
    assert row.ap_sd == pytest.approx(32**0.5)
    assert row.ap_ci95 == pytest.approx(12.7062 * 32**0.5 / 2**0.5, rel=1e-4)


def test_with_one_pretraining_the_spread_is_labelled_and_one_run_has_none() -> None:
    runs = pd.DataFrame({"method": ["x", "x", "y"], "parent": ["a", "a", "b"], "ap": [1.0, 3.0, 5.0]})
    summary = summarise(runs, ["method"], "parent", ["ap"])
    assert list(summary.spread_of) == ["fine-tuning only", "none"]
    assert list(summary.n_pretrain) == [1, 1]
    assert summary.ap_sd.iloc[0] == pytest.approx(2**0.5)
    assert np.isnan(summary.ap_sd.iloc[1])
    assert np.isnan(summary.ap_ci95.iloc[1])


def test_a_metric_that_some_runs_lack_has_no_mean_over_the_others() -> None:
    runs = pd.DataFrame({"method": "x", "parent": ["a", "b"], "ap": [1.0, 3.0], "small": [4.0, np.nan]})
    row = summarise(runs, ["method"], "parent", ["ap", "small"]).iloc[0]
    assert row.ap_mean == 2
    assert np.isnan(row.small_mean)


# --- the tables -----------------------------------------------------------------------------------------------------


def test_a_leaderboard_has_n_mean_sd_interval_and_cost_best_first(records: Records, table: Callable[..., Rows]) -> None:
    for seed, top1 in enumerate([70.0, 72.0]):
        records.cell("simclr", seed, top1)
        records.cell("intl", seed, top1 + 8, cost={"wall_s": 3600.0, "gpu_s": 7200.0, "energy_kwh": 0.5})
    best, second = table()
    assert (best["method"], second["method"]) == ("intl", "simclr")
    assert (best["n_pretrain"], best["n_eval"], best["spread_of"]) == ("2", "2", "pretraining")
    assert (best["top1_mean"], best["top1_sd"], best["top1_ci95"]) == ("79.0", "1.414214", "12.706205")
    assert (best["pretrain_gpu_h"], best["pretrain_cpu_h"], best["pretrain_energy_kwh"]) == ("2.0", "", "0.5")
    assert (second["pretrain_wall_s"], second["pretrain_gpu_h"]) == ("60.0", "0.0")
    assert float(second["pretrain_cpu_h"]) == pytest.approx(100 / 3600, abs=1e-6)
    assert (best["epochs"], best["batch"], best["views"], best["backbone"]) == ("20", "128", "2x48", "resnet18")


def test_runs_csv_has_one_row_per_evaluation_of_one_seed(records: Records, table: Callable[..., Rows]) -> None:
    parent = records.cell("intl", 3, 71.25)
    records.evaluate(parent, {"top1": 60.0}, "knn", seed=5)
    rows = table("runs.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert [(r["stage"], r["protocol"], r["seed"], r["eval_seed"], r["top1"]) for r in rows] == [
        ("knn", "cosine-20", "3", "5", "60.0"),
        ("linear", "features", "3", "0", "71.25"),
    ]
    assert {r["parent"] for r in rows} == {parent}
    assert {r["pretrain_git"] for r in rows} == {"3" * 12}


def test_detection_has_boxes_and_masks_and_fine_tuning_seeds_count_once(
    records: Records, table: Callable[..., Rows]
) -> None:
    parents = [records.pretrain("intl", seed) for seed in range(2)]
    for parent, values in zip(parents, [(10.0, 12.0), (20.0, 22.0)]):
        for seed, value in enumerate(values):
            metrics = {"box_AP": value, "mask_AP": value - 1, "box_AP50": 2 * value, "box_APl": None}
            records.evaluate(parent, metrics, "detect", seed, cell={"dataset": "sample-det"}, config={"dataset": None})
    [row] = table("leaderboard_sample-det_detect-sample.csv")
    assert (row["n_pretrain"], row["n_eval"]) == ("2", "4")
    assert (row["box_AP_mean"], row["mask_AP_mean"], row["box_AP50_mean"]) == ("16.0", "15.0", "32.0")
    assert row["box_APl_mean"] == ""


def test_settings_that_differ_are_different_experiments_and_say_in_what(
    records: Records, table: Callable[..., Rows]
) -> None:
    for groups in (1, 2):
        for seed in range(2):
            records.cell("cwrgp", seed, 50.0 + groups, config={"method": {"name": "cwrgp", "groups": groups}})
    records.evaluate(records.pretrain("simclr"), {"top1": 40.0}, config={"device": "cuda"})
    rows = table()
    assert [(r["method"], r["variant"], r["n_pretrain"]) for r in rows] == [
        ("cwrgp", "method.groups=2", "2"),
        ("cwrgp", "method.groups=1", "2"),
        ("simclr", "", "1"),
    ]
    assert [r["eval_variant"] for r in rows] == ["device=null", "device=null", "device=cuda"]


def test_records_of_the_real_writer_give_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    cell = {"recipe": "sample/intl", "method": "intl", "seed": 0, "dataset": "sample"}
    with Run("pretrain", "intl-s0", {"method": {"name": "intl"}, "seed": 0, "lr": 0.1 + 0.2}, cell=cell) as pretraining:
        pretraining.metrics["loss"] = 1.0
    config = {"parent": pretraining.id, "protocol": {"name": "features"}, "dataset": "sample", "seed": 0}
    with Run("linear", "intl-s0", config, cell=cell, parents=[pretraining.id]) as run:
        run.metrics["top1"] = np.float32(71.5)
    assert main(["--out", str(tmp_path / "out"), "--quiet"]) == 0
    [row] = read_csv(tmp_path / "out" / "runs.csv")
    assert (row["top1"], row["pretrain_status"], row["parent"]) == ("71.5", "done", pretraining.id)
    assert row["pretrain_code"] != row["code"] != ""
    assert float(row["pretrain_cpu_s"]) > 0


# --- determinism ----------------------------------------------------------------------------------------------------


def _some(records: Records) -> None:
    for seed in range(3):
        for method in ("intl", "cwrgp", "random"):
            parent = records.cell(method, seed, 50 + seed / 3)
            records.evaluate(parent, {"top1": 40 + seed / 7}, "knn")


def test_equal_records_give_equal_bytes_wherever_they_lie(records: Records, tmp_path: Path) -> None:
    _some(records)
    tables = aggregate([records.root], tmp_path / "out")
    folders = sorted(tables.sources)
    random.Random(0).shuffle(folders)
    for i, source in enumerate(folders):  # scattered over two clusters, in another order, with duplicates
        for cluster in {i % 2, 0 if i < 5 else i % 2}:
            shutil.copytree(
                source.parent, tmp_path / f"cluster{cluster}" / source.parent.parent.name / source.parent.name
            )
    merged = aggregate([tmp_path / "cluster1", tmp_path / "cluster0"], tmp_path / "out2")
    assert contents(tmp_path / "out") == contents(tmp_path / "out2")
    assert merged.duplicates > 0
    assert "found twice" in render(merged)


def test_two_at_once_leave_whole_files(tmp_path: Path) -> None:
    expected: dict[str, set[bytes]] = {}
    for name, top1 in (("a", 50.0), ("b", 60.0)):
        records = Records(tmp_path / name)
        for seed in range(20):
            records.cell("intl", seed, top1 + seed)
        aggregate([tmp_path / name], tmp_path / f"out-{name}")
        for file, content in contents(tmp_path / f"out-{name}").items():
            expected.setdefault(file, set()).add(content)
    threads = [
        threading.Thread(target=lambda name=name: [aggregate([tmp_path / name], tmp_path / "out") for _ in range(3)])
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert all(content in expected[name] for name, content in contents(tmp_path / "out").items())
    assert contents(tmp_path / "out").keys() == expected.keys()


def test_floats_are_plain_and_nothing_is_empty() -> None:
    table = pd.DataFrame({"x": [1e-9, -0.0, 1e15, 0.1 + 0.2, np.nan], "n": pd.array([1, 2, None, 4, 5], dtype="Int64")})
    assert csv_bytes(table).decode() == "x,n\n0.0,1\n0.0,2\n1000000000000000.0,\n0.3,4\n,5\n"


# --- what is wrong --------------------------------------------------------------------------------------------------


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
    shown = render(tables_of([records.root]))
    assert "running: 1 pretrain" in shown
    assert "failed: 1 linear, 1 pretrain" in shown
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


def test_doubtful_rows_are_flagged(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Callable[..., Rows]
) -> None:
    (tmp_path / "recipes" / "sample").mkdir(parents=True)
    (tmp_path / "recipes" / "sample" / "pauc.yaml").write_text("paper: {reconstruction: true}")
    monkeypatch.setattr(recipes, "RECIPES", Library("recipe", tmp_path / "recipes"))
    for read in (recipes.names, recipes.content):
        read.cache_clear()
    records.cell("random", 0, 30.0)
    records.cell("pauc", 0, 60.0)
    records.cell("simclr", 0, 29.0)
    records.cell("intl", 0, 70.0, environment={"git": "3" * 40, "dirty": True})
    other = {**code_files("pretrain", "intl"), "pretrain/optim.py": "0" * 12}
    records.cell("intl", 1, 70.0, environment={"git": "4" * 40}, metrics={"collapsed": True}, code=other)
    records.evaluate(records.pretrain("cwrgp", 0, status="interrupted"), {"top1": 65.0, "deviations": ["batch: 2"]})  # type: ignore[dict-item]
    found = {row["method"]: row["flags"] for row in table()}
    assert found == {
        "intl": "1 of 2 collapsed; only 2 pretrainings; uncommitted code; several versions of the code",
        "cwrgp": "one pretraining; deviates from the protocol; pretraining not done",
        "pauc": "reconstruction; one pretraining",
        "random": "untrained; one pretraining",
        "simclr": "not above random; one pretraining",
    }
    for read in (recipes.names, recipes.content):
        read.cache_clear()


def _made_now(records: Records, recipe: str, evaluated: dict[str, Any] | None = None, **pretrained: Any) -> None:
    """A pretraining and its linear probe that this checkout's code made, but for the changes."""
    from pretrain.evaluate.protocols import find_protocol

    protocol = canonical(find_protocol("linear", "features"))
    parent = records.pretrain(
        "intl", recipe=recipe, config={"lr": recipe}, **{"code": code_files("pretrain", "intl"), **pretrained}
    )
    changes = {"code": code_files("linear"), "protocol": protocol, **(evaluated or {})}
    records.evaluate(parent, {"top1": 70.0}, config={"protocol": changes.pop("protocol")}, **changes)


def test_what_has_changed_since_a_run_makes_its_rows_stale(records: Records, tmp_path: Path) -> None:
    from pretrain.evaluate.protocols import find_protocol

    same = canonical(find_protocol("linear", "features"))
    pretrained, evaluated = code_files("pretrain", "intl"), code_files("linear")
    shared = "pretrain/losses/whitening.py"
    assert shared in pretrained
    expected = {
        "as-now": "",
        "words": "",
        "shared-loss": shared,
        "evaluation": "pretrain/evaluate/linear.py",
        "file-gone": "pretrain/losses/gone.py",
        "protocol": "protocol",
        "unrecorded": "code unknown",
        "many": f"{'; '.join(sorted(pretrained)[:3])}; and",
    }
    _made_now(records, "as-now")
    _made_now(records, "words", {"protocol": {**same, "source": "elsewhere"}})
    _made_now(records, "shared-loss", code={**pretrained, shared: "0" * 12})
    _made_now(records, "evaluation", {"code": {**evaluated, "pretrain/evaluate/linear.py": "0" * 12}})
    _made_now(records, "file-gone", code={**pretrained, "pretrain/losses/gone.py": "0" * 12})
    _made_now(records, "protocol", {"protocol": {**same, "epochs": 7}})
    _made_now(records, "unrecorded", code={})
    _made_now(records, "many", code=dict.fromkeys(pretrained, "0" * 12))
    out = tmp_path / "out"
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])
    stale = {row["recipe"]: row["stale"] for row in read_csv(out / "leaderboard_sample_linear-features.csv")}
    assert {**stale, "many": stale["many"].partition(" and")[0] + " and"} == expected
    assert f"{shared} changed since" in render(tables_of([records.root]))


def test_a_check_fails_on_a_stale_row_and_names_the_changed_file(
    records: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, changed = tmp_path / "out", {**code_files("pretrain", "intl"), "pretrain/networks.py": "0" * 12}
    _made_now(records, "as-now")
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])
    assert main(["--out", str(out), "--check"]) == 0
    _made_now(records, "older", code=changed)
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])
    assert main(["--out", str(out), "--check"]) == 1
    assert "older: pretrain/networks.py changed since" in capsys.readouterr().err


def test_a_published_record_names_no_folder_of_its_machine(tmp_path: Path) -> None:
    records, out = Records(tmp_path / "runs"), tmp_path / "out"
    command = f"python -m submitit {tmp_path}/sweeps/cell --out={tmp_path}/\u00fcber a/b"
    records.cell("intl", 0, 60.0, command=command)
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])
    published = [path.read_text() for path in (out / "records").glob("*/*.json")]
    assert published
    assert not [text for text in published if str(tmp_path) in text]
    assert "python -m submitit cell --out=\u00fcber a/b" in {json.loads(text).get("command") for text in published}
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])  # again: the same record, no contradiction
    [row] = read_csv(out / "runs.csv")
    assert row["contradicts"] in ("", "False", "false")


def test_a_users_tables_hold_published_records_only_where_asked(tmp_path: Path) -> None:
    published, own, out = Records(tmp_path / "theirs"), Records(tmp_path / "mine"), tmp_path / "out"
    published.cell("intl", 0, 60.0, code={})
    own.cell("simclr", 0, 50.0)
    main([str(published.root), "--out", str(out), "--publish", "--quiet"])
    main([str(own.root), "--out", str(out), "--quiet"])
    assert [row["method"] for row in read_csv(out / "runs.csv")] == ["simclr"]
    main([str(own.root), "--out", str(out), "--quiet", "--with-published"])
    assert [row["method"] for row in read_csv(out / "runs.csv")] == ["intl", "simclr"]
    main(["--out", str(out), "--rebuild"])
    assert [row["method"] for row in read_csv(out / "runs.csv")] == ["intl"]
    assert main(["--out", str(out), "--check"]) == 1  # of code that no record names


def test_records_of_the_claims_are_no_part_of_the_leaderboards(records: Records, tmp_path: Path) -> None:
    records.cell("intl", 0, 60.0)
    out = tmp_path / "out"
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])
    claims = Records(out / "records" / "claims")
    claims.cell("spectral", 0, 50.0)
    main(["--out", str(out), "--rebuild"])
    assert [row["method"] for row in read_csv(out / "runs.csv")] == ["intl"]


@pytest.mark.parametrize(
    ("start", "flagged"),
    [
        ({"git": "3" * 40, "dirty": False, "hashes": {"method": "1" * 64}}, False),
        ({"git": "4" * 40, "dirty": False, "hashes": {"method": "1" * 64}}, True),
        ({"git": "3" * 40, "dirty": True, "hashes": {"method": "1" * 64}}, True),
        ({"git": "3" * 40, "dirty": False, "hashes": {"method": "2" * 64}}, True),
    ],
)
def test_a_run_that_was_resumed_under_other_code_is_flagged(
    records: Records, table: Callable[..., Rows], start: dict[str, Any], flagged: bool
) -> None:
    records.cell("intl", 0, 70.0, hashes={"method": "1" * 64}, earlier=[start])
    [row] = table()
    assert ("resumed under other code" in row["flags"]) is flagged


def test_two_records_of_one_run_that_differ_are_named(tmp_path: Path) -> None:
    for name, top1 in (("a", 70.0), ("b", 70.0), ("c", 71.0)):
        records = Records(tmp_path / name)
        parent = records.pretrain("intl", artifacts={"backbone": {"sha256": name}})
        records.evaluate(parent, {"top1": top1}, cost={"wall_s": 1.0})
    tables = tables_of([tmp_path / name for name in "abc"])
    value, *weights = sorted(tables.conflicts)
    assert value.startswith("linear/intl-s0")
    assert f"{tmp_path}/a/linear" in value.rpartition(";")[2]
    assert [line.startswith("pretrain/intl-s0") for line in weights] == [True, True]
    assert (tables.duplicates, len(tables.runs)) == (4, 1)
    assert tables.runs.contradicts.tolist() == [True]
    assert "another record contradicts it" in tables.leaderboards[0].table["flags"].iloc[0]
    assert "3 records of one run differ from each other" in render(tables)


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


def test_leaderboards_that_no_record_gives_any_more_are_removed(records: Records, tmp_path: Path) -> None:
    parent = records.cell("intl", 0, 70.0)
    other = records.evaluate(parent, {"top1": 60.0}, "knn")
    aggregate([records.root], tmp_path / "out")
    assert (tmp_path / "out" / "leaderboard_sample_knn-cosine-20.csv").exists()
    shutil.rmtree(records.root / "knn" / other)
    aggregate([records.root], tmp_path / "out")
    left = sorted(contents(tmp_path / "out"))
    assert left == ["comparisons.csv", "leaderboard_sample_linear-features.csv", "runs.csv"]


def test_without_any_evaluation_nothing_is_changed(records: Records, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "leaderboard_x.csv").write_text("kept")
    records.pretrain("intl", status="running")
    with pytest.raises(UserError, match=r"no evaluation has ended.*1 pretrain running"):
        aggregate([records.root], tmp_path / "out")
    assert contents(tmp_path / "out") == {"leaderboard_x.csv": b"kept"}


# --- again ----------------------------------------------------------------------------------------------------------


def _old(root: Path) -> None:
    """As if all records had been written a minute ago: what is being written now is not remembered."""
    for path in root.rglob("run.json"):
        os.utime(path, (time.time() - 60, time.time() - 60))


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths of the records that are read from now on."""
    read: list[Path] = []

    def counted(path: Path) -> Any:
        read.append(path)
        return read_proven(path)

    monkeypatch.setattr(collect, "read_proven", counted)
    return read


def test_the_second_time_only_what_has_changed_is_read(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _some(records)
    broken = records.root / "linear" / "half-s0-0123456789ab"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    _old(records.root)
    first = aggregate([records.root], tmp_path / "out")
    before, read = contents(tmp_path / "out"), _reads(monkeypatch)
    second = aggregate([records.root], tmp_path / "out")
    assert read == []
    assert contents(tmp_path / "out") == before
    assert (second.faults, second.sources) == (first.faults, first.sources)
    assert len(second.faults) == 1
    changed = records.evaluate(records.pretrain("intl", 0), {"top1": 99.0})
    aggregate([records.root], tmp_path / "out")
    assert {path.parent.name for path in read} == {changed, records.pretrain("intl", 0)}
    assert "99.0" in (tmp_path / "out" / "runs.csv").read_text()
    shutil.rmtree(records.root / "knn")
    assert "knn" not in {board.stage for board in aggregate([records.root], tmp_path / "out").leaderboards}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"code": "x"}', '{"code": "x", "entries": 3}'])
def test_a_damaged_cache_or_one_of_other_code_is_not_used(records: Records, tmp_path: Path, content: str) -> None:
    records.cell("intl", 0, 70.0)
    _old(records.root)
    aggregate([records.root], tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / ".collected.json").write_text(content)
    aggregate([records.root], tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_check_reads_everything(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.cell("intl", 0, 70.0)
    main([str(records.root), "--out", str(tmp_path / "out"), "--publish", "--quiet"])
    read = _reads(monkeypatch)
    main(["--out", str(tmp_path / "out"), "--check"])
    assert len(read) == 2


# --- shown ----------------------------------------------------------------------------------------------------------


def test_the_overview_puts_all_evaluations_of_an_experiment_in_one_row(records: Records) -> None:
    for seed in range(2):
        parent = records.cell("intl", seed, 70.0 + seed)
        records.evaluate(parent, {"top1": 60.0 + seed}, "knn")
    for seed in range(3):
        records.evaluate(parent, {"box_AP": 20.0 + seed, "mask_AP": 10.0}, "detect", seed)
    shown = render(tables_of([records.root]))
    row = next(line for line in shown.splitlines() if line.strip().startswith("intl"))
    assert re.sub(r"\s+", " ", row).strip() == (
        "intl sample/intl 20 70.50 ± 0.71 (2) 60.50 ± 0.71 (2) 21.00 ± 1.00† (1) 10.00 ± 0.00† (1) 0.028 CPU h"
    )
    assert "† one pretraining: the spread is that of its evaluations only" in shown
    assert "\033" not in shown
    assert "\033" in render(tables_of([records.root]), colour=True)


# --- published values -----------------------------------------------------------------------------------------------


def _published(
    records: Records, method: str, top1: float = 92.0, recipe: str | None = None, seed: int = 0, **config: Any
) -> str:
    base = {
        "data": {"dataset": "cifar10", "views": [{"size": 32, "count": 2}]},
        "schedule": {"epochs": 1000},
        "batch": 256,
        "method": {"name": method},
    }
    parent = records.pretrain(method, seed, recipe=recipe, config={**base, **config})
    return records.evaluate(parent, {"top1": top1, "top5": 99.0}, config={"dataset": "cifar10"})


CIFAR = "leaderboard_cifar10_linear-features.csv"


def test_a_published_value_of_the_same_setting_has_a_delta_and_its_source(
    records: Records, table: Callable[..., Rows]
) -> None:
    _published(records, "cwrgp")
    _published(records, "intl")
    rows = {row["method"]: row for row in table(CIFAR)}
    assert (rows["cwrgp"]["top1_published"], rows["cwrgp"]["top1_delta"]) == ("91.92", "0.08")
    assert rows["cwrgp"]["published_method"] == "CW-RGP 2"
    assert rows["cwrgp"]["comparable"] == "yes"
    assert "winci-ai/CW-RGP" in rows["cwrgp"]["published_source"]
    assert (rows["intl"]["top1_published"], rows["intl"]["top1_delta"]) == ("92.6", "-0.6")


def test_four_views_are_compared_with_the_four_view_value(records: Records, table: Callable[..., Rows]) -> None:
    _published(records, "cwrgp", data={"dataset": "cifar10", "views": [{"size": 32, "count": 4}]})
    [row] = table(CIFAR)
    assert (row["published_method"], row["top1_published"]) == ("CW-RGP 4", "92.47")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"schedule": {"epochs": 200}}, "epochs different: 200, published 1000"),
        ({"batch": 512}, "batch different: 512, published 256"),
        ({"network": {"backbone": "resnet50"}}, "backbone different: resnet50, published ResNet-18"),
        ({"data": {"dataset": "cifar10", "views": [{"size": 32, "count": 8}]}}, "views different: 8x32, published 2"),
    ],
)
def test_a_different_setting_is_named_and_has_no_delta(
    records: Records, table: Callable[..., Rows], config: dict[str, Any], said: str
) -> None:
    _published(records, "intl", **config)
    [row] = table(CIFAR)
    assert (row["comparable"], row["top1_delta"]) == ("no", "")
    assert said in row["published_fields"]
    assert row["top1_published"] not in render(tables_of([records.root]))


def test_what_a_publication_does_not_state_is_undecided(records: Records, table: Callable[..., Rows]) -> None:
    _published(records, "simclr")
    [row] = table(CIFAR)
    assert (row["comparable"], row["top1_published"], row["top1_delta"]) == ("undecided", "91.8", "")
    assert "batch not stated" in row["published_fields"]
    assert "91.80 (undecided)" in render(tables_of([records.root]))


def test_voc_is_compared_with_its_own_values(records: Records, table: Callable[..., Rows]) -> None:
    config = {"data": {"dataset": "imagenet1k"}, "network": {"backbone": "resnet50"}, "schedule": {"epochs": 200}}
    parent = records.pretrain("cwrgp", config=config)
    metrics = {"box_AP": 57.0, "box_AP50": 82.0, "box_AP75": 63.0}
    records.evaluate(parent, metrics, "detect", 0, {"protocol": {"name": "c4-24k"}, "dataset": "voc"})  # type: ignore[arg-type]
    [row] = table("leaderboard_voc_detect-c4-24k.csv")
    assert (row["box_AP_published"], row["mask_AP_published"], row["mask_AP_mean"]) == ("57.2", "", "")
    assert "protocol equal" in row["published_fields"]


def test_a_run_that_deviates_from_its_protocol_is_not_comparable(records: Records, table: Callable[..., Rows]) -> None:
    parent = records.pretrain(
        "cwrgp",
        config={"data": {"dataset": "imagenet1k"}, "network": {"backbone": "resnet50"}, "schedule": {"epochs": 200}},
    )
    for seed, deviations in enumerate([[], ["SOLVER.MAX_ITER: 10, published 90000"]]):
        metrics = {"box_AP": 40.0, "mask_AP": 35.0, "deviations": deviations}
        config = {"protocol": {"name": "c4-2x"}, "dataset": None, "iterations": seed}
        records.evaluate(parent, metrics, "detect", seed, config, cell={"dataset": "coco"})  # type: ignore[arg-type]
    rows = {row["deviations"] != "": row for row in table("leaderboard_coco_detect-c4-2x.csv")}
    assert (rows[False]["comparable"], rows[True]["comparable"]) == ("undecided", "no")
    assert (rows[False]["box_AP_published"], rows[False]["mask_AP_published"]) == ("40.7", "35.5")
    assert "protocol not stated: its repository's config is 2x" in rows[False]["published_fields"]
    assert "protocol different: SOLVER.MAX_ITER" in rows[True]["published_fields"]


def test_published_coco_numbers_of_the_whitening_papers_are_not_c4_1x(
    records: Records, table: Callable[..., Rows]
) -> None:
    parent = records.pretrain(
        "intl",
        config={"data": {"dataset": "imagenet1k"}, "network": {"backbone": "resnet50"}, "schedule": {"epochs": 200}},
    )
    config = {"protocol": {"name": "c4-1x"}, "dataset": None}
    metrics = {"box_AP": 40.0, "mask_AP": 35.0, "deviations": []}
    records.evaluate(parent, metrics, "detect", 0, config, cell={"dataset": "coco"})  # type: ignore[arg-type]
    (row,) = table("leaderboard_coco_detect-c4-1x.csv")
    assert row["comparable"] == "no"
    assert "protocol different: 2x, by its repository's config" in row["published_fields"]


def test_ema_and_multi_crop_are_told_from_the_plain_method() -> None:
    views = "2x224+1x192+1x160+1x128+1x96"
    measured = {"dataset": "imagenet1k", "stage": "linear", "protocol": "intl-imagenet", "method": "intl"}
    measured |= {"backbone": "resnet50", "epochs": 100, "batch": 256, "views": views, "selection": "last"}
    with_ema = Published().nearest(measured, {"name": "intl", "momentum": "0.996"}, "top1")
    assert with_ema is not None
    assert (with_ema.method, with_ema.values["top1"]) == ("INTL (EMA + multi-crop)", 73.5)
    assert with_ema.comparable == "undecided"
    assert [name for name, state in with_ema.fields.items() if state != "equal"] == ["selection"]
    plain = Published().nearest(measured, {"name": "intl", "momentum": "null"}, "top1")
    assert plain is not None
    assert (plain.method, plain.comparable) == ("INTL", "no")


def test_of_equally_near_values_the_one_read_at_its_source_is_taken() -> None:
    measured = {"dataset": "imagenet100", "stage": "linear", "protocol": "intl-2view", "method": "intl"}
    match = Published().nearest(
        {**measured, "backbone": "resnet18", "epochs": 400, "batch": 128, "views": "2x224", "selection": "last"},
        {},
        "top1",
    )
    assert match is not None
    assert match.values["top1"] == 81.68
    assert not match.source.startswith("SECONDARY")


@pytest.mark.parametrize(
    ("tops", "verdict"),
    [
        ([91.46, 91.47, 91.48], "reproduced"),
        ([91.92, 91.93, 91.9], "reproduced"),
        ([91.4], "not decided (n = 1)"),
        ([91.9, 91.9], "not decided (n = 2)"),
        ([91.3, 91.31, 91.32], "short by 0.61"),
        ([91.4, 91.41, 91.42], "not decided"),  # its interval reaches over the bound
        ([95.9, 88.5, 92.0], "not decided"),  # the mean is right by chance
        ([95.9, 95.8, 95.85], "above by 3.93"),
    ],
)
def test_a_verdict_is_by_the_recipes_tolerance_and_needs_the_whole_interval(
    records: Records, table: Callable[..., Rows], tops: list[float], verdict: str
) -> None:
    """CW-RGP's 91.92, within half a point."""
    for seed, top1 in enumerate(tops):
        _published(records, "cwrgp", top1=top1, recipe="cifar10/cwrgp-2view", seed=seed)
    [row] = table(CIFAR)
    assert (row["comparable"], row["top1_verdict"]) == ("yes", verdict)
    assert verdict in render(tables_of([records.root]))


def test_a_reconstruction_has_no_verdict(records: Records, table: Callable[..., Rows]) -> None:
    _published(records, "simclr", recipe="cifar10/simclr")
    [row] = table(CIFAR)
    assert (row["comparable"], row["top1_verdict"], row["top1_delta"]) == ("undecided", "", "")
    assert "settings not stated: a reconstruction" in row["published_fields"]
    assert "reconstruction" in row["flags"]


def test_another_selection_than_the_papers_is_no_comparison(records: Records, table: Callable[..., Rows]) -> None:
    config = {"data": {"dataset": "imagenet1k", "views": [{"size": 224, "count": 4}]}, "batch": 512}
    network = {"network": {"backbone": "resnet50"}, "schedule": {"epochs": 100}}
    parent = records.pretrain("cwrgp", config={**config, **network})
    protocol = {"dataset": "imagenet1k", "protocol": {"name": "cwrgp-imagenet", "selection": "last"}}
    records.evaluate(parent, {"top1": 69.7}, config=protocol)
    [row] = table("leaderboard_imagenet1k_linear-cwrgp-imagenet.csv")
    assert (row["selection"], row["comparable"], row["top1_verdict"]) == ("last", "no", "")
    assert "selection different: last, published best" in row["published_fields"]


@pytest.mark.parametrize(
    ("text", "views"),
    [
        ("2", (2, None)),
        ("2x224+6x96", (8, {224: 2, 96: 6})),
        ("6 (2x224,192,160,128,96)", (6, {224: 2, 192: 1, 160: 1, 128: 1, 96: 1})),
        (f"{10**12}x224", (10**12, {224: 10**12})),
        ("", None),
        ("several", None),
    ],
)
def test_numbers_and_sizes_of_views_are_read(text: str, views: Any) -> None:
    assert parse_views(text) == views


def test_every_name_of_the_map_exists_on_both_sides() -> None:
    from pretrain.evaluate.protocols import PROTOCOLS
    from pretrain.method import method_names

    published, names = pd.read_csv(CSV, dtype=str), Published().map
    assert set(names["methods"]) <= set(published.method)
    assert {entry["method"] for entry in names["methods"].values()} <= set(method_names())
    assert set(names["datasets"].values()) <= set(published.dataset)
    assert {text for texts in names["backbones"].values() for text in texts} <= set(published.backbone)
    assert set(names["metrics"].values()) <= set(published.metric)
    entries = [entry for entries in names["protocols"].values() for entry in entries]
    assert {entry["text"] for entry in entries} <= set(published.protocol)
    assert {entry["paper"] for entry in entries if "paper" in entry} <= set(published.paper)
    assert {data for entry in entries for data in entry.get("dataset", [])} <= set(published.dataset)
    known = {f"{stage}-{protocol.name}" for stage, protocols in PROTOCOLS.items() for protocol in protocols}
    known |= {f"detect-{path.stem}" for path in (ROOT / "transfer" / "protocols").glob("*.yaml")}
    assert set(names["protocols"]) <= known


def test_published_values_are_those_of_the_reference() -> None:
    folder = SHARED / "reference"
    if not (folder / "published_more.csv").exists():
        pytest.skip("the reference is not here")
    expected = [row for name in ("published.csv", "published_more.csv") for row in read_csv(folder / name)]
    rows = read_csv(CSV)[: len(expected)]  # in the same order; tables read elsewhere follow
    for row, reference in zip(rows, expected, strict=True):
        for key in ("paper", "dataset", "task", "epochs", "batch_size", "metric"):
            assert row[key] == reference[key]
        assert float(row["value"]) == float(reference["value"])


def test_published_data_columns_hold_data_and_their_digits_are_as_printed() -> None:
    rows = read_csv(CSV)
    comment = re.compile(r"\(|\[|not stated|same numbers")
    assert not [row["backbone"] for row in rows if comment.search(row["backbone"])]
    methods = {row["method"] for row in rows if comment.search(row["method"])}
    assert methods <= {"INTL (EMA + multi-crop)", "T-REGS (MSE)", "SIGReg (BCS)", "2*align(2)+unif(t2)"} | {
        f"{k}*align(2)+unif(t{k})" for k in (3, 4)
    }
    assert not [row["source"] for row in rows if "file-index" in row["source"]]
    values = {(row["method"], row["dataset"], row["metric"], row["paper"]): row["value"] for row in rows}
    assert values["INTL", "CIFAR-10", "top5", "INTL (ICLR 2024)"] == "99.80"
    assert values["CW-RGP", "VOC07+12", "AP_std", "CW-RGP (NeurIPS 2022)"] == "0.10"
    assert all(parse_views(row["views"]) for row in rows if row["views"])


def test_the_coco_table_has_published_baselines() -> None:
    boxes = {
        row["method"]: cells["box_AP"][0]
        for row, cells in Published().rows
        if (row["dataset"], row["paper"]) == ("COCO2017", "SimSiam (CVPR 2021)")
        and not row["note"].startswith("second")
    }
    assert boxes == {
        "scratch": "26.4",
        "Supervised": "38.2",
        "SimCLR": "37.9",
        "MoCo v2": "39.2",
        "BYOL": "37.9",
        "SwAV": "37.6",
        "SimSiam": "37.9",
    }


# --- publishing and checking ----------------------------------------------------------------------------------------


def test_published_records_give_the_committed_tables_and_a_change_is_found(
    records: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe in "abc":
        _made_now(records, recipe)
    records.pretrain("intl", 9, status="failed")
    records.pretrain("intl", 8, status="running")
    out = tmp_path / "out"
    assert main([str(records.root), "--out", str(out), "--publish", "--quiet"]) == 0
    assert len(list((out / "records").rglob("*.json"))) == 3 + 3 + 1
    shutil.rmtree(records.root)
    assert main(["--out", str(out), "--check"]) == 0
    board = out / "leaderboard_sample_linear-features.csv"
    whole = board.read_text()
    board.write_text(whole.replace("70.0", "71.0", 1))
    capsys.readouterr()
    assert main(["--out", str(out), "--check"]) == 1
    assert "leaderboard_sample_linear-features.csv: line " in capsys.readouterr().err
    board.write_text(whole)
    (out / "leaderboard_typed_by-hand.csv").write_text("x")
    assert main(["--out", str(out), "--check"]) == 1
    assert "no published record gives it" in capsys.readouterr().err
    (out / "leaderboard_typed_by-hand.csv").unlink()
    next((out / "records" / "linear").glob("*.json")).unlink()
    assert main(["--out", str(out), "--check"]) == 1


def test_own_runs_go_before_published_ones_and_done_ones_before_others(tmp_path: Path) -> None:
    published, own = Records(tmp_path / "theirs"), Records(tmp_path / "mine")
    for records, top1 in ((published, 60.0), (own, 70.0)):
        records.cell("intl", 0, top1)
    published.evaluate(published.pretrain("intl", 1), {"top1": 60.0})
    own.evaluate(own.pretrain("intl", 1), {}, status="failed")
    main([str(published.root), "--out", str(tmp_path / "out"), "--publish", "--quiet"])
    aggregate([own.root], tmp_path / "out", with_published=True)
    assert [(r["seed"], r["top1"]) for r in read_csv(tmp_path / "out" / "runs.csv")] == [("0", "70.0"), ("1", "60.0")]


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = str(ROOT / "results" / "aggregate.py")
        return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, cwd=tmp_path)

    absent = command("no/such/folder", "--out", "out")
    assert (absent.returncode, absent.stderr) == (2, "error: no/such/folder: no such folder of runs\n")
    empty = command("--out", "out")
    assert empty.returncode == 2
    assert "no evaluation has ended" in empty.stderr
    assert list(tmp_path.iterdir()) == []
    assert "usage: python results/aggregate.py" in command("--help").stdout


def test_views_and_settings_are_written_briefly() -> None:
    assert views_text([{"size": 224, "count": 2}, {"size": 96, "count": 6}]) == "2x224+6x96"
    assert views_text(None) is None
    assert flat({"a": {"b": [1, 2]}, "c": "x", "d": None}) == {"a.b": "[1,2]", "c": "x", "d": "null"}
