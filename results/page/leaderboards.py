"""The report's leaderboards, each with its pretrainings as dots, and its comparisons."""

import math
from html import escape

import pandas as pd

from results.leaderboards.comparisons import BEST, label
from results.leaderboards.console import TITLES, rank
from results.leaderboards.experiments import GROUP, Row, rows_of
from results.leaderboards.leaderboard import Leaderboard, Tables
from results.leaderboards.published import REPRODUCED
from results.leaderboards.run_table import HEADLINES
from results.leaderboards.significance import FINE_TUNING
from results.leaderboards.stale import changed_since
from results.page.charts import DotRow, dots
from results.page.parts import Palette, card, cell, chips, table

COMPARABLE = {"no": "not comparable", "undecided": "not all stated"}
DOTS = 25
"""Rows of a leaderboard that are drawn; the table has all."""


def boards(tables: Tables, palette: Palette) -> str:
    ordered = sorted(tables.leaderboards, key=lambda board: (list(HEADLINES).index(board.stage), board.name))
    hint = (
        '<p class="hint">Click a heading to sort; the filter above narrows all tables. A dot is a pretraining, a bar '
        "the 95 % interval of the mean, cut at the edge of the chart. Ranks are those that significant differences "
        "leave open. † is a spread of fine-tuning seeds only."
        ' <span data-count="#leaderboards tr[data-f]"></span></p>'
    )
    return hint + "".join(_board(board, tables, palette) for board in ordered)


def _board(board: Leaderboard, tables: Tables, palette: Palette) -> str:
    charts = "".join(_dots(board, metric, tables, palette) for metric in board.headlines)
    title = f"{board.dataset}: {board.stage}, protocol {board.protocol}"
    return card(title, f'<div class="board"><div>{charts}</div>{_table(board, palette)}</div>')


def _dots(board: Leaderboard, metric: str, tables: Tables, palette: Palette) -> str:
    runs = tables.runs[tables.runs.status == "done"]
    for key in ("dataset", "stage", "protocol"):
        runs = runs[runs[key] == getattr(board, key)]
    means = runs.groupby([*GROUP, "parent"])[metric].mean()
    rows = []
    for row in rows_of(board.table.head(DOTS)):
        values = means.get(tuple(row[name] for name in GROUP))
        several = row["n_pretrain"] > 1
        width = row[f"{metric}_ci95"] if several else math.nan
        note = f"n = {row['n_pretrain']}" if several else "n = 1: no interval"
        dotted = [] if values is None else [float(value) for value in values]
        rows.append(DotRow(label(row), palette[row["method"]], dotted, row[f"{metric}_mean"], width, note))
    return dots(rows, f"{TITLES[metric]}, %")


def _table(board: Leaderboard, palette: Palette) -> str:
    known = any(board.table[f"{metric}_published"].notna().any() for metric in board.headlines)
    heads = [("experiment", False), *((f"{TITLES[metric]} %", True) for metric in board.headlines), ("n", True)]
    heads += [("rank", True), ("to the best", True), *([("published", False)] if known else []), ("cost", True)]
    rows = [(_words(row, board), _cells(row, board, palette, known)) for row in board.rows]
    return table([*heads, ("doubts", False)], rows)


def _words(row: Row, board: Leaderboard) -> str:
    """By what a row can be found."""
    return " ".join([label(row), row["method"], board.dataset, board.stage, board.protocol, row["flags"], row["stale"]])


def _cells(row: Row, board: Leaderboard, palette: Palette, known: bool) -> list[str]:
    epochs: str = "" if pd.isna(row["epochs"]) else f"<br><small>{row['epochs']} epochs, batch {row['batch']}</small>"
    key = f'<i class="key k{palette[row["method"]]}"></i>{escape(label(row))}{epochs}'
    stale = changed_since(row["stale"]) if row["stale"] else ""
    return [
        cell(key, raw=True),
        *(cell(_value(row, metric), row[f"{metric}_mean"], numeric=True, raw=True) for metric in board.headlines),
        cell(str(row["n_pretrain"]), row["n_pretrain"], numeric=True),
        cell(rank(row).replace("-", "–"), row["rank_low"], numeric=True),
        cell(_to_best(row), row["behind_best"], numeric=True, raw=True),
        *([cell("".join(_published(row, metric) for metric in board.headlines), raw=True)] if known else []),
        cell(*_cost(row), numeric=True),
        cell(chips("; ".join(filter(None, (row["flags"], stale)))), raw=True),
    ]


