"""python results/claims.py [RUNS ...]: the papers' claims, what was measured for each, and the verdict.

`claims.yaml` names the claims and their tests, `slurm/sweeps/claims.yaml` runs their arms, and this judges the records:
a row of `claims.csv` is one test. n counts pretrainings; a difference has a 95 % interval by Welch's t, of that test
alone: not corrected for there being several.
"""

import argparse
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from results.leaderboards.collect import collect, read_proven
from results.leaderboards.run_table import PRETRAIN
from results.leaderboards.write import publish
from whitebench.errors import UserError, run_command
from whitebench.files import write_atomically
from whitebench.records import Record, runs_root
from whitebench.yaml import read_yaml

HERE = Path(__file__).parent
TABLE, RECORDS = "claims.csv", "records/claims"
"""Apart from those of the leaderboards, to which the claims' arms do not belong."""
CLAIMS = HERE / "inputs" / "claims.yaml"
HOLDS, FAILS, UNDECIDED = "holds", "does not hold here", "undecided"
LEVEL = 0.95


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


Values = dict[tuple[str, str], list[float]]
"""(arm, measure) -> a value each pretraining."""


def read_claims(path: Path = CLAIMS) -> list[Claim]:
    """The claims of a file.

    Raises:
        UserError: an entry that is no claim or no test, naming it.
    """
    claims = []
    for entry in read_yaml(path):
        try:
            claims.append(Claim(entry["claim"], entry["paper"], tuple(map(_test, entry["tests"]))))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a claim with its paper and tests: {entry} ({error})") from error
    return claims


def arms(claims: Sequence[Claim]) -> set[str]:
    """The recipes that they are about."""
    tests = [test for claim in claims for test in claim.tests]
    others = {test.other for test in tests if isinstance(test.other, str) and "@" not in test.other}
    return {test.arm for test in tests} | others


def read_records(roots: Sequence[Path], recipes: Collection[str]) -> dict[Path, Record]:
    """By their files, the records below `roots` of these recipes' pretrainings and of their evaluations."""
    collected = collect([root for root in roots if root.is_dir()]).found.values()
    records = {item.path: read_proven(item.path) for item in collected}
    parents = {r.id for r in records.values() if r.stage == PRETRAIN and r.cell.get("recipe") in recipes}
    return {path: r for path, r in records.items() if parents & {r.id, r.config.get("parent")}}


def measure(records: Collection[Record]) -> Values:
    """What the records say of each arm, in the order of pretraining seeds."""
    pretrained = sorted((r for r in records if r.stage == PRETRAIN), key=lambda r: (r.config.get("seed", 0), r.id))
    values: Values = {}
    for parent in pretrained:
        arm = str(parent.cell.get("recipe"))
        if parent.status in ("done", "failed"):
            values.setdefault((arm, "trained"), []).append(float(parent.status == "done"))
        if parent.status == "done":
            for name, value in parent.metrics.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    values.setdefault((arm, name), []).append(float(value))
        for name, tops in _evaluations(parent.id, records).items():
            values.setdefault((arm, name), []).append(float(np.mean(tops)))
    return values


def judge(claims: Sequence[Claim], values: Values) -> pd.DataFrame:
    """A row a test: what was measured (mean, sd, n of both sides), the difference with its interval, the verdicts."""
    rows = []
    for claim in claims:
        tested = [_row(test, values) for test in claim.tests]
        verdicts = [row["verdict"] for row in tested]
        whole = FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS
        rows += [{"claim": claim.claim, "paper": claim.paper, "claim_verdict": whole, **row} for row in tested]
    return pd.DataFrame(rows)


