"""Differences are called real as often as the statistics promise: hand-computed cases, scipy, and planted effects."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from results.aggregate import main
from results.leaderboards.comparisons import ABOVE_RANDOM, COLUMNS, STANDING, above_random, marks, pairwise, standing
from results.leaderboards.intervals import LEVEL, inferred_images, joined_interval, wilson
from results.leaderboards.significance import compare, holm, power_of, seeds_for, spread
from results.leaderboards.table_formats import BEST as BEST_MARK
from results.leaderboards.table_formats import SECOND
from tests.support.planted import write_boards

NAN = math.nan
GROUP = ["method", "recipe", "config", "eval_config"]


# --- one pair -------------------------------------------------------------------------------------------------------


def test_equal_spreads_are_pooled_as_computed_by_hand() -> None:
    """Variances 2 and 2, two runs each: standard error sqrt(2), t = 5 / sqrt(2) with two degrees of freedom."""
    pairs = compare([[5.0, 7.0], [10.0, 12.0]])
    assert (pairs.difference[0, 1], pairs.freedom[0, 1], pairs.n[0, 1]) == (-5, 2, 2)
    assert pairs.error[0, 1] == pytest.approx(math.sqrt(2))
    t = 5 / math.sqrt(2)
    assert pairs.p[0, 1] == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert pairs.half_width[0, 1] == pytest.approx(4.3027 * math.sqrt(2), abs=1e-3)


def test_where_both_have_one_spread_a_pair_is_tested_as_scipy_stats_does() -> None:
    a, b = np.array([1.0, 2.0, 4.0, 9.0]), np.array([3.0, 4.0, 6.0, 11.0]) + 0.5
    pairs, expected = compare([a, b]), stats.ttest_ind(a, b)
    interval = expected.confidence_interval(LEVEL)
    assert pairs.p[0, 1] == pytest.approx(expected.pvalue)
    assert pairs.half_width[0, 1] == pytest.approx((interval.high - interval.low) / 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=3, max_size=8), st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_no_pair_is_more_certain_than_by_its_own_larger_spread(a: list[float], b: list[float]) -> None:
    """An experiment's variance is never below its own: pooling only makes few runs that look alike more careful."""
    width = max(len(a), len(b))
    pairs = compare([[*a, *[NAN] * (width - len(a))], [*b, *[NAN] * (width - len(b))]])
    own = math.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
    assert pairs.error[0, 1] >= own * (1 - 1e-9)
    assert pairs.difference[0, 1] == pytest.approx(np.mean(a) - np.mean(b))


def test_all_runs_count_whether_or_not_seeds_are_shared() -> None:
    """Five runs each of which two share a seed: the better mean is never behind, and n is five."""
    runs, table = _runs({"a": [80.0, 81.0, 82.0, 83.0, 84.0], "b": [80.1, 81.1, 78.0, 78.5, 77.0]})
    runs.loc[runs.method == "b", "seed"] = [0, 1, 7, 8, 9]
    standings = standing(runs, table, GROUP, "top1")
    assert standings.behind_best.iloc[1] == pytest.approx(82 - 78.94)
    assert list(pairwise(runs, table, GROUP).n) == [5]


def test_noise_of_one_image_is_no_spread() -> None:
    """240 and 241 of 360 against 239 and 240: by pairs of seeds p was 1.6e-14."""
    counts = np.array([[240.0, 241.0], [239.0, 240.0]]) * 100 / 360
    assert compare(counts, 100 / 360).p[0, 1] > 0.05
    same = np.array([[240.0, 240.0], [239.0, 239.0]]) * 100 / 360
    assert compare(same, 100 / 360).p[0, 1] > 0.05
    assert compare([[94.0, 94.0], [26.5, 26.5]], 100 / 360).adjusted[0, 1] < 0.05


def test_of_one_pretraining_or_without_spread_nothing_is_said() -> None:
    single = compare([[70.0, 71.0], [90.0, NAN]])
    assert np.isnan(single.p[0, 1])
    assert np.isnan(single.half_width[0, 1])
    no_spread = compare([[70.0, 70.0], [71.0, 71.0]])
    assert np.isnan(no_spread.p[0, 1])
    assert compare([[70.0, 70.0], [70.0, 70.0]]).p[0, 1] == 1


