"""Tables for people: one of all evaluations side by side, then each leaderboard, then what was left out."""

import io
from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from results.leaderboards.experiments import GROUP, Row, rows_of
from results.leaderboards.intervals import FINE_TUNING
from results.leaderboards.leaderboard import Leaderboard, Tables
from results.leaderboards.run_table import HEADLINES
from results.leaderboards.stale import changed_since

TITLES = {"top1": "top-1", "box_AP": "box AP", "mask_AP": "mask AP", "mAP": "mAP"}
MARK = "†"
"""Of a spread that is of fine-tuning seeds only."""

ROWS_SHOWN, FAULTS_SHOWN, CONFLICTS_SHOWN = 50, 20, 3


def render(tables: Tables, colour: bool = False, width: int = 200) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=colour, no_color=not colour, width=width, highlight=False)
    boards = sorted(tables.leaderboards, key=lambda board: (list(HEADLINES).index(board.stage), board.name))
    if len(boards) > 1:
        console.print(_overview(boards))
    for board in boards:
        console.print(_leaderboard(board))
        if len(board.table) > ROWS_SHOWN:
            console.print(f"and {len(board.table) - ROWS_SHOWN} more in leaderboard_{board.name}.csv", markup=False)
    for name, table in tables.transfer.items():
        console.print(_transfer(name, table))
    if any((board.table.spread_of == FINE_TUNING).any() for board in boards):
        console.print(f"{MARK} one pretraining: the spread is that of its evaluations only")
    for line in _footer(tables):
        console.print(escape(line), soft_wrap=True)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _overview(boards: list[Leaderboard]) -> Table:
    """One row an experiment, one column a headline metric; the experiments in the order of the first leaderboard."""
    table = _table("all evaluations: mean ± sd (n pretrainings)", ["method", "recipe", "epochs"])
    columns = [(board, metric) for board in boards for metric in board.headlines]
    for board, metric in columns:
        table.add_column(
            escape(f"{board.stage} {board.protocol}\n{board.dataset}: {TITLES[metric]} %"), justify="right"
        )
    table.add_column("pretraining\ncost", justify="right")
    key = GROUP[:3]
    cells: dict[tuple[str, ...], dict[int, str]] = {}
    first: dict[tuple[str, ...], Row] = {}
    for i, (board, metric) in enumerate(columns):
        for row in board.rows:
            experiment = tuple(row[name] for name in key)
            first.setdefault(experiment, row)
            before = cells.setdefault(experiment, {}).get(i)
            cells[experiment][i] = _value(row, metric) if before is None else f"{before}\n{_value(row, metric)}"
    for experiment, row in list(first.items())[:ROWS_SHOWN]:
        values = [cells[experiment].get(i, "") for i in range(len(columns))]
        table.add_row(*_named(row), _count(row["epochs"]), *values, _cost(row))
    return table


def _leaderboard(board: Leaderboard) -> Table:
    table = _table(f"{board.dataset}: {board.stage}, {board.protocol}", ["method", "recipe", "epochs"])
    for metric in board.headlines:
        for title in (f"{TITLES[metric]} % ± sd (n)", "95 % CI", "published"):
            table.add_column(title, justify="right")
        if metric == board.headlines[0]:
            table.add_column("rank", justify="right")
    table.add_column("cost", justify="right")
    table.add_column("notes")
    for row in rows_of(board.table.head(ROWS_SHOWN)):
        values = [
            cell for metric in board.headlines for cell in _cells(row, metric, with_rank=metric == board.headlines[0])
        ]
        table.add_row(*_named(row), _count(row["epochs"]), *values, _cost(row), _setting(row))
    return table


