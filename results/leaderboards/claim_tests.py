"""The verdicts that records give on the papers' claims (`claim_file`).

Every test asks whether a difference is above a margin. One two-sided test, corrected by Holm for all tests of the file,
decides it either way, so that "holds" and "does not hold" are wrong equally rarely. Variances are those of
`significance.spread`, as in the leaderboards.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from results.leaderboards.claim_file import WORKS, Claim, Comparison, Correlation
from results.leaderboards.collect import collect, read_proven
from results.leaderboards.intervals import LEVEL, inferred_images
from results.leaderboards.rank_correlation import rank_correlation
from results.leaderboards.run_table import HEADLINES, PRETRAIN, TEST_SET, at, real, text, whole
from results.leaderboards.significance import Spread, holm, spread
from whitebench.records import Record

HOLDS, FAILS, UNDECIDED = "holds", "does not hold here", "undecided"


Values = dict[tuple[str, str], list[float]]
"""(arm, measure) -> a value per pretraining."""
Measured = dict[str, list[dict[str, float]]]
"""arm -> of each pretraining its measures."""


def read_records(roots: Sequence[Path], recipes: Collection[str]) -> dict[Path, Record]:
    """By their files, the records below `roots` of these recipes' pretrainings and of their accuracies."""
    collected = collect([root for root in roots if root.is_dir()]).summaries.values()
    records = {item.path: read_proven(item.path) for item in collected}
    parents = {r.id for r in records.values() if r.stage == PRETRAIN and text(r.cell.get("recipe")) in recipes}
    measuring = {PRETRAIN, *(stage for stage, metrics in HEADLINES.items() if "top1" in metrics)}
    final = {
        path: r
        for path, r in records.items()
        if r.stage in measuring and (r.stage == PRETRAIN or r.config.get("epoch") is None)
    }
    return {path: r for path, r in final.items() if parents & {r.id, text(r.config.get("parent"))}}


def measure_each(records: Collection[Record]) -> Measured:
    """What the records say of each pretraining of each arm, in the order of seeds."""
    pretrained = [record for record in records if record.stage == PRETRAIN]
    pretrained.sort(key=lambda record: (whole(record.config.get("seed")) or 0, record.id))
    measured: Measured = {}
    for parent in pretrained:
        values: dict[str, float] = {}
        if parent.status in ("done", "failed"):
            values["trained"] = float(parent.status == "done")
        if parent.status == "done":
            for name, metric in parent.metrics.items():
                value = float(metric) if isinstance(metric, bool) else real(metric)
                if value is not None:
                    values[name] = value
        values |= {name: float(np.mean(tops)) for name, tops in _evaluations(parent.id, records).items()}
        measured.setdefault(str(text(parent.cell.get("recipe"))), []).append(values)
    return measured


def by_measure(measured: Measured) -> Values:
    """The same, by arm and measure."""
    values: Values = {}
    for arm, pretrainings in measured.items():
        for each in pretrainings:
            for name, value in each.items():
                values.setdefault((arm, name), []).append(value)
    return values


def measure(records: Collection[Record]) -> Values:
    """What the records say of each arm, in the order of pretraining seeds."""
    return by_measure(measure_each(records))


def resolutions(records: Collection[Record]) -> dict[str, float]:
    """Of each stage, the points that one image of its test set makes; 0 where that is not known."""
    points = {}
    for stage in HEADLINES:
        evaluations = [r for r in records if r.stage == stage]
        counts = [count for r in evaluations if (count := whole(at(r.data, *TEST_SET)))]
        tops = [value for r in evaluations if (value := real(r.metrics.get("top1"))) is not None]
        images = min(counts) if counts else inferred_images(tops)
        points[stage] = 100 / images if images else 0.0
    return points


