"""Means, spreads and intervals of leaderboards: by hand, by scipy, by their coverage."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results.leaderboards.intervals import half_width, summarise


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