def _transfer(name: str, table: pd.DataFrame) -> Table:
    """Encoders over several datasets, the best mean rank first."""
    names = [str(column) for column in table if column != "mean_rank"]
    sets = [column.removesuffix("_rank") for column in names if column.endswith("_rank")]
    board = _table(f"{name}: {len(sets)} datasets", ["method", "recipe"])
    for title in ("mean rank", "mean %", *(f"{one} %" for one in sets)):
        board.add_column(escape(title), justify="right")
    for row in rows_of(table.head(ROWS_SHOWN)):
        numbers = [row[key] for key in ("mean_rank", "mean", *(f"{one}_mean" for one in sets))]
        values = ["-" if pd.isna(number) else f"{number:.2f}" for number in numbers]
        board.add_row(escape(row["method"]), escape(row["recipe"]), *values)
    return board


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column == "epochs" else "left")
    return table


def _named(row: Row) -> tuple[str, str]:
    return escape(row["method"]), escape(f"{row['recipe']} {row['variant']}".strip())


def _setting(row: Row) -> str:
    """How it was evaluated, where others were in another way, and what is doubtful about it."""
    stale = changed_since(row["stale"]) if row["stale"] else ""
    return escape("; ".join(part for part in (row["eval_variant"], row["flags"], stale) if part))


def _value(row: Row, metric: str) -> str:
    mean, sd = row[f"{metric}_mean"], row[f"{metric}_sd"]
    if pd.isna(mean):
        return "-"
    spread = "" if pd.isna(sd) else f" ± {sd:.2f}{MARK if row['spread_of'] == FINE_TUNING else ''}"
    return f"{mean:.2f}{spread} ({row['n_pretrain']})"


def _cells(row: Row, metric: str, with_rank: bool) -> list[str]:
    return [_value(row, metric), _interval(row, metric), _published(row, metric), *([rank(row)] if with_rank else [])]


def rank(row: Row) -> str:
    """The ranks that an experiment may have: "2", or "1-3" where differences are not significant."""
    low, high = row["rank_low"], row["rank_high"]
    return "" if pd.isna(low) else f"{low}" if low == high else f"{low}-{high}"


def _interval(row: Row, metric: str) -> str:
    """Of seeds and test images together."""
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return "" if pd.isna(low) else f"[{low:.1f}, {high:.1f}]"


def _published(row: Row, metric: str) -> str:
    """The published value where nothing is known to differ, with our distance to it where all is known to agree."""
    value, delta = row[f"{metric}_published"], row[f"{metric}_delta"]
    if pd.isna(value) or row["comparable"] == "no":
        return ""
    verdict = f", {row[f'{metric}_verdict']}" if row[f"{metric}_verdict"] else ""
    return f"{value:.2f} (undecided)" if pd.isna(delta) else f"{value:.2f} ({delta:+.2f}{verdict})"


def _cost(row: Row) -> str:
    """Of one pretraining."""
    hours, cpu = row["pretrain_gpu_h"], row["pretrain_cpu_h"]
    if not pd.isna(hours) and hours > 0:
        return f"{hours:.2f} GPU h"
    return "" if pd.isna(cpu) else f"{cpu:.3f} CPU h"


def _count(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _footer(tables: Tables) -> Iterable[str]:
    ended = sum(n for (stage, status), n in tables.counts.items() if stage in HEADLINES and status == "done")
    yield f"{ended} evaluations of {tables.runs.parent.nunique()} encoders"
    for status in ("running", "interrupted", "failed"):
        parts = [f"{n} {stage}" for (stage, state), n in sorted(tables.counts.items()) if state == status]
        if parts:
            yield f"{status}: {', '.join(parts)}"
    if tables.duplicates:
        yield f"{tables.duplicates} records were found twice and count once"
    if tables.conflicts:
        yield f"{len(tables.conflicts)} records of one run differ from each other"
        yield from (f"  {line}" for line in tables.conflicts[:CONFLICTS_SHOWN])
    if tables.faults:
        yield f"left out: {len(tables.faults)} unusable record{'s' * (len(tables.faults) > 1)}"
        yield from (f"  {line}" for line in tables.faults[:FAULTS_SHOWN])
        if len(tables.faults) > FAULTS_SHOWN:
            yield f"  and {len(tables.faults) - FAULTS_SHOWN} more"
