"""Verdicts on claims, from records whose outcome is known."""

import html
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pretrain.recipe import recipe_names
from results.claims import CLAIMS, main
from results.leaderboards.claim_file import WORKS, Claim, Comparison, Correlation, arms, read_claims
from results.leaderboards.claim_tests import (
    FAILS,
    HOLDS,
    UNDECIDED,
    by_measure,
    judge,
    measure,
    read_records,
    show,
)
from results.leaderboards.rank_correlation import rank_correlation
from results.page.data_tables import Table
from results.page.environment import render
from slurm.sweep import load_sweep
from tests.support.run_records import Records
from whitebench.errors import UserError

PLANTED = {"protocol": {"name": "planted"}}
"""A protocol that this suite does not have, and that therefore cannot have changed."""


def verdict(test: Comparison, own: list[float], other: list[float] | None = None) -> str:
    values = {(test.arm, test.measure): own}
    if other is not None:
        values[str(test.other), test.measure] = other
    return str(judge([Claim("c", "p", (test,))], values).verdict[0])


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ([50, 51, 52], [40, 41, 42], HOLDS),
        ([40, 41, 42], [50, 51, 52], FAILS),
        ([40, 50, 60], [41, 49, 61], UNDECIDED),
        ([50, 50, 50], [40, 40, 40], UNDECIDED),  # no run has any spread: nothing to judge by
        ([50], [40, 41], UNDECIDED),
        ([], [40, 41], UNDECIDED),
    ],
)
def test_one_arm_above_another(own: list[float], other: list[float], expected: str) -> None:
    assert verdict(Comparison("linear", "a", True, "b"), own, other) == expected


@pytest.mark.parametrize(
    ("own", "expected"), [([1.0, 1.1, 1.05], HOLDS), ([3.0, 3.1, 3.2], FAILS), ([1.0, 3.0], UNDECIDED)]
)
def test_an_arm_below_a_number(own: list[float], expected: str) -> None:
    assert verdict(Comparison("effective_rank", "a", False, 2.0), own) == expected


def test_a_margin_counts() -> None:
    own, other = [50.0, 50.5, 51.0], [40.0, 40.5, 41.0]
    assert verdict(Comparison("linear", "a", True, "b", by=5), own, other) == HOLDS
    assert verdict(Comparison("linear", "a", True, "b", by=15), own, other) == FAILS


def test_equal_spreads_give_students_interval_and_a_number_the_arms_own() -> None:
    a, b = [1.0, 2.0, 4.0], [11.0, 12.0, 14.0]
    values = {("a", "x"): a, ("b", "x"): b}
    row = judge([Claim("c", "p", (Comparison("x", "a", False, "b"),))], values).iloc[0]
    expected = stats.ttest_ind(a, b)
    interval = expected.confidence_interval(0.95)
    assert row.p == pytest.approx(expected.pvalue)
    assert (row.ci95_low, row.ci95_high) == pytest.approx((interval.low, interval.high))
    row = judge([Claim("c", "p", (Comparison("x", "a", True, 2.0),))], {("a", "x"): a}).iloc[0]
    assert row.p == pytest.approx(stats.ttest_1samp(a, 2.0).pvalue)


def test_p_is_corrected_for_all_tests_of_the_file() -> None:
    values = {(arm, "x"): [mean - 1.0, float(mean), mean + 1.0] for arm, mean in (("a", 3), ("b", 0))}
    test = Comparison("x", "a", True, "b")
    [alone] = judge([Claim("c", "p", (test,))], values).verdict
    many = judge([Claim(f"c{i}", "p", (test,)) for i in range(4)], values)
    assert alone == HOLDS
    assert set(many.verdict) == {UNDECIDED}
    assert many.p_adjusted.iloc[0] == pytest.approx(4 * many.p.iloc[0])


