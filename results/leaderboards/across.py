"""Methods over all leaderboards together: mean rank, interquartile mean and performance profile, with uncertainty.

Definitions are those of rliable (Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", NeurIPS 2021): leaderboards are its tasks, pretrainings its runs. The interquartile mean leaves out the
lowest and the highest quarter of all scores; a profile is the share of scores at or above a threshold; intervals are
percentiles of a stratified bootstrap, which resamples the pretrainings of each method and leaderboard.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from results.leaderboards.intervals import LEVEL, Floats
from results.leaderboards.run_table import HEADLINES, UNTRAINED
from results.leaderboards.warnings import BOUNDS

THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(11))
"""Of the profile: scores from that of an untrained network (0) to that of supervised training (1)."""

RESAMPLES = 2000
BETWEEN_BOUNDS, PER_CENT = "untrained 0, supervised 1", "per cent / 100"
"""What a score is: where each leaderboard has both bounds, and where one lacks them."""

COLUMNS = (
    *("method", "recipe", "n_boards", "n_min", "mean_rank", "mean_rank_low", "mean_rank_high"),
    *("iqm", "iqm_low", "iqm_high", *(f"profile_{threshold}" for threshold in THRESHOLDS), "score", "boards"),
)
KEY = ["method", "family"]
Scores = list[list[Floats]]
"""Of each method, of each leaderboard: a score per pretraining."""


def across(runs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row per method that is on every leaderboard, best mean rank first; empty with fewer than two of either.

    Args:
        runs: the done evaluations of all leaderboards, with a column `board` of their names.
        names: the leaderboards' names, in the order in which `boards` lists them.
    """
    if len(names) < 2:
        return pd.DataFrame(columns=list(COLUMNS))
    values = _values(runs)
    methods = [key for key in sorted({key for key, _ in values}) if all((key, name) in values for name in names)]
    rivals = [key for key in methods if key[0] not in BOUNDS]
    if len(rivals) < 2:
        return pd.DataFrame(columns=list(COLUMNS))
    bounds = [[_bound(values, method, name) for method in (UNTRAINED, "supervised")] for name in names]
    scaled = all(low is not None and high is not None and high > low for low, high in bounds)
    ends = [(low, high) if scaled and low is not None and high is not None else (0.0, 100.0) for low, high in bounds]
    scores = [
        [(values[key, name] - low) / (high - low) for name, (low, high) in zip(names, ends, strict=True)]
        for key in rivals
    ]
    n_min = [min(map(len, boards)) for boards in scores]
    ranks, iqm = _with_intervals(scores)
    table = pd.DataFrame(rivals, columns=["method", "recipe"])
    table["n_boards"], table["n_min"] = len(names), n_min
    for name, (middle, low, high) in (("mean_rank", ranks), ("iqm", iqm)):
        table[name], table[f"{name}_low"], table[f"{name}_high"] = middle, low, high
    uncertain = table.n_min < 2  # one pretraining has no spread to draw from
    table.loc[uncertain, ["mean_rank_low", "mean_rank_high", "iqm_low", "iqm_high"]] = np.nan
    for threshold in THRESHOLDS:
        table[f"profile_{threshold}"] = [profile(boards, threshold) for boards in scores]
    table["score"], table["boards"] = BETWEEN_BOUNDS if scaled else PER_CENT, "; ".join(names)
    return table.sort_values(["mean_rank", "method", "recipe"], kind="stable", ignore_index=True)[list(COLUMNS)]


def interquartile_mean(scores: npt.ArrayLike) -> float:
    """The mean of the middle half of `scores`, of any shape; a quarter is left out at either end, rounded down."""
    x = np.sort(np.asarray(scores, float), axis=None)
    cut = len(x) // 4
    return float(x[cut : len(x) - cut].mean())


def profile(boards: Sequence[Floats], threshold: float) -> float:
    """The share of scores at or above `threshold`, each leaderboard counting alike."""
    return float(np.mean([(scores >= threshold).mean() for scores in boards]))


def _values(runs: pd.DataFrame) -> dict[tuple[tuple[str, str], str], Floats]:
    """((method, recipe without its data set's folder), leaderboard) -> the value of each pretraining.

    Of several variants on one leaderboard it is the one with most pretrainings: a choice that looks at no result.
    """
    values: dict[tuple[tuple[str, str], str], Floats] = {}
    runs = runs.assign(family=runs.recipe.str.rpartition("/")[2])
    for (board, method, family), group in runs.groupby(["board", *KEY]):
        metric = HEADLINES[str(group.stage.iloc[0])][0]
        means = group.groupby(["config", "eval_config", "parent"])[metric].mean().dropna()
        if len(means):
            variants = [part.to_numpy(float) for _, part in means.groupby(level=["config", "eval_config"])]
            values[(str(method), str(family)), str(board)] = max(variants, key=len)  # of several, the first
    return values


def _bound(values: dict[tuple[tuple[str, str], str], Floats], method: str, board: str) -> float | None:
    means = [float(x.mean()) for (key, name), x in values.items() if (key[0], name) == (method, board)]
    return max(means) if means else None


def _with_intervals(scores: Scores) -> tuple[list[Floats], list[Floats]]:
    """Mean ranks and interquartile means of the methods: of the data, and the ends of their bootstrap intervals."""
    draw = np.random.default_rng(0)
    means = np.empty((RESAMPLES, len(scores), len(scores[0])))
    middles = np.empty((RESAMPLES, len(scores)))
    for i, boards in enumerate(scores):
        resampled = [x[draw.integers(len(x), size=(RESAMPLES, len(x)))] for x in boards]
        means[:, i] = np.stack([x.mean(axis=1) for x in resampled], axis=1)
        pooled = np.sort(np.concatenate(resampled, axis=1), axis=1)
        cut = pooled.shape[1] // 4
        middles[:, i] = pooled[:, cut : pooled.shape[1] - cut].mean(axis=1)
    means_of_data = np.array([[x.mean() for x in boards] for boards in scores])
    middles_of_data = np.array([interquartile_mean(np.concatenate(boards)) for boards in scores])
    return [_mean_ranks(means_of_data[None])[0], *_ends(_mean_ranks(means))], [middles_of_data, *_ends(middles)]


def mean_ranks_with_intervals(scores: Scores) -> tuple[Floats, Floats, Floats]:
    """Mean rank of each method over leaderboards, of the data, and the ends of its bootstrap interval."""
    middle, low, high = _with_intervals(scores)[0]
    return middle, low, high


def _mean_ranks(means: Floats) -> Floats:
    """[resamples, methods, boards] -> [resamples, methods]; 1 is best, equal means share the mean of their ranks."""
    above = (means[:, None] > means[:, :, None]).sum(axis=2)
    equal = (means[:, None] == means[:, :, None]).sum(axis=2)
    ranks: Floats = (1 + above + (equal - 1) / 2).mean(axis=2)
    return ranks


def _ends(samples: Floats) -> tuple[Floats, Floats]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(samples, [tail, 100 - tail], axis=0)
    return low, high
