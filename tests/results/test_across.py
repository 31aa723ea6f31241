"""Methods over several leaderboards: by hand, by scipy, and as the bootstrap's intervals promise."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from results.aggregate import aggregate, tables_of
from results.leaderboards.across import BETWEEN_BOUNDS, COLUMNS, PER_CENT, across, interquartile_mean, profile
from tests.support.run_records import Records


def _runs(values: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    """{board: {method: a value per pretraining}} as evaluations."""
    rows = [
        {"board": board, "method": method, "recipe": f"{board}/{method}", "parent": f"{method}{i}", "top1": top1}
        for board, methods in values.items()
        for method, tops in methods.items()
        for i, top1 in enumerate(tops)
    ]
    return pd.DataFrame(rows).assign(stage="linear", config="c", eval_config="e")


def test_the_interquartile_mean_is_scipys_trimmed_mean() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 7))
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))
    assert interquartile_mean([0.0, 1.0, 3.0, 100.0]) == 2


def test_a_profile_is_the_share_of_scores_at_or_above_a_threshold() -> None:
    boards = [np.array([0.2, 0.5]), np.array([0.5, 0.5, 0.1, 0.9])]
    assert profile(boards, 0.5) == pytest.approx((0.5 + 0.75) / 2)
    assert profile(boards, 0.0) == 1
    assert profile(boards, 1.0) == 0


def test_ranks_and_scores_are_those_computed_by_hand() -> None:
    values = {
        "x": {"a": [80.0, 82.0], "b": [70.0, 72.0], "random": [20.0, 20.0], "supervised": [90.0, 90.0]},
        "y": {"a": [30.0, 32.0], "b": [40.0, 42.0], "random": [10.0, 10.0], "supervised": [50.0, 50.0]},
    }
    table = across(_runs(values), ["x", "y"])
    assert list(table) == list(COLUMNS)
    assert list(table.method) == ["a", "b"]
    assert list(table.mean_rank) == [1.5, 1.5]
    of_a = [60 / 70, 62 / 70, 20 / 40, 22 / 40]
    assert table.iqm[0] == pytest.approx(sorted(of_a)[1] / 2 + sorted(of_a)[2] / 2)
    assert table["profile_0.8"][0] == 0.5
    assert set(table.score) == {BETWEEN_BOUNDS}
    assert (table.iqm_low <= table.iqm).all()
    assert (table.iqm <= table.iqm_high).all()


def test_without_bounds_scores_are_accuracies_and_one_pretraining_has_no_interval() -> None:
    table = across(_runs({"x": {"a": [80.0], "b": [70.0, 71.0]}, "y": {"a": [60.0], "b": [50.0, 51.0]}}), ["x", "y"])
    assert set(table.score) == {PER_CENT}
    rows = table.set_index("method")
    assert rows.iqm["a"] == pytest.approx(0.7)
    assert np.isnan(rows.iqm_low["a"])
    assert not np.isnan(rows.iqm_low["b"])


def test_only_methods_on_every_leaderboard_count_and_one_leaderboard_is_none() -> None:
    values = {"x": {"a": [1.0, 2.0], "b": [2.0, 3.0], "c": [3.0, 4.0]}, "y": {"a": [1.0, 2.0], "b": [2.0, 3.0]}}
    assert list(across(_runs(values), ["x", "y"]).method) == ["b", "a"]
    assert across(_runs({"x": values["x"]}), ["x"]).empty


def test_intervals_of_the_interquartile_mean_cover_it() -> None:
    """Of 60 experiments with ten runs on three leaderboards at least 80 %: a bootstrap of few runs is a bit narrow."""
    draw, covered = np.random.default_rng(1), 0
    for _ in range(60):
        values = {board: {method: list(draw.normal(50, 5, 10)) for method in "ab"} for board in "xyz"}
        row = across(_runs(values), ["x", "y", "z"]).iloc[0]
        covered += row.iqm_low <= 0.5 <= row.iqm_high
    assert covered >= 48


def test_the_table_is_written_and_the_same_each_time(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs")
    for method, top in (("intl", 70.0), ("cwrgp", 65.0), ("random", 30.0), ("supervised", 90.0)):
        for seed in range(3):
            parent = records.cell(method, seed, top + seed)
            records.evaluate(parent, {"top1": top - 5 + seed}, "knn")
    aggregate([records.root], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "across.csv")
    assert list(table.recipe) == ["intl", "cwrgp"]
    assert set(table.boards) == {"sample_knn-cosine-20; sample_linear-features"}
    assert tables_of([records.root]).across.equals(tables_of([records.root]).across)
