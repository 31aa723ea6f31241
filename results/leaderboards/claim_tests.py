"""The papers' claims: their tests, as `inputs/claims.yaml` states them, and the verdicts that records give.

Every test asks whether a difference is above a margin. One two-sided test, corrected by Holm for all tests of the file,
decides it either way, so that "holds" and "does not hold" are wrong equally rarely. Variances are those of
`significance.spread`, as in the leaderboards.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from results.leaderboards.collect import collect, read_proven
from results.leaderboards.intervals import LEVEL, inferred_images
from results.leaderboards.run_table import HEADLINES, PRETRAIN, TEST_SET, at, real, text, whole
from results.leaderboards.significance import Spread, holm, spread
from whitebench.errors import UserError
from whitebench.records import Record
from whitebench.yaml import read_yaml

HOLDS, FAILS, UNDECIDED = "holds", "does not hold here", "undecided"
WORKS = "learns more than an untrained network has"
"""The claim that every arm is tested for, whatever else it is compared with."""


@dataclass(frozen=True)
class Comparison:
    """measure of arm  >  (or <)  that of the other arm, or a number, by at least a margin."""

    measure: str
    arm: str
    above: bool
    other: str | float
    by: float = 0.0

    def __str__(self) -> str:
        margin = f" by {self.by:g}" if self.by else ""
        return f"{self.measure} of {self.arm} {'above' if self.above else 'below'} {self.other}{margin}"


@dataclass(frozen=True)
class Claim:
    claim: str
    paper: str
    tests: tuple[Comparison, ...]


@dataclass(frozen=True)
class ClaimFile:
    written: str
    """The day on which the tests were committed, before the runs that decide them."""
    changes: tuple[str, ...]
    """What was changed after results were seen, with the day."""
    claims: tuple[Claim, ...]


Values = dict[tuple[str, str], list[float]]
"""(arm, measure) -> a value per pretraining."""


def read_claims(path: Path) -> ClaimFile:
    """The claims of a file; one for each arm, that it learns anything, comes first.

    Raises:
        UserError: an entry that is not a claim or a test, naming it.
    """
    content = read_yaml(path)
    try:
        entries, untrained, measure = content["claims"], str(content["untrained"]), str(content["works_by"])
        written, changes = str(content["written"]), tuple(map(_change, content.get("changed_after_a_look") or []))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: needs written, untrained, works_by and claims ({error})") from error
    claims = []
    for entry in entries:
        try:
            claims.append(Claim(entry["claim"], entry["paper"], tuple(map(_test, entry["tests"]))))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a claim with its paper and tests: {entry} ({error})") from error
    trained = sorted(arms(claims) - {untrained})
    works = [Claim(f"{arm} {WORKS}", "every arm", (Comparison(measure, arm, True, untrained),)) for arm in trained]
    return ClaimFile(written, changes, (*works, *claims))


def arms(claims: Sequence[Claim]) -> set[str]:
    """The recipes that they are about."""
    tests = [test for claim in claims for test in claim.tests]
    others = {test.other for test in tests if isinstance(test.other, str) and "@" not in test.other}
    return {test.arm for test in tests} | others


def read_records(roots: Sequence[Path], recipes: Collection[str]) -> dict[Path, Record]:
    """By their files, the records below `roots` of these recipes' pretrainings and of their evaluations."""
    collected = collect([root for root in roots if root.is_dir()]).summaries.values()
    records = {item.path: read_proven(item.path) for item in collected}
    parents = {r.id for r in records.values() if r.stage == PRETRAIN and text(r.cell.get("recipe")) in recipes}
    return {path: r for path, r in records.items() if parents & {r.id, text(r.config.get("parent"))}}


def measure(records: Collection[Record]) -> Values:
    """What the records say of each arm, in the order of pretraining seeds."""
    pretrained = [record for record in records if record.stage == PRETRAIN]
    pretrained.sort(key=lambda record: (whole(record.config.get("seed")) or 0, record.id))
    values: Values = {}
    for parent in pretrained:
        arm = str(text(parent.cell.get("recipe")))
        if parent.status in ("done", "failed"):
            values.setdefault((arm, "trained"), []).append(float(parent.status == "done"))
        if parent.status == "done":
            for name, metric in parent.metrics.items():
                value = float(metric) if isinstance(metric, bool) else real(metric)
                if value is not None:
                    values.setdefault((arm, name), []).append(value)
        for name, tops in _evaluations(parent.id, records).items():
            values.setdefault((arm, name), []).append(float(np.mean(tops)))
    return values


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


def judge(claims: Sequence[Claim], values: Values, points: Mapping[str, float] | None = None) -> pd.DataFrame:
    """A row per test: what was measured (mean, sd, n of both sides), the difference with its interval, the verdicts.

    `points` is what `resolutions` gives.
    """
    rows = [_row(claim, test, values, points or {}) for claim in claims for test in claim.tests]
    table = pd.DataFrame(rows)
    table["p_adjusted"] = holm(table["p"].astype(float))
    table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    pairs = [(claim, test) for claim in claims for test in claim.tests]
    works = {test.arm: word for (claim, test), word in zip(pairs, table.verdict, strict=True) if WORKS in claim.claim}
    table["arm_works"] = [works.get(test.arm, "") for _, test in pairs]
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

    bound = test.by if test.above else -test.by
    beyond = middle > bound if test.above else middle < bound
    if not error > 0:
        return {"difference": middle, "p": math.nan, "beyond": beyond}
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(middle - bound) / error))
    return {"difference": middle, "ci95_low": middle - half, "ci95_high": middle + half, "p": p, "beyond": beyond}


def _test(entry: dict[str, Any]) -> Comparison:
    keys = {"measure", "arm", "above", "below", "by"}
    if set(entry) - keys or ("above" in entry) is ("below" in entry):
        raise ValueError(f"a test has measure, arm, one of above and below, and by: {entry}")
    other = entry["above"] if "above" in entry else entry["below"]
    return Comparison(entry["measure"], entry["arm"], "above" in entry, other, float(entry.get("by", 0.0)))


def _change(entry: Mapping[str, Any]) -> str:
    return f"{entry['date']}: {entry['what']}"


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
