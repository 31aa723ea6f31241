"""Methods over all leaderboards together: mean ranks, interquartile means and performance profiles."""

from typing import Any

import pandas as pd

from results.page.charts import HOVER, LAST, Axis, Chart, interval_chart, line_chart
from results.page.data_tables import Cell, Head, Table, TableRow, number_cell, without_empty_columns
from results.page.environment import macro
from results.page.marks import Marks

SUMMARY, PROFILE = "across", "profile"
THRESHOLD = "profile_"
"""Columns of the table of methods that hold its profile begin with this."""

NUMBERS = (
    ("mean_rank", "mean rank", "{:.2f}"),
    ("mean_rank_low", "95 % CI from", "{:.2f}"),
    ("mean_rank_high", "to", "{:.2f}"),
    ("iqm", "interquartile mean", "{:.3f}"),
    ("iqm_low", "95 % CI from", "{:.3f}"),
    ("iqm_high", "to", "{:.3f}"),
    ("n_min", "fewest pretrainings", "{:.0f}"),
)


def across_table(methods: pd.DataFrame, marks: Marks) -> Table:
    heads = [Head("method", "method"), *(Head(key, title, numeric=True) for key, title, _ in NUMBERS)]
    rows = [
        TableRow(
            f"{row['method']} {row['recipe']}",
            [_name_cell(row, marks), *(number_cell(row[key], form) for key, _, form in NUMBERS)],
        )
        for row in methods.to_dict("records")
    ]
    return without_empty_columns(Table("across-table", heads, rows))


def _name_cell(row: dict[Any, Any], marks: Marks) -> Cell:
    name = method_name(row)
    return Cell(macro("cells.html", "method")(name, marks[str(row["method"])]), csv=name)


def method_name(row: dict[Any, Any]) -> str:
    """The recipe's name, with the method's where that says more."""
    method, recipe = str(row["method"]), str(row["recipe"])
    return method if recipe.replace("-", "_") == method else f"{method} ({recipe})"


def across_frames(methods: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A row per method with its means and intervals, and a row per method and threshold of the profile."""
    thresholds = [name for name in methods.columns if name.startswith(THRESHOLD)]
    names = [method_name(row) for row in methods.to_dict("records")]
    base = methods.assign(name=names, words=methods.method + " " + methods.recipe)
    profile = base.melt(["name", "method", "words"], thresholds, var_name="threshold", value_name="share")
    at = profile.threshold.str.removeprefix(THRESHOLD).astype(float)
    profile = profile.assign(threshold=at)
    profile[LAST], profile[HOVER] = at == at.max(), True
    means = ["mean_rank", "mean_rank_low", "mean_rank_high", "iqm", "iqm_low", "iqm_high"]
    return {SUMMARY: base[["name", "method", "words", *means]], PROFILE: profile}


def across_charts(methods: pd.DataFrame) -> list[Chart]:
    score = str(methods.score.iloc[0])
    profile = line_chart(Axis("threshold", f"score ({score})"), Axis("share", "share of scores at or above"), "name")
    charts = [Chart("Performance profile", PROFILE, profile)]
    for key, title in (("mean_rank", "mean rank (1 is best)"), ("iqm", f"interquartile mean ({score})")):
        spec = interval_chart(Axis(key, title), f"{key}_low", f"{key}_high", "name")
        charts.append(Chart(title.partition(" (")[0].capitalize(), SUMMARY, spec))
    return charts
