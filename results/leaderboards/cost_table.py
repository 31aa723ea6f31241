"""The table of costs: what a result took, pretraining, evaluations and failed runs."""

from collections.abc import Sequence

import pandas as pd

from results.leaderboards.experiments import EVAL_COST, FAILED_COST, GROUP, Row
from results.leaderboards.leaderboard import Tables
from results.leaderboards.table_cells import Cell, Column, Grid, value_cell


def cost_table(tables: Tables) -> Grid:
    """What a result costs, pretraining and its evaluations; an experiment a row, the cheapest first."""
    experiments: dict[tuple[str, ...], list[tuple[str, Row]]] = {}
    for board in tables.leaderboards:
        for row in board.rows:
            experiments.setdefault(tuple(row[name] for name in GROUP[:3]), []).append((board.stage, row))
    names = ("wall h", "GPU h", "CPU h", "energy kWh")
    columns = [Column("method", numeric=False), Column("epochs"), *(Column(name, "pretraining") for name in names)]
    columns += [Column(f"{name} h", "evaluations") for name in ("wall", "GPU", "CPU")]
    columns += [Column(f"{name} h", "failed runs") for name in ("GPU", "CPU")]
    columns += [Column("top-1 linear"), Column("box AP")]
    rows = sorted(
        (_cost_row(entries) for entries in experiments.values()), key=lambda row: (float(row[2].text or 0), row[0].text)
    )
    notes = [
        "Means of one pretraining and of one of each of its evaluations, and sums over the failed runs of both.",
        "CPU time as the operating system counts it, loader workers included; energy is empty where no meter was read.",
    ]
    return Grid("cost", "Cost to reach a result", columns, rows, notes)


def _cost_row(rows: list[tuple[str, Row]]) -> list[Cell]:
    """Of one experiment, by its rows (stage, row) on all leaderboards."""
    row = rows[0][1]
    hours = _number(row["pretrain_wall_s"], 3600), _number(row["pretrain_gpu_h"]), _number(row["pretrain_cpu_h"])
    failed = zip(FAILED_COST[:2], FAILED_COST[2:], strict=True)
    evaluations = [(name, 3600 if name == "eval_wall_s" else 1) for name in EVAL_COST[:3]]
    return [
        Cell(" ".join(filter(None, (row["method"], f"({row['recipe']})", row["variant"])))),
        Cell("" if pd.isna(row["epochs"]) else str(row["epochs"])),
        *map(Cell, hours),
        Cell(_number(row["pretrain_energy_kwh"])),
        *(Cell(_sum([other[name] for _, other in rows], divisor)) for name, divisor in evaluations),
        *(Cell(_sum([row[pretrain], *(other[eval_] for _, other in rows)])) for pretrain, eval_ in failed),
        *(_first(rows, stage, metric) for stage, metric in (("linear", "top1"), ("detect", "box_AP"))),
    ]


def _sum(values: Sequence[float], divisor: float = 1.0) -> str:
    """Of those that are known; empty where none is."""
    numbers = [value for value in values if not pd.isna(value)]
    return _number(sum(numbers), divisor) if numbers else ""


def _first(entries: list[tuple[str, Row]], stage: str, metric: str) -> Cell:
    rows = (row for kind, row in entries if kind == stage and not pd.isna(row[f"{metric}_mean"]))
    return next((value_cell(row, metric) for row in rows), Cell())


def _number(value: float, divisor: float = 1.0) -> str:
    return "" if pd.isna(value) else f"{value / divisor:.3f}"
