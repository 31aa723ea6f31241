"""One leaderboard over several datasets: for each protocol, encoders by their mean rank over the sets."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from results.leaderboards.across import mean_ranks_with_intervals
from results.leaderboards.intervals import Floats, summarise
from results.leaderboards.run_table import AVERAGED, HEADLINES

EXPERIMENT = ["method", "recipe", "config"]
HEAD = ("mean_rank", "mean_rank_low", "mean_rank_high", "mean")


def transfer_boards(runs: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """By stage and protocol, a table of each that has done evaluations on at least two datasets.

    A row per experiment, the best mean rank first. Ranks compare the experiments that have all the datasets; of the
    others, `missing` names what they lack. Columns `<dataset>_mean`, `_ci95` and `_rank` follow for each dataset.
    """
    groups = {
        (str(part.stage.iloc[0]), str(part.protocol.iloc[0])): part for _, part in runs.groupby(["stage", "protocol"])
    }
    return {key: _board(part, key[0]) for key, part in groups.items() if part.dataset.nunique() > 1}


def _board(runs: pd.DataFrame, stage: str) -> pd.DataFrame:
    metric = HEADLINES[stage][0]
    datasets = sorted(map(str, runs.dataset.unique()))
    parts = {name: _one_setting(runs[runs.dataset == name], metric) for name in datasets}
    present = {name: _keys(part) for name, part in parts.items()}
    keys = sorted(set().union(*present.values()))
    table = pd.DataFrame(keys, columns=EXPERIMENT)
    missing = [[name for name in datasets if key not in present[name]] for key in keys]
    table["n_datasets"] = [len(datasets) - len(names) for names in missing]
    scores = [[_scores(parts[name], key, metric) for name in datasets] for key in keys]
    table["n_pretrain"] = [min(len(x) for x in of_sets if len(x)) for of_sets in scores]
    complete = [number for number, names in enumerate(missing) if not names]
    ranked = _ranks([scores[number] for number in complete])
    for name in HEAD:
        table[name] = pd.Series(ranked[name], index=complete, dtype=float)
    for position, name in enumerate(datasets):
        images = None if stage in AVERAGED else parts[name].test_images.dropna().min()
        summary = summarise(parts[name], EXPERIMENT, "parent", [metric], None if pd.isna(images) else int(images))
        values = summary.reindex(pd.MultiIndex.from_tuples(keys, names=EXPERIMENT))
        for what in ("mean", "ci95"):
            table[f"{name}_{what}"] = values[f"{metric}_{what}"].to_numpy()
        means = pd.Series([float(scores[number][position].mean()) for number in complete], index=complete, dtype=float)
        table[f"{name}_rank"] = means.rank(ascending=False)
    table["missing"] = ["; ".join(names) for names in missing]
    order = ["mean_rank", *EXPERIMENT]
    return table.sort_values(order, kind="stable", ignore_index=True, na_position="last")


def _keys(runs: pd.DataFrame) -> set[tuple[str, str, str]]:
    """The experiments that `runs` are of."""
    columns = (map(str, runs[name]) for name in EXPERIMENT)
    return set(zip(*columns, strict=True))


def _one_setting(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Of each experiment the evaluations of one setting: the one with most pretrainings, a choice by no result."""
    runs = runs[runs[metric].notna()]
    counts = runs.groupby([*EXPERIMENT, "eval_config"]).parent.nunique().reset_index(name="n")
    counts = counts.sort_values([*EXPERIMENT, "n", "eval_config"], ascending=[True, True, True, False, True])
    chosen = counts.drop_duplicates(EXPERIMENT)[[*EXPERIMENT, "eval_config"]]
    return runs.merge(chosen, on=[*EXPERIMENT, "eval_config"])


def _scores(runs: pd.DataFrame, key: tuple[str, ...], metric: str) -> Floats:
    """The value of each pretraining."""
    own = runs[(runs[EXPERIMENT] == list(key)).all(axis=1)]
    values: Floats = own.groupby("parent")[metric].mean().to_numpy(float)
    return values


def _ranks(scores: Sequence[Sequence[Floats]]) -> dict[str, Floats]:
    """Mean rank over datasets with the ends of its interval, and mean value, of each experiment."""
    if not scores:
        return {name: np.array([]) for name in HEAD}
    middle, low, high = mean_ranks_with_intervals([list(of_sets) for of_sets in scores])
    few = np.array([min(map(len, of_sets)) < 2 for of_sets in scores])  # one pretraining has no spread to draw from
    means = np.array([np.mean([x.mean() for x in of_sets]) for of_sets in scores])
    return {
        "mean_rank": middle,
        "mean_rank_low": np.where(few, np.nan, low),
        "mean_rank_high": np.where(few, np.nan, high),
        "mean": means,
    }
