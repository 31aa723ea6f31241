"""The page's leaderboards: tables whose rows have their pretrainings as dots and link to their runs."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from results.leaderboards.comparisons import BEST, label
from results.leaderboards.console import TITLES, rank
from results.leaderboards.experiments import GROUP, Row
from results.leaderboards.intervals import FINE_TUNING
from results.leaderboards.leaderboard import Leaderboard, Tables
from results.leaderboards.published import REPRODUCED
from results.leaderboards.run_table import HEADLINES
from results.leaderboards.stale import changed_since
from results.page.data_tables import Cell, Head, Table, TableRow, chips, without_empty_columns
from results.page.dot_plots import Dots, Scale, dots, value_range
from results.page.environment import macro
from results.page.marks import Marks

COMPARABLE = {"no": "not comparable", "undecided": "not all stated"}


@dataclass(frozen=True)
class Board:
    title: str
    table: Table


def boards(tables: Tables, marks: Marks) -> list[Board]:
    ordered = sorted(tables.leaderboards, key=lambda board: (list(HEADLINES).index(board.stage), board.name))
    return [
        Board(f"{board.dataset}: {board.stage}, protocol {board.protocol}", _table(board, tables, marks))
        for board in ordered
    ]


def _table(board: Leaderboard, tables: Tables, marks: Marks) -> Table:
    values = {metric: _values(board, metric, tables) for metric in board.headlines}
    scales = {metric: value_range(values[metric], board.table[f"{metric}_mean"]) for metric in board.headlines}
    published = any(board.table[f"{metric}_published"].notna().any() for metric in board.headlines)
    heads = [Head("experiment", "experiment")]
    for metric in board.headlines:
        axis = macro("cells.html", "axis")(scales[metric], TITLES[metric])
        heads += [Head(f"{metric}-dots", axis, plot=True), Head(metric, f"{TITLES[metric]}, %", numeric=True)]
    heads += [
        Head("n", "n", numeric=True),
        Head("rank", "rank", numeric=True),
        Head("best", "to the best", numeric=True),
    ]
    heads += [Head("published", "published")] if published else []
    heads += [Head("cost", "cost", numeric=True), Head("doubts", "doubts")]
    rows = [
        TableRow(_words(row, board), _cells(row, board, values, scales, marks, published), _row_name(row, board))
        for row in map(plain, board.rows)
    ]
    return without_empty_columns(Table(f"board-{board.name}", heads, rows))


def plain(row: Row) -> dict[str, Any]:
    """None for every missing value, so that templates can test for it."""
    return {key: None if not isinstance(value, list) and pd.isna(value) else value for key, value in row.items()}


def _values(board: Leaderboard, metric: str, tables: Tables) -> pd.Series:
    """The mean of each pretraining's evaluations, by experiment and pretraining."""
    runs = tables.runs[tables.runs.status == "done"]
    for key in ("dataset", "stage", "protocol"):
        runs = runs[runs[key] == getattr(board, key)]
    return runs.groupby([*GROUP, "parent"])[metric].mean()


def _words(row: Row, board: Leaderboard) -> str:
    settings = (label(row), row["method"], board.dataset, board.stage, board.protocol, row["flags"], row["stale"])
    return " ".join([*(str(value or "") for value in settings), f"config:{row['config']}"])


def _row_name(row: Row, board: Leaderboard) -> str:
    return f"row-{board.name}-{row['config']}-{row['eval_config']}"


def _cells(
    row: Row,
    board: Leaderboard,
    values: dict[str, pd.Series],
    scales: dict[str, Scale | None],
    marks: Marks,
    published: bool,
) -> list[Cell]:
    mark = marks[row["method"]]
    name = label(row)
    link = macro("cells.html", "experiment")(row, name, mark, _row_name(row, board))
    cells = [Cell(link, csv=name)]
    for metric in board.headlines:
        plot = macro("cells.html", "dot_plot")(_dots(row, metric, values[metric], scales[metric]), mark)
        cells += [Cell(plot), _value(row, metric)]
    stale = changed_since(row["stale"]) if row["stale"] else ""
    doubts = [*row["flags"].split("; "), stale]
    low = row["rank_low"]
    return [
        *cells,
        Cell(str(row["n_pretrain"]), row["n_pretrain"]),
        Cell("" if low is None else rank(row).replace("-", "–"), low),
        _to_best(row),
        *([_published(row, board)] if published else []),
        _cost(row),
        Cell(chips(doubts, "warn"), csv="; ".join(filter(None, doubts))),
    ]


def _dots(row: Row, metric: str, values: pd.Series, scale: Scale | None) -> Dots | None:
    if scale is None:
        return None
    key = tuple(row[name] for name in GROUP)
    single = [float(value) for value in values.get(key, [])]
    mean, low, high = (row[f"{metric}_{what}"] for what in ("mean", "low", "high"))
    if low is None:
        low, high = float("nan"), float("nan")
    return dots(single, mean, low, high, scale)


def _value(row: Row, metric: str) -> Cell:
    """Mean ± sd, and below it the interval."""
    mean, sd, low, high = (row[f"{metric}_{what}"] for what in ("mean", "sd", "low", "high"))
    if mean is None:
        return Cell("–")
    return Cell(macro("cells.html", "value")(mean, sd, low, high, row["spread_of"] == FINE_TUNING), mean)


def _to_best(row: Row) -> Cell:
    """The distance to the best mean, whether it is significant, and what would decide it."""
    verdict, behind = str(row["versus_best"] or ""), row["behind_best"]
    if verdict in ("", BEST):
        return Cell(chips(["best mean"], "good") if verdict else "", 0.0 if verdict else None)
    return Cell(macro("cells.html", "to_best")(verdict, behind, row.get("fresh_seeds")), behind)


def _published(row: Row, board: Leaderboard) -> Cell:
    parts = [_published_value(row, metric) for metric in board.headlines if row[f"{metric}_published"] is not None]
    text = "; ".join(
        str(row[f"{metric}_published"]) for metric in board.headlines if row[f"{metric}_published"] is not None
    )
    return Cell(Markup(" ").join(parts), csv=text)


def _published_value(row: Row, metric: str) -> Markup:
    verdict = row[f"{metric}_verdict"] or COMPARABLE.get(row["comparable"] or "", "")
    source = "; ".join(str(row[key] or "") for key in ("published_method", "published_fields", "published_source"))
    kind = "good" if verdict == REPRODUCED else ""
    return macro("cells.html", "published")(row[f"{metric}_published"], verdict, kind, source)


def _cost(row: Row) -> Cell:
    """Of one pretraining."""
    hours, cpu = row["pretrain_gpu_h"], row["pretrain_cpu_h"]
    if hours:
        return Cell(f"{hours:.2f} GPU h", hours)
    return Cell("") if cpu is None else Cell(f"{cpu:.3f} CPU h", cpu)
