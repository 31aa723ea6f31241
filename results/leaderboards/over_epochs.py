"""Accuracy over the epochs of pretrainings: evaluations of the backbones that were kept, and of the last ones.

No epoch is chosen by its result: leaderboards hold the last backbones alone.
"""

import pandas as pd

from results.leaderboards.intervals import summarise
from results.leaderboards.run_table import AVERAGED, HEADLINES

BY = ["dataset", "stage", "protocol", "method", "recipe", "config", "epoch"]
COLUMNS = (*BY, "metric", "n_pretrain", "n_eval", "mean", "sd", "ci95", "low", "high")


def over_epochs(kept: pd.DataFrame, last: pd.DataFrame) -> pd.DataFrame:
    """One row per experiment, evaluation and epoch; empty where no backbone was kept.

    Args:
        kept: done evaluations of kept backbones, with a column `kept_epoch`.
        last: done evaluations of the last backbones of all pretrainings.
    """
    if kept.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    identity = [name for name in BY if name != "epoch"]
    experiments = set(kept[identity].itertuples(index=False, name=None))
    belongs = [row in experiments for row in last[identity].itertuples(index=False, name=None)]
    runs = pd.concat([kept.assign(epoch=kept.kept_epoch), last[belongs].assign(epoch=last[belongs].epochs)])
    parts = []
    for stage, part in runs.groupby("stage"):
        metric = HEADLINES[str(stage)][0]
        images = None if stage in AVERAGED else part.test_images.dropna().min()
        summary = summarise(part, BY, "parent", [metric], None if pd.isna(images) else int(images)).reset_index()
        names = {f"{metric}_{name}": name for name in ("mean", "sd", "ci95", "low", "high")}
        parts.append(summary.rename(columns=names).assign(metric=metric))
    table = pd.concat(parts, ignore_index=True).sort_values(BY, kind="stable", ignore_index=True)
    return table[list(COLUMNS)]
