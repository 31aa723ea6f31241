"""Differences are called real as often as the statistics promise: hand-computed cases, scipy, and planted effects."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from results.leaderboards.comparisons import COLUMNS, STANDING, pairwise, standing
from results.leaderboards.significance import LEVEL, compare, holm, power_of, seeds_for

NAN = math.nan
GROUP = ["method", "recipe", "config", "eval_config"]


# --- one pair -------------------------------------------------------------------------------------------------------


def test_two_shared_seeds_are_tested_as_computed_by_hand() -> None:
    """Differences 1 and 3: mean 2, standard error 1, t = 2 with one degree of freedom: p = 1 - 2/pi atan(2)."""
    pairs = compare([[5.0, 8.0], [4.0, 5.0]])
    assert (pairs.difference[0, 1], pairs.error[0, 1], pairs.freedom[0, 1], pairs.n[0, 1]) == (2, 1, 1, 2)
    assert pairs.p[0, 1] == pytest.approx(1 - 2 / math.pi * math.atan(2))
    assert pairs.half_width[0, 1] == pytest.approx(12.7062, abs=1e-4)


def test_three_shared_seeds_are_tested_as_computed_by_hand() -> None:
    """Differences -2, -1, -4: t^2 = 7 with two degrees of freedom: p = 1 - sqrt(7 / (7 + 2))."""
    pairs = compare([[1.0, 2, 4], [3.0, 3, 8]])
    assert pairs.difference[0, 1] == pytest.approx(-7 / 3)
    assert pairs.p[0, 1] == pytest.approx(1 - math.sqrt(7) / 3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=3, max_size=8))
def test_a_pair_is_tested_as_scipy_stats_does(values: list[tuple[float, float]]) -> None:
    a, b = np.array(values).T
    if np.std(a - b) < 1e-3:
        return
    pairs, theirs = compare([a, b]), stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(LEVEL)
    assert pairs.p[0, 1] == pytest.approx(theirs.pvalue, rel=1e-6)
    assert pairs.half_width[0, 1] == pytest.approx((interval.high - interval.low) / 2, rel=1e-6)


def test_experiments_without_shared_seeds_are_tested_by_welch() -> None:
    pairs = compare([[1.0, 2, 4, NAN, NAN, NAN], [NAN, NAN, NAN, 3, 3, 8]])
    theirs = stats.ttest_ind([1, 2, 4], [3, 3, 8], equal_var=False)
    assert not pairs.paired[0, 1]
    assert (pairs.p[0, 1], pairs.freedom[0, 1]) == pytest.approx((theirs.pvalue, theirs.df))


def test_of_one_pretraining_or_without_spread_nothing_is_said() -> None:
    single = compare([[70.0, 71.0], [90.0, NAN]])
    assert np.isnan(single.p[0, 1])
    assert np.isnan(single.half_width[0, 1])
    same_gap = compare([[70.0, 71.0], [71.0, 72.0]])
    assert np.isnan(same_gap.p[0, 1])
    assert compare([[70.0, 71.0], [70.0, 71.0]]).p[0, 1] == 1


# --- many pairs -----------------------------------------------------------------------------------------------------


def test_holms_correction_is_that_computed_by_hand() -> None:
    """0.01 x 3, 0.03 x 2, then 0.04 x 1, which may not fall below the one before it."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert np.isnan(holm([NAN])).all()
    assert holm([0.02, NAN, 0.9]) == pytest.approx([0.04, NAN, 0.9], nan_ok=True)


def test_ranks_are_those_that_significant_differences_leave_open() -> None:
    """0 and 1 cannot be told apart, both are far above 2; 3 has one seed, and may have any rank."""
    wobble = np.array([0.0, 0.1, -0.1, 0.05])
    pairs = compare([80 + wobble, 80 - wobble, 50 + wobble * [1, 2, 1, 1], [60, NAN, NAN, NAN]])
    low, high = pairs.ranks()
    assert list(zip(low, high)) == [(1, 3), (1, 3), (3, 4), (1, 4)]


# --- planted effects ------------------------------------------------------------------------------------------------


