"""Accuracy over the epochs of pretrainings that kept backbones: a chart per dataset and protocol."""

import pandas as pd

from results.leaderboards.console import TITLES
from results.page.charts import Axis, Chart, band_chart

FRAME = "epochs"
NUMBERS = ("epoch", "mean", "low", "high")


def epoch_frame(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `over_epochs.csv` as a chart reads them."""
    titles = [f"{row.dataset} {row.stage} {row.protocol}" for row in table.itertuples()]
    names = [f"{row.recipe} ({row.config}), n = {row.n_pretrain}" for row in table.itertuples()]
    words = table.method + " " + table.recipe + " config:" + table.config
    frame = table.assign(chart=titles, name=names, words=words)
    frame = frame.astype(dict.fromkeys(NUMBERS, float))
    alone = frame.n_pretrain < 2  # the interval of the test set alone would pass for one over pretrainings
    frame.loc[alone, ["low", "high"]] = frame.loc[alone, ["mean", "mean"]].to_numpy()
    return frame[["chart", "name", "method", "words", *NUMBERS, "metric"]]


def epoch_charts(frame: pd.DataFrame) -> list[Chart]:
    """One chart for each dataset and protocol, with all experiments in it."""
    charts = []
    for title, part in frame.groupby("chart", sort=True):
        metric = str(part.metric.iloc[0])
        spec = band_chart(Axis("epoch", "epoch"), Axis("mean", f"{TITLES[metric]}, %"), "low", "high", "name")
        charts.append(Chart(str(title), FRAME, spec, {"chart": str(title)}))
    return charts