def test_a_spread_is_pooled_where_it_is_small_and_its_own_where_it_is_large() -> None:
    deviation = spread([[1.0, 2.0, 3.0], [1.0, 1.1, 1.2], [0.0, 30.0, 60.0], [5.0, NAN, NAN]])
    pooled = (1 + 0.01 + 900) / 3
    assert deviation.variance[:3] == pytest.approx([pooled, pooled, 900])
    assert np.isnan(deviation.variance[3])
    assert list(deviation.pooled) == [True, True, False, False]
    freedom = (3 * pooled * 2) ** 2 / (2 * (1 + 0.01**2 + 900**2))
    assert deviation.freedom[:3] == pytest.approx([freedom, freedom, 2])


@pytest.mark.parametrize(("share", "stands_out"), [(0.765, False), (0.771, True)])
def test_a_variance_that_stands_out_is_left_out_of_the_pool(share: float, stands_out: bool) -> None:
    """Cochran's critical value for four variances of three values each is 0.7679 at 5 % (ISO 5725-2, table 4)."""
    large = 3 * share / (1 - share)
    values = [[0.0, sd, 2 * sd] for sd in (1.0, 1.0, 1.0, math.sqrt(large))]
    deviation = spread(values)
    assert deviation.variance[0] == pytest.approx(1 if stands_out else (3 + large) / 4)
    assert deviation.variance[3] == pytest.approx(large)
    assert deviation.freedom[0] == pytest.approx(6 if stands_out else 2 * (3 + large) ** 2 / (3 + large**2))
    assert list(deviation.pooled) == [True, True, True, False]


def test_variances_that_stand_out_leave_the_pool_one_after_the_other() -> None:
    deviation = spread([*[[0.0, 1.0, 2.0]] * 6, [0.0, 30.0, 60.0], [0.0, 400.0, 800.0]])
    assert deviation.variance == pytest.approx([1] * 6 + [900, 160000])
    assert deviation.freedom == pytest.approx([12] * 6 + [2, 2])


# --- equal ----------------------------------------------------------------------------------------------------------


def test_equal_needs_evidence_as_different_does() -> None:
    """Two one-sided tests by hand: |d| = 0.1, standard error s, t = 0.9 / s with 14 degrees of freedom."""
    draw = np.random.default_rng(0).normal(0, 1, (2, 8))
    draw = (draw - draw.mean(axis=1, keepdims=True)) / draw.std(axis=1, ddof=1, keepdims=True)
    for sd, expected in ((0.5, True), (2.0, False)):
        a, b = 70.0 + sd * draw[0], 70.1 + sd * draw[1]
        error = sd * math.sqrt(2 / 8)
        assert bool(stats.t.sf(0.9 / error, 14) < 0.05) == expected
        assert compare([a, b]).equal[0, 1] == expected


def test_equivalence_agrees_with_statsmodels() -> None:
    from statsmodels.stats.weightstats import ttost_ind

    draw = np.random.default_rng(4)
    for _ in range(20):
        noise = draw.normal(0, 1, 6)
        a, b = 70 + 0.5 * noise, 70.3 + 0.5 * draw.permutation(noise)
        p, _, _ = ttost_ind(a, b, -1, 1)
        assert compare([a, b]).equal[0, 1] == (p < 0.05)


def test_what_is_far_apart_with_one_run_is_not_decided_rather_than_a_tie() -> None:
    runs, table = _runs({"supervised": [94.0], "random": [26.5]})
    assert list(standing(runs, table, GROUP, "top1").versus_best) == ["best", "not decided: one pretraining"]


# --- the test set ---------------------------------------------------------------------------------------------------


def test_intervals_of_a_test_set_are_wilsons() -> None:
    from statsmodels.stats.proportion import proportion_confint

    for count in (0, 1, 240, 359, 360):
        low, high = wilson(100 * count / 360, 360)
        assert (low, high) == pytest.approx([100 * x for x in proportion_confint(count, 360, method="wilson")])
    assert np.isnan(wilson(50.0, NAN)[0])


@given(st.floats(0, 100), st.floats(0, 200), st.integers(1, 1000))
def test_joined_intervals_hold_the_mean_and_stay_within_0_and_100(mean: float, seeds: float, images: int) -> None:
    low, high = joined_interval(mean, seeds, *wilson(mean, images))
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 100


