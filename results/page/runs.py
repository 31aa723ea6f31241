"""The page's runs: each pretraining with its evaluations, results, environment and command."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from results.leaderboards.console import TITLES
from results.leaderboards.run_table import METRICS, PRETRAIN
from results.page.curves import run_words
from results.page.run_details import Detail, Difference, difference
from results.page.run_files import number

ENVIRONMENT = (
    "git",
    "dirty",
    "python",
    "torch",
    "torchvision",
    "numpy",
    "ffcv",
    "detectron2",
    "sal-detectron2",
    "host",
    "device",
)


@dataclass(frozen=True)
class RunView:
    detail: Detail
    words: str
    facts: str
    """Id, status, duration and headline results, for the line that is always visible."""
    results: dict[str, str]
    environment: dict[str, str]
    difference: Difference
    about_difference: str
    """In place of a difference: there is none, or no recipe to compare with."""
    evaluations: Sequence["RunView"] = ()


def run_views(details: Sequence[Detail]) -> list[RunView]:
    """Pretrainings with their evaluations, then evaluations whose pretraining is not on the page."""
    children: dict[str, list[Detail]] = {}
    for detail in details:
        if detail.record.stage != PRETRAIN:
            children.setdefault(str(detail.record.config.get("parent")), []).append(detail)
    pretrainings = [detail for detail in details if detail.record.stage == PRETRAIN]
    present = {detail.record.id for detail in pretrainings}
    orphans = [detail for parent, group in children.items() if parent not in present for detail in group]
    return [
        *(_pretraining(detail, children.get(detail.record.id, [])) for detail in pretrainings),
        *map(_evaluation, orphans),
    ]


def _pretraining(detail: Detail, evaluations: Sequence[Detail]) -> RunView:
    views = [_evaluation(evaluation) for evaluation in evaluations]
    change = difference(detail.record)
    return RunView(
        detail,
        " ".join([run_words(detail), *(run_words(evaluation) for evaluation in evaluations)]),
        _facts(detail, *map(headline, evaluations)),
        _plain(detail.record.metrics),
        _environment(detail),
        [] if isinstance(change, str) else change,
        change if isinstance(change, str) else "" if change else "none: exactly the recipe",
        views,
    )


def _evaluation(detail: Detail) -> RunView:
    metrics = {name: detail.record.metrics.get(name) for name in METRICS.get(detail.record.stage, ())}
    facts = _facts(detail, headline(detail))
    return RunView(detail, run_words(detail), facts, _plain(metrics), _environment(detail), [], "")


def _facts(detail: Detail, *results: str) -> str:
    record = detail.record
    wall = number(record.cost.get("wall_s"))
    minutes = "" if wall is None else f"{wall / 60:.1f} min"
    return " · ".join(filter(None, (record.id, record.status, minutes, *results)))


def headline(detail: Detail) -> str:
    """E.g. 'linear top-1 77.92'."""
    record = detail.record
    values = {name: number(record.metrics.get(name)) for name in TITLES}
    texts = [f"{TITLES[name]} {value:.2f}" for name, value in values.items() if value is not None]
    return f"{record.stage} {', '.join(texts)}" if texts else ""


def _environment(detail: Detail) -> dict[str, str]:
    environment = detail.record.environment
    return {key: str(environment[key]) for key in ENVIRONMENT if key in environment}


def _plain(values: dict[str, Any]) -> dict[str, str]:
    return {
        str(key): str(value) if (real := number(value)) is None else f"{real:.6g}"
        for key, value in values.items()
        if value is not None
    }
