"""Measures that need no labels against accuracy: RankMe, LiDAR, alpha-ReQ and effective rank of each pretraining."""

from collections.abc import Sequence

import pandas as pd

from results.leaderboards.console import TITLES
from results.leaderboards.leaderboard import Tables
from results.page.charts import Axis, Chart, scatter_chart
from results.page.run_details import Detail
from results.page.run_files import number
from results.page.scatter import joined, paired, per_pretraining, statistics

QUALITY = "quality"
MEASURES = {
    "backbone_rankme": "RankMe of the backbone",
    "backbone_alpha_req": "alpha-ReQ of the backbone",
    "backbone_effective_rank": "effective rank of the backbone",
    "rankme": "RankMe of the embedding",
    "lidar": "LiDAR of the embedding",
}
"""Keys of a pretraining's metrics."""


def quality(tables: Tables, pretrainings: Sequence[Detail]) -> tuple[pd.DataFrame, list[Chart]]:
    """Each measure against the accuracy of each linear probe; the correlation is over experiments, bounds left out."""
    frames, charts = [], []
    for board in (board for board in tables.leaderboards if board.stage == "linear"):
        for metric in board.headlines:
            accuracy = per_pretraining(tables, board, metric)
            for key, title in MEASURES.items():
                frame = paired(tables, _measured(pretrainings, key), accuracy)
                if len(frame) > 1:
                    name = f"{board.dataset} {board.protocol}: {title}"
                    frames.append(frame.assign(chart=name))
                    axes = Axis("x", title), Axis("y", f"{TITLES[metric]}, %")
                    spec = scatter_chart(*axes, "name")
                    charts.append(Chart(name, QUALITY, spec, {"chart": name}, statistics(frame)))
    return joined(frames), charts


def _measured(pretrainings: Sequence[Detail], key: str) -> pd.Series:
    values = {detail.record.id: number(detail.record.metrics.get(key)) for detail in pretrainings}
    return pd.Series(values, dtype=float)