def test_holding_and_failing_have_the_same_error_rate() -> None:
    """Of 400 differences of exactly the margin, each is said of at most 2.5 % (3 sigma: 2.4 %)."""
    draw = np.random.default_rng(0)
    verdicts = [
        verdict(Comparison("x", "a", True, "b", by=1), list(draw.normal(1, 1, 4)), list(draw.normal(0, 1, 4)))
        for _ in range(400)
    ]
    for word in (HOLDS, FAILS):
        assert verdicts.count(word) / 400 < 0.049


def test_no_spread_is_below_one_test_image() -> None:
    values = {("a", "linear"): [50.0, 50.0, 50.0], ("b", "linear"): [49.5, 49.5, 49.5]}
    claims = [Claim("c", "p", (Comparison("linear", "a", True, "b"),))]
    assert list(judge(claims, values, {"linear": 100 / 360}).verdict) == [UNDECIDED]
    far = {**values, ("b", "linear"): [20.0, 20.0, 20.0]}
    assert list(judge(claims, far, {"linear": 100 / 360}).verdict) == [HOLDS]


CORRELATION = Correlation(("loss", "linear"), tuple("abcdefgh"), False, 0.0)


def planted(slope: float, noise: float, seed: int, arms: int = 8, runs: int = 3) -> dict[str, list[dict[str, float]]]:
    """Of each arm's runs a loss and an accuracy that changes with it."""
    draw = np.random.default_rng(seed)
    return {
        arm: [
            {"loss": loss + draw.normal(0, 0.05), "linear": 50 + slope * loss + noise * shared + draw.normal(0, 0.1)}
            for _ in range(runs)
        ]
        for arm, loss, shared in zip("abcdefgh"[:arms], draw.normal(size=arms), draw.normal(size=arms), strict=True)
    }


def correlation_verdict(measured: dict[str, list[dict[str, float]]], test: Correlation = CORRELATION) -> str:
    return str(judge([Claim("c", "p", (test,))], by_measure(measured), None, measured).verdict[0])


@pytest.mark.parametrize(("slope", "noise", "expected"), [(-5.0, 0.1, HOLDS), (5.0, 0.1, FAILS), (0.0, 1.0, UNDECIDED)])
def test_a_planted_correlation_is_found(slope: float, noise: float, expected: str) -> None:
    assert correlation_verdict(planted(slope, noise, seed=3)) == expected


def test_runs_of_an_arm_are_no_independent_points_of_a_correlation() -> None:
    """Three arms of twenty runs each stay three arms; without any relation, few of many nulls are called one."""
    assert correlation_verdict(planted(-5.0, 0.1, 0, arms=3, runs=20)) == UNDECIDED
    verdicts = [correlation_verdict(planted(0.0, 1.0, seed)) for seed in range(300)]
    assert (len(verdicts) - verdicts.count(UNDECIDED)) / 300 < 0.09  # 5 % and three standard errors


def test_a_correlation_counts_pretrainings_that_have_both_measures() -> None:
    measured = planted(-5.0, 0.1, 1)
    measured["a"].append({"loss": 1.0})
    row = judge([Claim("c", "p", (CORRELATION,))], by_measure(measured), None, measured).iloc[0]
    assert row.arm_n == 24
    assert -1 <= row.arm_mean < -0.8
    assert row.ci95_low < row.difference < row.ci95_high < 0
    assert correlation_verdict({arm: [{"loss": 1.0}] for arm in "abcdefgh"}) == UNDECIDED