def test_a_test_sets_size_is_read_off_accuracies() -> None:
    counts = np.array([240, 241, 247, 253])
    assert inferred_images(100 * counts / 360) == 360
    assert inferred_images(np.float32(100 * counts / 360)) == 360
    assert inferred_images([70.0, 71.5, 72.25]) is None  # perhaps rounded
    assert inferred_images([math.pi * 10, math.e * 10, 47.11111]) is None
    assert inferred_images([NAN, NAN]) is None


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
    pairs = compare([80 + wobble, 80 - wobble, 50 + wobble, [60, NAN, NAN, NAN]])
    low, high = pairs.ranks()
    assert list(zip(low, high)) == [(1, 3), (1, 3), (3, 4), (1, 4)]


# --- planted effects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [3, 9, 18])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_planted_nulls_are_called_real_at_most_once_in_twenty_leaderboards(seeds: int, methods: int) -> None:
    """300 leaderboards of methods that are the same, with accuracies as counts of 360 images, of several spreads."""
    draw, wrong = np.random.default_rng(1), 0
    for sd in (0.3, 1.5, 8.0):  # in images
        for _ in range(100):
            counts = np.round(240 + draw.normal(0, sd, (methods, seeds)))
            wrong += compare(counts * 100 / 360, 100 / 360).better().any()
    assert wrong / 300 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_a_method_of_a_larger_spread_raises_no_alarms() -> None:
    draw, wrong = np.random.default_rng(3), 0
    sd = np.r_[3.0, np.ones(8)][:, None]
    for _ in range(500):
        wrong += compare(70 + draw.normal(0, 1, (9, 3)) * sd).better().any()
    assert wrong / 500 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)


def test_a_planted_difference_is_found_as_often_as_planned() -> None:
    """Seeds for a power of 80 %: of 1,000 pairs so different, at least that many (less 3 sigma: 3.8 %) are found."""
    effect = 1.5
    n = int(seeds_for([effect], 1 - LEVEL)[0])
    assert float(power_of([effect], [n], 1 - LEVEL)[0]) >= 0.8
    draw = np.random.default_rng(2)
    detected = sum(compare([draw.normal(effect, 1, n), draw.normal(0, 1, n)]).better()[0, 1] for _ in range(1000))
    assert detected / 1000 > 0.8 - 0.038


def test_seeds_are_those_of_textbooks() -> None:
    """An effect of one standard deviation, 5 %, 80 %: 17 in each of two groups (Cohen)."""
    assert list(seeds_for([1.0], 0.05)) == [17]
    assert np.isnan(seeds_for([1e-3], 0.05)).all()


def test_power_is_that_of_statsmodels() -> None:
    from statsmodels.stats.power import TTestIndPower

    for effect, n in ((0.5, 3), (1.0, 10), (3.0, 4), (0.2, 400)):
        expected = TTestIndPower().power(effect, n, 0.025, alternative="larger")
        assert power_of([effect], [n], 0.05)[0] == pytest.approx(expected, abs=1e-6)


def test_holms_correction_is_that_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).uniform(size=20) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


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


def test_tables_name_a_planted_difference_and_leave_a_planted_null_undecided() -> None:
    noise = np.random.default_rng(3).normal(0, 1, (3, 6))
    noise -= noise.mean(axis=1, keepdims=True)
    runs, table = _runs({"a": list(80.5 + noise[0]), "b": list(80 + noise[1]), "c": list(70 + noise[2])})
    standings = standing(runs, table, GROUP, "top1")
    assert list(standings) == STANDING
    assert list(standings.versus_best) == ["best", "not decided", "worse"]
    assert list(zip(standings.rank_low, standings.rank_high)) == [(1, 2), (1, 2), (3, 3)]
    assert standings.fresh_seeds.isna().tolist() == [True, False, True]
    pairs = pairwise(runs, table, GROUP)
    assert list(pairs) == list(COLUMNS)
    assert list(pairs.verdict) == ["not decided", "a", "a"]
    assert set(pairs.test) <= {"pooled", "Welch"}
    assert list(pairs.n) == [6, 6, 6]


def test_tables_call_equal_what_is_shown_to_be() -> None:
    noise = np.random.default_rng(3).normal(0, 0.2, (2, 8))
    runs, table = _runs({"a": list(80 + noise[0]), "b": list(80 + noise[1])})
    assert list(standing(runs, table, GROUP, "top1").versus_best) == ["best", "equal within 1 point"]


def test_tables_say_that_one_pretraining_decides_nothing() -> None:
    runs, table = _runs({"a": [80.0], "b": [20.0, 21.0]})
    standings = standing(runs, table, GROUP, "top1")
    assert list(standings.versus_best) == ["best", "not decided: one pretraining"]
    assert standings.fresh_seeds.isna().all()
    assert list(pairwise(runs, table, GROUP).test) == ["none"]


