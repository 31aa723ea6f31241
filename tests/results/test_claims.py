"""Verdicts on claims, from records whose outcome is known."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pretrain.recipe import recipe_names
from results.claims import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Claim,
    Comparison,
    arms,
    difference,
    judge,
    main,
    measure,
    read_claims,
    read_records,
    show,
)
from slurm.sweep import load_sweep
from tests.results.test_aggregate import Records
from whitebench.errors import UserError


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
        ([50, 50, 50], [40, 40, 40], HOLDS),
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


def test_intervals_are_welchs_and_students() -> None:
    a, b = [1.0, 2.0, 4.0], [0.5, 3.0, 3.5, 4.0]
    middle, low, high = difference(a, b)
    sa, sb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 4
    freedom = (sa + sb) ** 2 / (sa**2 / 2 + sb**2 / 3)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sa + sb)
    assert (middle, low, high) == pytest.approx((np.mean(a) - np.mean(b), middle - half, middle + half))
    middle, low, high = difference(a, 2.0)
    half = stats.t.ppf(0.975, 2) * math.sqrt(sa)
    assert (middle, low, high) == pytest.approx((np.mean(a) - 2, middle - half, middle + half))


def test_a_claim_holds_if_all_its_tests_do() -> None:
    tests = (Comparison("x", "a", True, 1.0), Comparison("x", "a", True, 3.0), Comparison("x", "none", True, 1.0))
    values = {("a", "x"): [2.0, 2.1]}
    for chosen, expected in (((0,), HOLDS), ((0, 1), FAILS), ((0, 2), UNDECIDED), ((0, 1, 2), FAILS)):
        table = judge([Claim("c", "p", tuple(tests[i] for i in chosen))], values)
        assert set(table.claim_verdict) == {expected}


def test_records_give_the_values_and_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = Records(tmp_path / "runs")
    for seed, rank in enumerate((30.0, 31.0, 32.0)):
        for arm, shift in (("claims/bw-zca", 0.0), ("claims/mse", -30.5 + 1.5)):
            metrics = {"effective_rank": max(1.0, rank + shift), "collapsed": False}
            parent = records.pretrain("spectral", seed, arm, metrics=metrics, config={"arm": arm})
            records.evaluate(parent, {"top1": 40.0 + seed + shift})
            if arm == "claims/bw-zca":
                records.evaluate(parent, {"top1": 20.0 + seed}, stage="knn", config={"features": "transformed"})
                records.evaluate(parent, {"top1": 35.0 + seed}, stage="knn")
        other = records.pretrain("simclr", seed, "sample/simclr")
        records.evaluate(other, {"top1": 1.0})
    found = read_records([tmp_path / "runs"], arms(read_claims()))
    assert len(found) == 18
    values = measure(found.values())
    assert values["claims/bw-zca", "effective_rank"] == [30, 31, 32]
    assert values["claims/bw-zca", "linear"] == [40, 41, 42]
    assert values["claims/bw-zca", "knn@transformed"] == [20, 21, 22]
    assert values["claims/bw-zca", "knn"] == [35, 36, 37]
    main([str(tmp_path / "runs"), "--out", str(tmp_path), "--publish"])
    assert "knn of claims/bw-zca above knn@transformed" in capsys.readouterr().out
    assert (tmp_path / "claims.csv").read_text().count("\n") == 1 + sum(len(claim.tests) for claim in read_claims())
    assert main(["--out", str(tmp_path), "--check"]) == 0  # from the published records alone
    (tmp_path / "claims.csv").write_text("")
    with pytest.raises(UserError, match=r"claims\.csv: is not what .*records/claims gives"):
        main(["--out", str(tmp_path), "--check"])


def test_the_suite_s_own_file_is_what_its_records_give() -> None:
    assert main(["--check"]) == 0


def test_every_test_names_an_arm_that_the_sweep_runs() -> None:
    assert arms(read_claims()) <= set(load_sweep("claims", [], []).recipes) <= set(recipe_names())


@pytest.mark.parametrize(
    "text",
    [
        "- {claim: c, paper: p}",
        "- {claim: c, paper: p, tests: [{measure: m, arm: a}]}",
        "- {claim: c, paper: p, tests: [{measure: m, arm: a, above: 1, below: 2}]}",
        "- {claim: c, paper: p, tests: [{measure: m, arm: a, above: 1, beyond: 2}]}",
    ],
)
def test_a_claim_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(UserError, match="not a claim with its paper and tests"):
        read_claims(tmp_path / "claims.yaml")


def test_nothing_measured_is_undecided() -> None:
    table = judge(read_claims(), {})
    assert set(table.claim_verdict) == {UNDECIDED}
    assert "not measured" in show(table)
