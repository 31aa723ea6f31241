"""The claims and their tests, as `inputs/claims.yaml` states them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whitebench.errors import UserError
from whitebench.yaml import read_yaml

WORKS = "learns more than an untrained network has"
"""The claim that every arm is tested for, whatever else it is compared with."""
RELATIONS = ("above", "below", "differs")


@dataclass(frozen=True)
class Comparison:
    """measure of arm  >  (or <)  that of the other arm, or a number, by at least a margin.

    Or it `differs` from it: in either direction by more than the margin. It does not where the difference is shown to
    be within the margin.
    """

    measure: str
    arm: str
    above: bool
    other: str | float
    by: float = 0.0
    differs: bool = False

    def __str__(self) -> str:
        margin = f" by {self.by:g}" if self.by else ""
        relation = "differs from" if self.differs else "above" if self.above else "below"
        return f"{self.measure} of {self.arm} {relation} {self.other}{margin}"

    @property
    def arms(self) -> set[str]:
        return {self.arm, self.other} if isinstance(self.other, str) and "@" not in self.other else {self.arm}


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation of two measures over the pretrainings of several arms  >  (or <)  a number."""

    measures: tuple[str, str]
    over: tuple[str, ...]
    above: bool
    other: float

    def __str__(self) -> str:
        relation = "above" if self.above else "below"
        return f"Spearman of {' and '.join(self.measures)} over {', '.join(self.over)} {relation} {self.other:g}"

    @property
    def arms(self) -> set[str]:
        return set(self.over)


Test = Comparison | Correlation


@dataclass(frozen=True)
class Claim:
    claim: str
    paper: str
    tests: tuple[Test, ...]


@dataclass(frozen=True)
class ClaimFile:
    written: str
    """The day on which the tests were committed, before the runs that decide them."""
    changes: tuple[str, ...]
    """What was changed after results were seen, with the day."""
    claims: tuple[Claim, ...]


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
    return {arm for claim in claims for test in claim.tests for arm in test.arms}


def _test(entry: dict[str, Any]) -> Test:
    stated = [relation for relation in RELATIONS if relation in entry]
    kind = {"correlation", "over"} if "correlation" in entry else {"measure", "arm", "by"}
    if len(stated) != 1 or set(entry) - kind - set(stated):
        raise ValueError(f"a test has measure, arm, one of {', '.join(RELATIONS)}, and by: {entry}")
    (relation,) = stated
    if "correlation" in entry:
        first, second = entry["correlation"]
        if relation == "differs" or not -1 < float(entry[relation]) < 1:
            raise ValueError(f"a correlation is above or below a number between -1 and 1: {entry}")
        return Correlation((first, second), tuple(entry["over"]), relation == "above", float(entry[relation]))
    return Comparison(
        entry["measure"],
        entry["arm"],
        relation == "above",
        entry[relation],
        float(entry.get("by", 0.0)),
        relation == "differs",
    )


def _change(entry: Mapping[str, Any]) -> str:
    return f"{entry['date']}: {entry['what']}"
