"""Published values next to those of runs: the nearest row of `published.csv`, and whether the two may be compared.

Each field is equal, different or not stated (most papers leave some out). Only where all are equal is there a delta,
and by the tolerance of our recipe a verdict.
"""

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from results.leaderboards import recipe_papers as recipes
from results.leaderboards.run_table import Facts
from whitebench.yaml import read_yaml

INPUTS = Path(__file__).parents[1] / "inputs"
CSV, MAP = INPUTS / "published.csv", INPUTS / "published_map.yaml"
EQUAL, DIFFERENT, UNSTATED = "equal", "different", "not stated"
REPRODUCED, SHORT, ABOVE, UNDECIDED, NOT_RUN = "reproduced", "short by", "above by", "not decided", "not run"
FEW_SEEDS = 3
"""With fewer pretrainings an interval is so wide that it says little: for two, 9 standard deviations to either side."""

COMMON = (
    "method",
    "paper",
    "backbone",
    "dataset",
    "protocol",
    "epochs",
    "batch_size",
    "views",
    "source_table",
    "source",
    "note",
)
"""Columns that the values of one published experiment have in common."""

Views = tuple[int, Counter[int] | None]
"""Number of views, and how many there are of each size where that is known."""


@dataclass(frozen=True)
class Match:
    """The published experiment nearest to one of this suite."""

    method: str
    source: str
    values: dict[str, float]
    """By our metrics' names."""
    fields: dict[str, str]
    """Of each field that must agree: how it does, e.g. "equal", "different: 20, published 1000", "not stated"."""

    @property
    def comparable(self) -> str:
        """yes: every field is equal; no: one differs; undecided: none differs, but not all are stated."""
        states = {state.partition(":")[0] for state in self.fields.values()}
        return "no" if DIFFERENT in states else "undecided" if UNSTATED in states else "yes"

    @property
    def rank(self) -> tuple[int, int, bool]:
        """The lower, the nearer; then, a value read at its source goes before one that another paper quotes."""
        states = [state.partition(":")[0] for state in self.fields.values()]
        return states.count(DIFFERENT), states.count(UNSTATED), self.source.startswith("SECONDARY")


class Published:
    """The published values, under our names."""

    def __init__(self, table: Path = CSV, names: Path = MAP) -> None:
        self.table, self.names = table, names

    @cached_property
    def map(self) -> dict[str, Any]:
        loaded: dict[str, Any] = read_yaml(self.names)
        return loaded

    @cached_property
    def rows(self) -> list[tuple[dict[str, str], dict[str, tuple[str, str]]]]:
        """Each published experiment, in the file's order: its setting and its metrics.

        A metric, by our name, is (value, standard deviation or ""), with the file's digits.
        """
        merged: dict[tuple[str, ...], dict[str, str]] = {}
        with open(self.table, newline="") as file:
            for row in csv.DictReader(file):
                merged.setdefault(tuple(row[key] for key in COMMON), {})[row["metric"]] = row["value"]
        return [(dict(zip(COMMON, setting)), self._named(values)) for setting, values in merged.items()]

    def _named(self, values: dict[str, str]) -> dict[str, tuple[str, str]]:
        names = {name: metric for metric, name in self.map["metrics"].items()} | self.map["other_metrics"]
        spreads = self.map["spreads"]
        return {
            metric: (values[name], values.get(spreads.get(name, ""), ""))
            for name, metric in names.items()
            if name in values
        }

    @cached_property
    def experiments(self) -> list[tuple[dict[str, str], dict[str, float]]]:
        """As `rows`, with the values as numbers, without deviations."""
        return [(row, {metric: float(value) for metric, (value, _) in cells.items()}) for row, cells in self.rows]

    def nearest(self, measured: Facts, method_config: Mapping[str, str], metric: str) -> Match | None:
        """The nearest published experiment of the same method, dataset and protocol that has `metric`, or None.

        `measured` holds dataset, stage, protocol, method, recipe, backbone, epochs, batch, views, selection and
        deviations from the protocol; `method_config` the method section of the recipe, flat.
        """
        matches = (
            Match(published["method"], published["source"], values, fields)
            for published, values in self._on(measured["dataset"])
            if metric in values and (fields := self._compare(measured, method_config, published)) is not None
        )
        return min(matches, key=lambda match: match.rank, default=None)

    def _on(self, dataset: Any) -> list[tuple[dict[str, str], dict[str, float]]]:
        """The published experiments on our `dataset`."""
        name = self.map["datasets"].get(dataset)
        return self._by_dataset.get(name, []) if name else []

    @cached_property
    def _by_dataset(self) -> dict[str, list[tuple[dict[str, str], dict[str, float]]]]:
        by_dataset: dict[str, list[tuple[dict[str, str], dict[str, float]]]] = {}
        for setting, values in self.experiments:
            by_dataset.setdefault(setting["dataset"], []).append((setting, values))
        return by_dataset

    def _compare(self, measured: Facts, method_config: Mapping[str, str], row: dict[str, str]) -> dict[str, str] | None:
        """How each field agrees with a row on our dataset; None where that is of another method or protocol."""
        entry = self._protocol(f"{measured['stage']}-{measured['protocol']}", row)
        recipe = measured.get("recipe") or ""
        if entry is None or not self.is_method(row["method"], measured["method"], method_config, recipe):
            return None
        protocol = f"{entry['protocol']}: {entry['why']}" if "why" in entry else str(entry["protocol"])
        selection = entry.get("selection", "")
        backbones = self.map["backbones"].get(measured["backbone"], [])
        if measured.get("deviations"):
            protocol = f"{DIFFERENT}: {measured['deviations']}"
        rebuilt = recipes.is_reconstruction(recipe)
        return {
            **({"settings": f"{UNSTATED}: a reconstruction"} if rebuilt else {}),
            "protocol": protocol,
            "dataset": EQUAL,
            "backbone": _state(row["backbone"], measured["backbone"], row["backbone"] in backbones),
            "epochs": _state(row["epochs"], measured["epochs"], row["epochs"] == str(measured["epochs"])),
            "batch": _state(row["batch_size"], measured["batch"], row["batch_size"] == str(measured["batch"])),
            "views": _state(row["views"], measured["views"], _same_views(row["views"], measured["views"])),
            "selection": _state(selection, measured["selection"], selection == measured["selection"]),
        }

    def _protocol(self, key: str, row: dict[str, str]) -> dict[str, str] | None:
        """The first entry of the map by which the published row is of our protocol `key` ("<stage>-<name>")."""
        for entry in self.map["protocols"].get(key, []):
            fits = entry["text"] == row["protocol"] and entry.get("paper", row["paper"]) == row["paper"]
            if fits and row["dataset"] in entry.get("dataset", [row["dataset"]]):
                match: dict[str, str] = entry
                return match
        return None

    def is_method(self, name: str, method: Any, config: Mapping[str, Any], recipe: str) -> bool:
        """Whether a published method of this name is ours, with these settings (flat; "null" or absent: unset)."""
        entry = self.map["methods"].get(name)
        if entry is None or entry["method"] != method or recipe not in entry.get("recipes", [recipe]):
            return False
        required: dict[str, str] = entry.get("config", {})
        return all((config.get(key, "null") == "null") == (value == "null") for key, value in required.items())