def test_the_interval_of_a_correlation_is_bonett_and_wright_s() -> None:
    points = [(0.0, 1.0), (1.0, 0.0), (2.0, 3.0), (3.0, 2.0), (4.0, 5.0), (5.0, 4.0)]
    found = rank_correlation([[point] for point in points])
    assert found is not None
    rho = stats.spearmanr(points).statistic
    half = stats.norm.ppf(0.975) * np.sqrt((1 + rho**2 / 2) / 3)
    assert found.interval == pytest.approx(tuple(np.tanh([np.arctanh(rho) - half, np.arctanh(rho) + half])))
    perfect = rank_correlation([[(x, x)] for x in range(6)])
    assert perfect is not None
    assert 0 < perfect.interval[0] < perfect.interval[1] < 1
    assert rank_correlation([[point] for point in points[:3]]) is None
    assert rank_correlation([[(x, 1.0)] for x in range(6)]) is None


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ([50.0, 50.2, 50.4], HOLDS),
        ([30.0, 30.2, 30.4], HOLDS),
        ([40.0, 40.2, 40.4], FAILS),
        ([41.0, 41.2, 41.4], UNDECIDED),
    ],
)
def test_that_arms_differ_is_refuted_by_their_equivalence_alone(own: list[float], expected: str) -> None:
    test = Comparison("x", "a", False, "b", by=1, differs=True)
    assert verdict(test, own, [40.0, 40.1, 40.3]) == expected
    assert verdict(test, [30.0, 40.0, 50.0], [40.0, 30.0, 51.0]) == UNDECIDED


def test_differing_by_exactly_the_margin_is_rarely_decided_either_way() -> None:
    draw = np.random.default_rng(1)
    test = Comparison("x", "a", False, "b", by=2, differs=True)
    verdicts = [verdict(test, list(draw.normal(2, 0.5, 4)), list(draw.normal(0, 0.5, 4))) for _ in range(400)]
    for word in (HOLDS, FAILS):
        assert verdicts.count(word) / 400 < 0.049


def test_every_arm_is_compared_with_an_untrained_network() -> None:
    stated = read_claims(CLAIMS)
    works = [claim for claim in stated.claims if WORKS in claim.claim]
    tests = [test for claim in works for test in claim.tests if isinstance(test, Comparison)]
    assert {test.arm for test in tests} == arms(stated.claims) - {"sample/random"}
    assert {test.other for test in tests} == {"sample/random"}


def test_a_collapsed_arm_fails_the_tests_of_rank() -> None:
    """The plain rank let collapsed arms pass. Of the present tests "arm above ...", none may."""
    tests = [test for claim in read_claims(CLAIMS).claims for test in claim.tests if isinstance(test, Comparison)]
    ranks = [test for test in tests if test.measure in ("rank", "effective_rank") and test.above]
    assert ranks
    assert not [test for test in ranks if test.measure == "rank"]
    for test in ranks:
        values = {(test.arm, test.measure): [1.0, 1.01, 1.02], (str(test.other), test.measure): [1.0, 1.01, 1.02]}
        [row] = judge([Claim("c", "p", (test,))], values).to_dict("records")
        assert row["verdict"] != HOLDS