def judge(
    claims: Sequence[Claim],
    values: Values,
    points: Mapping[str, float] | None = None,
    measured: Measured | None = None,
) -> pd.DataFrame:
    """A row per test: what was measured (mean, sd, n of both sides), the difference with its interval, the verdicts.

    `points` is what `resolutions` gives; `measured`, what `measure_each` gives, is needed for correlations.
    """
    rows = [
        _correlation_row(claim, test, measured or {})
        if isinstance(test, Correlation)
        else _row(claim, test, values, points or {})
        for claim in claims
        for test in claim.tests
    ]
    table = pd.DataFrame(rows)
    table["p_adjusted"] = holm(table["p"].astype(float))
    table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    pairs = [(claim, test) for claim in claims for test in claim.tests]
    works = {
        test.arm: word
        for (claim, test), word in zip(pairs, table.verdict, strict=True)
        if WORKS in claim.claim and isinstance(test, Comparison)
    }
    table["arm_works"] = [works.get(test.arm, "") if isinstance(test, Comparison) else "" for _, test in pairs]
    whole_claim = table.groupby(["claim", "paper"], sort=False).verdict.agg(_together).rename("claim_verdict")
    table = table.join(whole_claim, on=["claim", "paper"])
    return table[COLUMNS]


COLUMNS = [
    *("claim", "paper", "claim_verdict", "test", "arm_mean", "arm_sd", "arm_n", "other_mean", "other_sd", "other_n"),
    *("difference", "ci95_low", "ci95_high", "p", "p_adjusted", "verdict", "arm_works", "why"),
]


def _together(verdicts: pd.Series) -> str:
    words = set(verdicts)
    return FAILS if FAILS in words else UNDECIDED if UNDECIDED in words else HOLDS


def _verdict(row: Mapping[Any, Any]) -> str:
    if not row["p_adjusted"] < 1 - LEVEL:  # NaN is undecided, too
        return UNDECIDED
    return HOLDS if row["beyond"] else FAILS


def _row(claim: Claim, test: Comparison, values: Values, points: Mapping[str, float]) -> dict[str, Any]:
    """Of a test whose other side is `measure@...`, the other side is the same arm by that measure."""
    sides = [(test.arm, test.measure)]
    if isinstance(test.other, str):
        sides.append((test.arm, test.other) if "@" in test.other else (test.other, test.measure))
    samples = [values.get(side, []) for side in sides]
    row = {"claim": claim.claim, "paper": claim.paper, "test": str(test), **_summary("arm", samples[0])}
    number = {"other_mean": test.other, "other_sd": None, "other_n": None}
    row |= _summary("other", samples[1]) if len(sides) > 1 else number
    row |= {"difference": math.nan, "ci95_low": math.nan, "ci95_high": math.nan, "p": math.nan, "beyond": False}
    if not all(samples):
        return {**row, "why": "not measured"}
    middle, error, freedom = _difference(sides, values, points.get(test.measure.partition("@")[0], 0.0), test.other)
    return {**row, **_tested(middle, error, freedom, test), "why": "" if error > 0 else "one pretraining, or no spread"}


def _correlation_row(claim: Claim, test: Correlation, measured: Measured) -> dict[str, Any]:
    """The columns of the arm hold the correlation and the number of pretrainings."""
    first, second = test.measures
    groups = [
        [(each[first], each[second]) for each in measured.get(arm, []) if first in each and second in each]
        for arm in test.over
    ]
    runs = sum(map(len, groups))
    row = {"claim": claim.claim, "paper": claim.paper, "test": str(test), "other_mean": test.other}
    row |= {"arm_mean": None, "arm_sd": None, "arm_n": runs, "other_sd": None, "other_n": None}
    row |= {"difference": math.nan, "ci95_low": math.nan, "ci95_high": math.nan, "p": math.nan, "beyond": False}
    correlation = rank_correlation(groups)
    if correlation is None:
        return {**row, "why": "not measured" if not runs else "too few arms, or no spread"}
    low, high = (end - test.other for end in correlation.interval)
    row |= {"arm_mean": correlation.rho, "difference": correlation.rho - test.other, "ci95_low": low, "ci95_high": high}
    beyond = correlation.rho > test.other if test.above else correlation.rho < test.other
    return {**row, "p": correlation.p(test.other), "beyond": beyond, "why": ""}