def verdict(delta: float, half_width: float, n: int, tolerance: float | None) -> str:
    """Of our mean minus the published value, in points; "" where that is NaN (not comparable) or without tolerance.

    Args:
        half_width: half the 95 % interval of our mean; the whole interval must be on one side of a bound.
        n: pretrainings behind it; of fewer than FEW_SEEDS nothing is said.
    """
    if tolerance is None or math.isnan(delta):
        return ""
    if n < FEW_SEEDS:
        return f"{UNDECIDED} (n = {n})"
    low, high = delta - half_width, delta + half_width
    if high < -tolerance:
        return f"{SHORT} {-delta:.2f}"
    if low > tolerance:
        return f"{ABOVE} {delta:.2f}"
    return REPRODUCED if -tolerance <= low and high <= tolerance else UNDECIDED


def describe(fields: Mapping[str, str]) -> str:
    """'epochs different: 20, published 1000; batch not stated; ...': what differs first, what is equal last."""
    order: Sequence[str] = (DIFFERENT, UNSTATED, EQUAL)
    ranked = sorted(fields.items(), key=lambda item: order.index(item[1].partition(":")[0]))
    return "; ".join(f"{name} {state}" for name, state in ranked)


def _state(stated: str, measured: Any, same: bool) -> str:
    if not stated or measured is None:
        return UNSTATED
    return EQUAL if same else f"{DIFFERENT}: {measured}, published {stated}"


def _same_views(published_views: str, measured_views: str | None) -> bool:
    """Equal numbers of views and, where the publication gives them, equal sizes."""
    published, measured = parse_views(published_views), parse_views(measured_views or "")
    if published is None or measured is None or published[0] != measured[0]:
        return False
    return published[1] is None or published[1] == measured[1]


def parse_views(views: str) -> Views | None:
    """'2' -> (2, None); '2x224+6x96', '8 (2x224,6x96)' -> (8, {224: 2, 96: 6}); None where it says neither."""
    number = re.fullmatch(r"(\d+)(?: \((.*)\))?", views.strip())
    if number and not number[2]:
        return int(number[1]), None
    parts = re.split(r"[+,]", number[2] if number else views)
    groups = [re.fullmatch(r"(?:(\d+)x)?(\d+)", part.strip()) for part in parts]
    sizes = Counter[int]()
    for group in filter(None, groups):
        sizes[int(group[2])] += int(group[1] or 1)
    return (sizes.total(), sizes) if all(groups) and sizes.total() > 0 else None
