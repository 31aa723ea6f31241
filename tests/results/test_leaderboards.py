"""Tables say what the records say: the right n, spread and cost, and equal bytes wherever the records lie."""

import random
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from results.aggregate import aggregate, main, render, tables_of
from results.leaderboards.run_table import COLUMNS, flat, views_text
from results.leaderboards.write import csv_bytes
from tests.support.run_records import Records, Rows, csv_contents, read_csv, three_methods
from whitebench.records import Run


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


def test_equal_records_give_equal_bytes_wherever_they_lie(records: Records, tmp_path: Path) -> None:
    three_methods(records)
    tables = aggregate([records.root], tmp_path / "out")
    folders = sorted(tables.sources)
    random.Random(0).shuffle(folders)
    for i, source in enumerate(folders):  # scattered over two clusters, in another order, with duplicates
        for cluster in {i % 2, 0 if i < 5 else i % 2}:
            shutil.copytree(
                source.parent, tmp_path / f"cluster{cluster}" / source.parent.parent.name / source.parent.name
            )
    merged = aggregate([tmp_path / "cluster1", tmp_path / "cluster0"], tmp_path / "out2")
    assert csv_contents(tmp_path / "out") == csv_contents(tmp_path / "out2")
    assert merged.duplicates > 0
    assert "found twice" in render(merged)


def test_two_at_once_leave_whole_files(tmp_path: Path) -> None:
    expected: dict[str, set[bytes]] = {}
    for name, top1 in (("a", 50.0), ("b", 60.0)):
        records = Records(tmp_path / name)
        for seed in range(20):
            records.cell("intl", seed, top1 + seed)
        aggregate([tmp_path / name], tmp_path / f"out-{name}")
        for file, content in csv_contents(tmp_path / f"out-{name}").items():
            expected.setdefault(file, set()).add(content)
    threads = [
        threading.Thread(target=lambda name=name: [aggregate([tmp_path / name], tmp_path / "out") for _ in range(3)])
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert all(content in expected[name] for name, content in csv_contents(tmp_path / "out").items())
    assert csv_contents(tmp_path / "out").keys() == expected.keys()


def test_floats_are_plain_and_nothing_is_empty() -> None:
    table = pd.DataFrame({"x": [1e-9, -0.0, 1e15, 0.1 + 0.2, np.nan], "n": pd.array([1, 2, None, 4, 5], dtype="Int64")})
    assert csv_bytes(table).decode() == "x,n\n0.0,1\n0.0,2\n1000000000000000.0,\n0.3,4\n,5\n"


def test_the_overview_puts_all_evaluations_of_an_experiment_in_one_row(records: Records) -> None:
    for seed in range(2):
        parent = records.cell("intl", seed, 70.0 + seed)
        records.evaluate(parent, {"top1": 60.0 + seed}, "knn")
    for seed in range(3):
        records.evaluate(parent, {"box_AP": 20.0 + seed, "mask_AP": 10.0}, "detect", seed)
    printed = render(tables_of([records.root]))
    row = next(line for line in printed.splitlines() if line.strip().startswith("intl"))
    assert re.sub(r"\s+", " ", row).strip() == (
        "intl sample/intl 20 70.50 ± 0.71 (2) 60.50 ± 0.71 (2) 21.00 ± 1.00† (1) 10.00 ± 0.00† (1) 0.028 CPU h"
    )
    assert "† one pretraining: the spread is that of its evaluations only" in printed
    assert "\033" not in printed
    assert "\033" in render(tables_of([records.root]), colour=True)


def test_leaderboards_that_no_record_gives_any_more_are_removed(records: Records, tmp_path: Path) -> None:
    parent = records.cell("intl", 0, 70.0)
    other = records.evaluate(parent, {"top1": 60.0}, "knn")
    aggregate([records.root], tmp_path / "out")
    assert (tmp_path / "out" / "leaderboard_sample_knn-cosine-20.csv").exists()
    shutil.rmtree(records.root / "knn" / other)
    aggregate([records.root], tmp_path / "out")
    remaining = sorted(csv_contents(tmp_path / "out"))
    assert remaining == ["comparisons.csv", "leaderboard_sample_linear-features.csv", "runs.csv"]


def test_views_and_settings_are_written_briefly() -> None:
    assert views_text([{"size": 224, "count": 2}, {"size": 96, "count": 6}]) == "2x224+6x96"
    assert views_text(None) is None
    assert flat({"a": {"b": [1, 2]}, "c": "x", "d": None}) == {"a.b": "[1,2]", "c": "x", "d": "null"}