def _difference(
    sides: Sequence[tuple[str, str]], values: Values, resolution: float, other: str | float
) -> tuple[float, float, float]:
    """Of two arms, or of one and a number: difference of the means, its standard error, degrees of freedom.

    The error is NaN where a side has fewer than two values.
    """
    family = sides[0][1].partition("@")[0]
    keys = [key for key in values if key[1].partition("@")[0] == family]
    width = max(len(values[key]) for key in keys)
    table = np.array([[*values[key], *[math.nan] * (width - len(values[key]))] for key in keys])
    deviation: Spread = spread(table, resolution)
    indices = [keys.index(side) for side in sides]
    squares = [deviation.variance[i] / len(values[keys[i]]) for i in indices]
    means = [float(np.mean(values[side])) for side in sides]
    middle = means[0] - (means[1] if len(means) > 1 else float(other))
    total = sum(squares)
    if total == 0 or (deviation.pooled[indices].all() and not math.isnan(total)):
        freedom = float(deviation.freedom[indices[0]])
    else:
        freedom = total**2 / sum(square**2 / deviation.freedom[i] for square, i in zip(squares, indices, strict=True))
    return middle, math.sqrt(total), freedom


def _tested(middle: float, error: float, freedom: float, test: Comparison) -> dict[str, Any]:
    from scipy.special import stdtr, stdtrit

    # That two arms differ by more than the margin is tested at the margin's end on the side of the difference.
    above = middle >= 0 if test.differs else test.above
    bound = test.by if above else -test.by
    beyond = middle > bound if above else middle < bound
    if not error > 0:
        return {"difference": middle, "p": math.nan, "beyond": beyond}
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(middle - bound) / error))
    return {"difference": middle, "ci95_low": middle - half, "ci95_high": middle + half, "p": p, "beyond": beyond}


def _summary(side: str, values: Sequence[float]) -> dict[str, float | int | None]:
    return {
        f"{side}_mean": float(np.mean(values)) if values else None,
        f"{side}_sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        f"{side}_n": len(values),
    }


def _evaluations(parent: str, records: Collection[Record]) -> dict[str, list[float]]:
    """Top-1 of a pretraining's evaluations, by stage and, other than the backbone's, features: knn, knn@transformed."""
    tops: dict[str, list[float]] = {}
    for record in records:
        top1 = real(record.metrics.get("top1"))
        if record.config.get("parent") == parent and record.status == "done" and top1 is not None:
            features = record.config.get("features")
            name = f"{record.stage}@{features}" if features else record.stage
            tops.setdefault(name, []).append(top1)
    return tops


def measured(row: Mapping[Any, Any]) -> str:
    """What was measured, of a row of the table: `34.5 (n=3) and 20.7 (n=3), difference 13.8 [8.5, 19.1]`."""
    if row["why"]:
        return str(row["why"])
    other = f"{row['other_mean']:.3g}" + (f" (n={row['other_n']:.0f})" if row["other_n"] > 0 else "")
    interval = f"[{row['ci95_low']:.3g}, {row['ci95_high']:.3g}]"
    return f"{row['arm_mean']:.3g} (n={row['arm_n']}) and {other}, difference {row['difference']:.3g} {interval}"


def show(table: pd.DataFrame) -> str:
    """The claims with their verdicts and, indented, their tests."""
    lines = []
    for (claim, paper, verdict), tests in table.groupby(["claim", "paper", "claim_verdict"], sort=False):
        lines.append(f"{verdict:24}{claim} ({paper})")
        lines += [f"    {row['verdict']:20}{row['test']}: {measured(row)}" for row in tests.to_dict("records")]
    return "\n".join(lines)
