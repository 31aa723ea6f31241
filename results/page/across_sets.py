"""Encoders over several datasets: for each evaluation protocol a table of ranks and accuracies, and the mean ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from results.page.across import method_name
from results.page.charts import Axis, Chart, interval_chart
from results.page.data_tables import Cell, Head, Table, TableRow, number_cell, without_empty_columns
from results.page.environment import macro
from results.page.marks import Marks

FRAME = "datasets"
RANK = "_rank"
"""End of the columns of a table of encoders that hold the ranks on one dataset; before it stands the dataset."""
MEANS = ("mean_rank", "mean_rank_low", "mean_rank_high")


@dataclass(frozen=True)
class DatasetsBoard:
    title: str
    table: Table
    chart: Chart | None
    """Mean ranks; None where no encoder has all datasets."""


def datasets_boards(tables: Mapping[str, pd.DataFrame], marks: Marks) -> list[DatasetsBoard]:
    """One for each of `Tables.transfer`."""
    return [_board(file, table, marks) for file, table in sorted(tables.items())]


def datasets_frame(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row per table and encoder that has all its datasets, for the charts."""
    parts = [
        table.assign(chart=_title(file), name=_names(table), words=table.method + " " + table.recipe)
        for file, table in sorted(tables.items())
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame = frame[frame.mean_rank.notna()].astype(dict.fromkeys(MEANS, float))
    for end in MEANS[1:]:  # one pretraining has no interval: its bar has no length
        frame[end] = frame[end].fillna(frame.mean_rank)
    return frame[["chart", "name", "method", "words", *MEANS]]


def datasets_of(table: pd.DataFrame) -> list[str]:
    return [name.removesuffix(RANK) for name in table.columns if name.endswith(RANK) and name != "mean_rank"]


def _title(file: str) -> str:
    """`linear: protocol features` of transfer_linear-features."""
    stage, _, protocol = file.removeprefix("transfer_").partition("-")
    return f"{stage}, protocol {protocol}"


def _names(table: pd.DataFrame) -> list[str]:
    """What tells the encoders apart: the configuration, too, where two have one name."""
    names = pd.Series([method_name(row) for row in table.to_dict("records")], index=table.index, dtype=object)
    twice = names.duplicated(keep=False)
    return [f"{name} {config}" if more else name for name, config, more in zip(names, table.config, twice, strict=True)]


def _board(file: str, table: pd.DataFrame, marks: Marks) -> DatasetsBoard:
    datasets = datasets_of(table)
    heads = [Head("encoder", "encoder")]
    heads += [Head(key, title, numeric=True) for key, title in (("n", "n"), ("mean_rank", "mean rank"))]
    heads += [Head("mean", "mean, %", numeric=True)]
    heads += [Head(name, f"{name}, %", numeric=True) for name in datasets]
    heads += [Head("missing", "not evaluated on")]
    rows = [
        TableRow(f"{name} {file} config:{row['config']}", _cells(row, name, datasets, marks))
        for row, name in zip(table.to_dict("records"), _names(table), strict=True)
    ]
    spec = interval_chart(Axis("mean_rank", f"mean rank over {len(datasets)} datasets (1 is best)"), *MEANS[1:], "name")
    title = _title(file)
    chart = Chart("Mean rank", FRAME, spec, {"chart": title}) if table.mean_rank.notna().any() else None
    return DatasetsBoard(title, without_empty_columns(Table(f"datasets-{file}", heads, rows)), chart)


def _cells(row: dict[Any, Any], name: str, datasets: list[str], marks: Marks) -> list[Cell]:
    rank = number_cell(row["mean_rank"])
    if not pd.isna(row["mean_rank_low"]):
        text = f"{row['mean_rank']:.2f} ({row['mean_rank_low']:.2f} to {row['mean_rank_high']:.2f})"
        rank = Cell(text, float(row["mean_rank"]))
    return [
        Cell(macro("cells.html", "method")(name, marks[str(row["method"])]), csv=name),
        number_cell(row["n_pretrain"], "{:.0f}"),
        rank,
        number_cell(row["mean"]),
        *(_accuracy(row, dataset) for dataset in datasets),
        Cell(str(row["missing"])),
    ]


def _accuracy(row: dict[Any, Any], dataset: str) -> Cell:
    """Mean, the interval's half width, and the rank among the encoders that have all datasets."""
    mean, half, rank = (row[f"{dataset}_{what}"] for what in ("mean", "ci95", "rank"))
    if pd.isna(mean):
        return Cell("")
    return Cell(macro("cells.html", "ranked")(mean, None if pd.isna(half) else half, rank), float(mean))
