"""Every pair of the leaderboards' best experiments, with the test behind the verdict."""

from typing import Any

from results.leaderboards.console import TITLES
from results.leaderboards.leaderboard import Tables
from results.page.data_tables import Cell, Head, Table, TableRow, chips, number_cell, without_empty_columns

NUMBERS = (
    ("difference", "a − b", "{:+.2f}"),
    ("ci95", "± 95 % CI", "{:.2f}"),
    ("n", "n", "{}"),
    ("p", "p", "{:.3g}"),
    ("p_adjusted", "p corrected", "{:.3g}"),
    ("fresh_seeds", "fresh seeds", "{}"),
)


MOST_PAIRS = 60
"""Pairs of a leaderboard and metric, at most: the best against all others come first. `comparisons.csv` has all."""


def comparison_table(tables: Tables) -> Table:
    pairs = tables.comparisons.groupby(["dataset", "stage", "protocol", "metric"], sort=False).head(MOST_PAIRS)
    numbers = [column for column in NUMBERS if column[0] in pairs]
    heads = [Head("evaluation", "evaluation"), Head("a", "a"), Head("b", "b")]
    heads += [Head(key, title, numeric=True) for key, title, _ in numbers]
    rows = [
        TableRow(_words(row), [*_names(row), *(number_cell(row[key], form) for key, _, form in numbers), _better(row)])
        for row in pairs.to_dict("records")
    ]
    return without_empty_columns(Table("pairs", [*heads, Head("better", "better")], rows))


def decided(tables: Tables) -> int:
    return int(tables.comparisons.verdict.isin(["a", "b"]).sum())


def _words(row: dict[Any, Any]) -> str:
    names = ("dataset", "stage", "protocol", "a", "b")
    return " ".join([*(str(row[name]) for name in names), f"config:{row['a_config']} config:{row['b_config']}"])


def _names(row: dict[Any, Any]) -> list[Cell]:
    title = f"{row['dataset']}: {row['stage']} {row['protocol']}, {TITLES[row['metric']]}"
    return [Cell(title), Cell(str(row["a"])), Cell(str(row["b"]))]


def _better(row: dict[Any, Any]) -> Cell:
    verdict = str(row["verdict"])
    significant = verdict in ("a", "b")
    text = str(row[verdict]) if significant else verdict
    return Cell(chips([text], "good" if significant else ""), csv=text)