def difference(a: Sequence[float], b: Sequence[float] | float) -> tuple[float, float, float]:
    """Mean of a minus that of b (or the number b), and its 95 % interval: by Student's t, or Welch's for two samples.

    The interval is infinite where a side has fewer than two values.
    """
    from scipy import stats

    constant = isinstance(b, int | float)
    several = len(a) > 1 and (isinstance(b, int | float) or len(b) > 1)
    middle = float(np.mean(a) - np.mean(b))
    if not several:
        return middle, -math.inf, math.inf
    spread = np.var(a, ddof=1) + (0 if constant else np.var(b, ddof=1))
    if spread == 0:
        return middle, middle, middle
    outcome = stats.ttest_1samp(a, b) if constant else stats.ttest_ind(a, b, equal_var=False)
    interval = outcome.confidence_interval(LEVEL)
    shift = b if isinstance(b, int | float) else 0.0
    return middle, float(interval.low) - shift, float(interval.high) - shift


def _test(entry: dict[str, Any]) -> Comparison:
    known = {"measure", "arm", "above", "below", "by"}
    if set(entry) - known or ("above" in entry) is ("below" in entry):
        raise ValueError(f"a test has measure, arm, one of above and below, and by: {entry}")
    other = entry["above"] if "above" in entry else entry["below"]
    return Comparison(entry["measure"], entry["arm"], "above" in entry, other, float(entry.get("by", 0.0)))


def _row(test: Comparison, values: Values) -> dict[str, Any]:
    """Of a test whose other side is `measure@...`, the other side is the same arm by that measure."""
    own = values.get((test.arm, test.measure), [])
    other: Sequence[float] | float
    if isinstance(test.other, str):
        same_arm = "@" in test.other
        other = values.get((test.arm, test.other) if same_arm else (test.other, test.measure), [])
    else:
        other = float(test.other)
    row: dict[str, Any] = {"test": str(test), **_summary("arm", own)}
    number = {"other_mean": other, "other_sd": None, "other_n": None}
    row |= number if isinstance(other, float) else _summary("other", other)
    if not own or (not isinstance(other, float) and not other):
        return {**row, "verdict": UNDECIDED, "why": "not measured"}
    middle, low, high = difference(own, other)
    row |= {"difference": middle, "ci95_low": low, "ci95_high": high}
    if test.above:
        holds, fails = low > test.by, high < test.by
    else:
        holds, fails = high < -test.by, low > -test.by
    return {**row, "verdict": HOLDS if holds else FAILS if fails else UNDECIDED, "why": ""}


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
        if record.config.get("parent") == parent and record.status == "done" and "top1" in record.metrics:
            features = record.config.get("features")
            name = f"{record.stage}@{features}" if features else record.stage
            tops.setdefault(name, []).append(record.metrics["top1"])
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python results/claims.py",
        description="Judges the papers' claims by the runs of slurm/sweeps/claims.yaml and claims-whitened.yaml, and "
        f"by the published ones in OUT/{RECORDS}.",
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs (default: $WHITEBENCH_RUNS, or ./runs)")
    parser.add_argument("--out", type=Path, default=HERE, help="where claims.csv goes (default: results)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--publish", action="store_true", help=f"also copy the records behind it to OUT/{RECORDS}")
    mode.add_argument("--check", action="store_true", help=f"fail if OUT's claims.csv is not what OUT/{RECORDS} gives")
    options = parser.parse_args(arguments)
    missing = [path for path in options.runs if not path.is_dir()]
    if missing:
        raise UserError(f"{missing[0]}: no such folder of runs")
    claims, roots = read_claims(), [] if options.check else options.runs or [runs_root()]
    records = read_records([*roots, options.out / RECORDS], arms(claims))
    table, path = judge(claims, measure(records.values())), options.out / TABLE
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if options.check:
        if not path.exists() and not records:
            print(f"{options.out}: no claims are published")
            return 0
        if not path.exists() or path.read_text() != text:
            raise UserError(f"{path}: is not what {options.out / RECORDS} gives")
        print(f"{path}: is what {RECORDS}/ gives")
        return 0
    write_atomically(path, text.encode())
    print(show(table))
    if options.publish:
        print(f"{publish(records, options.out / RECORDS)} records published in {options.out / RECORDS}")
    return 0


if __name__ == "__main__":
    run_command(main)