def test_planted_nulls_are_called_real_at_most_once_in_twenty_leaderboards() -> None:
    """1,000 leaderboards of five methods that are the same, five seeds that methods share some luck on."""
    draw, wrong = np.random.default_rng(1), 0
    for _ in range(1000):
        luck = draw.normal(0, 1, 5)
        wrong += compare(70 + luck + draw.normal(0, 1, (5, 5))).better().any()
    assert 0.01 < wrong / 1000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_a_planted_difference_is_found_as_often_as_planned() -> None:
    """Seeds for a power of 80 %: of 1,000 experiments so large, 76 to 84 % find the difference (3 sigma: 3.8 %)."""
    effect = 1.2
    n = int(seeds_for([effect], [1], 1 - LEVEL)[0])
    expected = float(power_of([effect], [n], [1], 1 - LEVEL)[0])
    draw = np.random.default_rng(2)
    found = sum(
        compare([draw.normal(effect, 1, n), np.zeros(n)]).better()[0, 1]  # differences of standard deviation 1
        for _ in range(1000)
    )
    assert expected >= 0.8
    assert found / 1000 == pytest.approx(expected, abs=0.038)


def test_seeds_are_those_of_textbooks() -> None:
    """An effect of one standard deviation, 5 %, 80 %: 10 pairs; 17 in each of two groups (Cohen)."""
    assert list(seeds_for([1.0, 1 / math.sqrt(2)], [1, 2], 0.05)) == [10, 17]
    assert np.isnan(seeds_for([1e-3], [1], 0.05)).all()


def test_power_is_that_of_the_noncentral_t_of_scipy_stats() -> None:
    for effect, n in ((0.5, 3), (1.0, 10), (3.0, 4), (0.2, 400)):
        limit = stats.t.ppf(0.975, n - 1)
        assert power_of([effect], [n], [1], 0.05)[0] == pytest.approx(stats.nct.sf(limit, n - 1, effect * math.sqrt(n)))


# --- in the tables --------------------------------------------------------------------------------------------------


def _runs(values: dict[str, list[float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluations, and their leaderboard, of methods with a value a pretraining seed."""
    rows = [
        {**dict.fromkeys(GROUP, name), "parent": f"{name}{seed}", "seed": seed, "top1": value}
        for name, tops in values.items()
        for seed, value in enumerate(tops)
    ]
    runs = pd.DataFrame(rows).assign(dataset="d", stage="linear", protocol="p").astype({"seed": "Int64"})
    table = runs.groupby(GROUP).top1.mean().rename("top1_mean").reset_index().assign(variant="", eval_variant="")
    return runs, table.sort_values("top1_mean", ascending=False, ignore_index=True)


def test_tables_name_a_planted_difference_and_call_a_planted_null_a_tie() -> None:
    draw = np.random.default_rng(3)
    luck = draw.normal(0, 1, 6)
    noise = draw.normal(0, 0.2, (3, 6))
    runs, table = _runs({"a": list(80 + luck + noise[0]), "b": list(80 + luck + noise[1]), "c": list(75 + noise[2])})
    found = standing(runs, table, GROUP, "top1")
    assert list(found) == STANDING
    assert list(found.versus_best) == ["best", "tie", "worse"]
    assert list(zip(found.rank_low, found.rank_high)) == [(1, 2), (1, 2), (3, 3)]
    assert found.more_seeds.isna().tolist() == [True, False, True]
    pairs = pairwise(runs, table, GROUP)
    assert list(pairs) == list(COLUMNS)
    assert list(pairs.verdict) == ["tie", "a", "a"]
    assert set(pairs.test) == {"paired"}
    assert list(pairs.n) == [6, 6, 6]


def test_tables_say_that_one_pretraining_decides_nothing() -> None:
    runs, table = _runs({"a": [80.0], "b": [20.0, 21.0]})
    found = standing(runs, table, GROUP, "top1")
    assert list(found.versus_best) == ["best", "undecided: one pretraining"]
    assert found.more_seeds.isna().all()
    assert list(pairwise(runs, table, GROUP).test) == ["none"]


def test_seeds_that_are_not_known_are_shared_with_none() -> None:
    runs, table = _runs({"a": [80.0, 81.0], "b": [20.0, 20.5]})
    runs["seed"] = pd.array([None] * 4, dtype="Int64")
    assert list(pairwise(runs, table, GROUP).test) == ["Welch"]


def test_a_row_without_a_value_has_no_rank() -> None:
    runs, table = _runs({"a": [80.0, 81.0], "b": [NAN, NAN]})
    found = standing(runs, table, GROUP, "top1")
    assert list(found.versus_best) == ["best", ""]
    assert found.rank_low.isna().tolist() == [False, True]