def test_no_second_best_is_marked_below_an_unmarked_best() -> None:
    runs, table = _runs({"a": [80.0, 80.4, 80.2], "b": [80.1, 80.3, 80.0], "c": [50.0, 50.2, 50.1]})
    assert marks(runs, table, GROUP, "top1") == ["", "", ""]
    runs, table = _runs({"a": [90.0, 90.4, 90.2], "b": [80.1, 80.3, 80.0], "c": [50.0, 50.2, 50.1]})
    assert marks(runs, table, GROUP, "top1") == [BEST_MARK, SECOND, ""]


def test_a_row_without_a_value_has_no_rank() -> None:
    runs, table = _runs({"a": [80.0, 81.0], "b": [NAN, NAN]})
    standings = standing(runs, table, GROUP, "top1")
    assert list(standings.versus_best) == ["best", ""]
    assert standings.rank_low.isna().tolist() == [False, True]


# --- through the commands -------------------------------------------------------------------------------------------


def _decided(tmp_path: Path, boards: int, seeds: int, means: list[float], sd: float) -> pd.DataFrame:
    """By board: how many pairs `aggregate.py` calls different, of records with these planted means (images of 360)."""
    write_boards(tmp_path / "runs", boards, seeds, means, sd, np.random.default_rng(5))
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    pairs = pd.read_csv(tmp_path / "out" / "comparisons.csv")
    return pairs.assign(decided=pairs.verdict.isin(["a", "b"]))


@pytest.mark.parametrize(("seeds", "methods", "sd"), [(2, 9, 0.4), (3, 4, 6.0)])
def test_the_command_raises_few_false_alarms(tmp_path: Path, seeds: int, methods: int, sd: float) -> None:
    """20 leaderboards of equal methods: more than 4 false alarms have a chance of 0.3 % at a rate of 5 %."""
    pairs = _decided(tmp_path, 20, seeds, [240.0] * methods, sd)
    assert pairs.dataset.nunique() == 20
    assert pairs.groupby("dataset").decided.any().sum() <= 4


def test_the_command_finds_planted_differences(tmp_path: Path) -> None:
    """One of five methods is 12 standard deviations better, with five seeds each: it is best on every leaderboard."""
    pairs = _decided(tmp_path, 10, 5, [270.0, 240, 240, 240, 240], 2.5)
    of_best = (pairs.a == "planted/method00") | (pairs.b == "planted/method00")
    assert pairs[of_best].decided.mean() > 0.95
    assert pairs[~of_best].groupby("dataset").decided.any().mean() <= 0.2


def test_average_precisions_are_equal_within_a_smaller_margin() -> None:
    tight = [[2.0 + 0.001 * k, 2.002 + 0.001 * k, 1.998 + 0.001 * k] for k in (0, 1)]
    apart = [tight[0], [value + 0.5 for value in tight[1]]]
    assert compare(tight, margin=0.2).equal[0, 1]
    assert not compare(apart, margin=0.2).equal[0, 1]
    assert compare(apart).equal[0, 1]


def test_methods_are_compared_with_the_untrained_network_of_their_architecture() -> None:
    """By scipy and statsmodels: equal spreads, so that all variances are pooled."""
    from statsmodels.stats.multitest import multipletests

    spread_out = np.array([-1.0, 0.0, 1.0])
    means = {"random": 40.0, "a": 47.0, "b": 43.5, "c": 38.0, "vit": 90.0}
    runs, table = _runs({name: list(mean + spread_out) for name, mean in means.items()})
    table = table.assign(stem="imagenet", backbone=np.where(table.method == "vit", "vit", "resnet18"))
    columns = above_random(runs, table, GROUP, "top1").set_index(table.method)
    assert list(columns) == ABOVE_RANDOM
    assert columns.loc[["random", "vit"]].isna().all(axis=None)  # no untrained transformer is there
    tested = ["a", "b", "c"]
    assert columns.above_random[tested].tolist() == pytest.approx([7, 3.5, -2])
    error = math.sqrt(2 / 3)
    p = [2 * stats.t.sf(abs(means[name] - 40) / error, 10) for name in tested]
    assert columns.p_above_random[tested].tolist() == pytest.approx(multipletests(p, method="holm")[1])
    assert columns.above_random_ci95[tested].tolist() == pytest.approx([stats.t.ppf(0.975, 10) * error] * 3)