def _value(row: Row, metric: str) -> str:
    """Mean ± sd, and below it the interval."""
    mean, sd, width = (row[f"{metric}_{what}"] for what in ("mean", "sd", "ci95"))
    if pd.isna(mean):
        return "-"
    spread = "" if pd.isna(sd) else f" <small>± {sd:.2f}{' †' if row['spread_of'] == FINE_TUNING else ''}</small>"
    interval = "no spread: one run" if pd.isna(width) else f"95 % CI ± {width:.2f}"
    return f"<b>{mean:.2f}</b>{spread}<br><small>{interval}</small>"


def _to_best(row: Row) -> str:
    """The distance to the best mean, whether it is real, and what would decide it."""
    verdict, behind = str(row["versus_best"]), row["behind_best"]
    if verdict in ("", BEST):
        return '<span class="chip good">best mean</span>' if verdict else ""
    distance: str = "" if pd.isna(behind) else f"−{behind:.2f} "
    more: str = "" if pd.isna(row["more_seeds"]) else f"<br><small>{row['more_seeds']} more seeds may decide</small>"
    return f'{distance}<span class="chip">{escape(verdict)}</span>{more}'


def _published(row: Row, metric: str) -> str:
    value = row[f"{metric}_published"]
    if pd.isna(value):
        return ""
    verdict = row[f"{metric}_verdict"] or {"no": "not comparable", "undecided": "not all stated"}.get(
        row["comparable"], ""
    )
    kind = "good" if verdict == REPRODUCED else ""
    source = f"{row['published_method']}; {row['published_fields']}; {row['published_source']}"
    return f'<span title="{escape(source)}">{value:g} <span class="chip {kind}">{escape(verdict)}</span></span> '


def _cost(row: Row) -> tuple[str, float | None]:
    hours, cpu = row["pretrain_gpu_h"], row["pretrain_cpu_h"]
    if not pd.isna(hours) and hours > 0:
        return f"{hours:.2f} GPU h", hours
    return ("", None) if pd.isna(cpu) else (f"{cpu:.3f} CPU h", cpu)


def comparisons(tables: Tables) -> str:
    """Every pair of the leaderboards' best, with the test behind the verdict."""
    pairs = rows_of(tables.comparisons)
    if not pairs:
        return ""
    heads = [("evaluation", False), ("a", False), ("b", False), ("a − b", True), ("± 95 % CI", True), ("n", True)]
    heads += [("p", True), ("p corrected", True), ("better", False), ("more seeds", True)]
    rows = [(" ".join(map(str, row.values())), _pair(row)) for row in pairs]
    decided = sum(row["verdict"] in ("a", "b") for row in pairs)
    said = (
        "Paired t tests on shared seeds (Welch's where there are none); p corrected by Holm over all pairs of a "
        "leaderboard; the more seeds would find a difference of the size seen with a probability of 80 %."
    )
    return (
        f'<p>Of {len(pairs)} pairs, {decided} differ significantly.</p><p class="hint">{said}</p>'
        f"<details><summary>All pairs</summary><div class=inner>{table(heads, rows)}</div></details>"
    )


def _pair(row: Row) -> list[str]:
    names = {"a": str(row["a"]), "b": str(row["b"])}
    numbers = [("difference", "{:+.2f}"), ("ci95", "{:.2f}"), ("n", "{}"), ("p", "{:.3g}"), ("p_adjusted", "{:.3g}")]
    shown = [cell("" if pd.isna(row[key]) else form.format(row[key]), row[key], numeric=True) for key, form in numbers]
    verdict = names.get(row["verdict"], str(row["verdict"]))
    more = row["more_seeds"]
    return [
        cell(f"{row['dataset']}: {row['stage']} {row['protocol']}, {TITLES[row['metric']]}"),
        cell(row["a"]),
        cell(row["b"]),
        *shown,
        cell(f'<span class="chip {"good" if row["verdict"] in names else ""}">{escape(verdict)}</span>', raw=True),
        cell("" if pd.isna(more) else str(more), more, numeric=True),
    ]