def test_the_tests_are_dated_and_changes_after_a_look_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = read_claims(CLAIMS)
    assert stated.written == "2026-11-25"
    assert len(stated.changes) == 4
    (tmp_path / "runs").mkdir()
    main([str(tmp_path / "runs"), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "tests written 2026-11-25" in printed
    assert "changed after results were seen, 2026-11-25: the plain rank" in printed
    readme = (CLAIMS.parents[1] / "README.md").read_text()
    section = str(render("claims.html", table=Table("claims-table", [], []), stated=stated))
    for change in (stated.written, *stated.changes):
        assert change in readme
        assert change in html.unescape(section)


def test_a_claim_holds_if_all_its_tests_do() -> None:
    tests = (Comparison("x", "a", True, 1.0), Comparison("x", "a", True, 3.0), Comparison("x", "none", True, 1.0))
    values = {("a", "x"): [2.0, 2.01, 2.02]}
    for chosen, expected in (((0,), HOLDS), ((0, 1), FAILS), ((0, 2), UNDECIDED), ((0, 1, 2), FAILS)):
        table = judge([Claim("c", "p", tuple(tests[i] for i in chosen))], values)
        assert set(table.claim_verdict) == {expected}


def test_records_give_the_values_and_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = Records(tmp_path / "runs")
    for seed, rank in enumerate((30.0, 31.0, 32.0)):
        for arm, shift in (("claims/bw-zca", 0.0), ("claims/mse", -29.0)):
            metrics = {"effective_rank": max(1.0, rank + shift), "collapsed": False}
            parent = records.pretrain("spectral", seed, arm, metrics=metrics, config={"arm": arm})
            records.evaluate(parent, {"top1": 40.0 + seed + shift}, config=PLANTED)
            if arm == "claims/bw-zca":
                records.evaluate(parent, {"top1": 20.0 + seed}, "knn", config={"features": "transformed", **PLANTED})
                records.evaluate(parent, {"top1": 35.0 + seed}, "knn", config=PLANTED)
                records.put("convert", f"spectral-s{seed}", {"parent": parent})
                records.evaluate(parent, {"box_AP": 3.0, "mask_AP": 1.0}, "detect")
        other = records.pretrain("simclr", seed, "sample/simclr")
        records.evaluate(other, {"top1": 1.0})
    found = read_records([tmp_path / "runs"], arms(read_claims(CLAIMS).claims))
    assert len(found) == 18
    values = measure(found.values())
    assert values["claims/bw-zca", "effective_rank"] == [30, 31, 32]
    assert values["claims/bw-zca", "linear"] == [40, 41, 42]
    assert values["claims/bw-zca", "knn@transformed"] == [20, 21, 22]
    assert values["claims/bw-zca", "knn"] == [35, 36, 37]
    main([str(tmp_path / "runs"), "--out", str(tmp_path), "--publish"])
    assert "knn of claims/bw-zca above knn@transformed" in capsys.readouterr().out
    assert (tmp_path / "claims.csv").read_text().count("\n") == 1 + sum(
        len(claim.tests) for claim in read_claims(CLAIMS).claims
    )
    assert main(["--out", str(tmp_path), "--check"]) == 0  # from the published records alone
    path = next((tmp_path / "records" / "claims" / "pretrain").glob("*.json"))
    path.write_text(path.read_text().replace('"pretrain/optim.py": "', '"pretrain/optim.py": "other'))
    with pytest.raises(UserError, match="1 published arms are stale"):
        main(["--out", str(tmp_path), "--check"])
    assert ": pretrain/optim.py changed since" in capsys.readouterr().err
    (tmp_path / "claims.csv").write_text("")
    with pytest.raises(UserError, match=r"claims\.csv: is not what .*records/claims gives"):
        main(["--out", str(tmp_path), "--check"])


def test_the_suite_s_own_file_is_what_its_records_give() -> None:
    assert main(["--check"]) == 0


def test_every_test_names_an_arm_that_the_sweep_runs() -> None:
    assert arms(read_claims(CLAIMS).claims) <= set(load_sweep("claims", [], []).recipes) <= set(recipe_names())


@pytest.mark.parametrize(
    "text",
    [
        "- {claim: c, paper: p}",
        "- {claim: c, paper: p, tests: [{measure: m, arm: a}]}",
        "- {claim: c, paper: p, tests: [{measure: m, arm: a, above: 1, below: 2}]}",
        "- {claim: c, paper: p, tests: [{measure: m, arm: a, above: 1, beyond: 2}]}",
        "- {claim: c, paper: p, tests: [{correlation: [x, y], over: [a], below: -1}]}",
        "- {claim: c, paper: p, tests: [{correlation: [x, y], over: [a], differs: 0}]}",
        "- {claim: c, paper: p, tests: [{correlation: [x], over: [a], below: 0}]}",
    ],
)
def test_a_claim_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    head = "written: 2026-01-01\nuntrained: r\nworks_by: linear\nclaims:\n"
    (tmp_path / "claims.yaml").write_text(head + text)
    with pytest.raises(UserError, match="not a claim with its paper and tests"):
        read_claims(tmp_path / "claims.yaml")


def test_nothing_measured_is_undecided() -> None:
    table = judge(read_claims(CLAIMS).claims, {})
    assert set(table.claim_verdict) == {UNDECIDED}
    assert "not measured" in show(table)
