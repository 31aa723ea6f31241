"""Charts over experiments: classification against detection, result against cost, each with its statistics."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from results.leaderboards.console import TITLES
from results.leaderboards.leaderboard import Leaderboard, Tables
from results.leaderboards.rank_correlation import rank_correlation
from results.leaderboards.warnings import BOUNDS
from results.page.charts import FRONT, Axis, Chart, scatter_chart

TRANSFER, COST = "transfer", "cost"
FEWEST = 4
"""Experiments of a correlation, at least."""


def transfer(tables: Tables) -> tuple[pd.DataFrame, list[Chart]]:
    """Each pretraining by its accuracy and its AP; the correlation is over experiments, bounds left out."""
    frames, charts = [], []
    for up in (board for board in tables.leaderboards if board.stage == "detect"):
        for across in (board for board in tables.leaderboards if board.headlines == ("top1",)):
            for metric in up.headlines:
                x, y = per_pretraining(tables, across, "top1"), per_pretraining(tables, up, metric)
                frame = paired(tables, x, y)
                if len(frame) > 1:
                    title = f"{up.dataset} {TITLES[metric]} against {across.dataset} {across.stage}"
                    frames.append(frame.assign(chart=title))
                    axes = Axis("x", f"{across.stage} {across.protocol}, top-1 %"), Axis("y", f"{TITLES[metric]}, %")
                    charts.append(
                        Chart(title, TRANSFER, scatter_chart(*axes, "name"), {"chart": title}, statistics(frame))
                    )
    return joined(frames), charts


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    columns = ["name", "method", "experiment", "words", "x", "y", "chart"]
    return pd.concat(frames) if frames else pd.DataFrame(columns=columns)


def paired(tables: Tables, x: pd.Series, y: pd.Series) -> pd.DataFrame:
    """A row per pretraining (the index of both) that has both values, with what a chart says of it."""
    pairs = pd.DataFrame({"x": x, "y": y}).dropna()
    facts = tables.runs.drop_duplicates("parent").set_index("parent").reindex(pairs.index)
    words = facts.recipe + " " + facts.method + " config:" + facts.config + " " + pairs.index.astype("string")
    return pairs.assign(name=pairs.index, method=facts.method, experiment=facts.config, words=words)


def per_pretraining(tables: Tables, board: Leaderboard, metric: str) -> pd.Series:
    """The mean of each pretraining's evaluations on a leaderboard, by its id."""
    runs = tables.runs[tables.runs.status == "done"]
    for key in ("dataset", "stage", "protocol"):
        runs = runs[runs[key] == getattr(board, key)]
    return runs.groupby("parent")[metric].mean().dropna()


def statistics(frame: pd.DataFrame) -> str:
    rivals = frame[~frame.method.isin(BOUNDS)]
    groups = [list(zip(group.x, group.y, strict=True)) for _, group in rivals.groupby("experiment")]
    return f"{correlation(groups)}. A mark is a pretraining."


def correlation(experiments: Sequence[Sequence[tuple[float, float]]]) -> str:
    """Pearson's r and Spearman's rho with 95 % intervals, or why there are none.

    Of the (x, y) of each experiment's pretrainings only the mean counts, so that n is the number of experiments.
    """
    from scipy import stats

    over = f"{len(experiments)} experiments without the bounds ({sum(map(len, experiments))} pretrainings)"
    ranks = rank_correlation(experiments)
    if len(experiments) < FEWEST or ranks is None:
        return f"{over}: too few for a correlation"
    means = np.array([np.mean(group, axis=0) for group in experiments])
    pearson = stats.pearsonr(means[:, 0], means[:, 1])
    texts = [
        f"{name} = {value:.2f} [{low:.2f}, {high:.2f}]"
        for name, value, (low, high) in (
            ("Pearson r", pearson.statistic, pearson.confidence_interval(0.95)),
            ("Spearman ρ", ranks.rho, ranks.interval),
        )
    ]
    return f"{', '.join(texts)}, over {over}"


def cost(tables: Tables) -> tuple[pd.DataFrame, list[Chart]]:
    """Result against cost of each experiment, with the front of those that no other beats in both."""
    frames, charts = [], []
    for board in tables.leaderboards:
        for metric in board.headlines:
            for unit, hours in (("GPU hours", _gpu), ("CPU core hours", _cpu)):
                frame = _costs(board, metric, hours)
                if len(frame):
                    title = f"{board.dataset}: {board.stage} {board.protocol}, {TITLES[metric]}"
                    frames.append(frame.assign(chart=f"{title}, {unit}"))
                    spec = scatter_chart(Axis("x", unit), Axis("y", f"{TITLES[metric]}, %"), "name", front=True)
                    charts.append(Chart(title, COST, spec, {"chart": f"{title}, {unit}"}))
    columns = ["name", "method", "words", "x", "y", FRONT, "chart"]
    return pd.concat(frames) if frames else pd.DataFrame(columns=columns), charts


def _costs(board: Leaderboard, metric: str, hours: Callable[[Any], float]) -> pd.DataFrame:
    rows = [
        {
            "name": f"{row['recipe']} {row['variant']}".strip(),
            "method": row["method"],
            "words": f"{row['recipe']} {row['method']} {board.dataset} {board.stage} config:{row['config']}",
            "x": hours(row),
            "y": row[f"{metric}_mean"],
        }
        for row in board.rows
    ]
    frame = pd.DataFrame(rows, columns=["name", "method", "words", "x", "y"]).replace([np.inf, -np.inf], np.nan)
    frame = frame.dropna(subset=["x", "y"])
    rivals = frame[~frame.method.isin(BOUNDS)]
    return frame.assign(**{FRONT: pareto_front(rivals.x, rivals.y).reindex(frame.index, fill_value=False)})


def pareto_front(x: pd.Series, y: pd.Series) -> pd.Series:
    """Which points no other beats in both: less x and more y."""
    order = pd.DataFrame({"x": x, "y": y}, dtype=float).sort_values(["x", "y"], ascending=[True, False])
    before = order.y.cummax().shift(fill_value=-np.inf)
    return (order.y > before).reindex(x.index)


def _gpu(row: Any) -> float:
    """NaN where no GPU was used."""
    total = row["pretrain_gpu_h"] + (0 if pd.isna(row["eval_gpu_h"]) else row["eval_gpu_h"])
    return float(total) if total > 0 else np.nan


def _cpu(row: Any) -> float:
    return float(row["pretrain_cpu_h"] + (0 if pd.isna(row["eval_cpu_h"]) else row["eval_cpu_h"]))
