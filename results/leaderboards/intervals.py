"""Means, spreads and intervals that count independent pretrainings.

Evaluation and fine-tuning seeds of one pretraining are not independent: they are averaged within it first. By
`scipy.special`, which imports in half the time of `scipy.stats`; the tests compare it with that and with statsmodels.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from results.leaderboards.run_table import UNBOUNDED

LEVEL = 0.95
PRETRAINING, FINE_TUNING, NONE = "pretraining", "fine-tuning only", "none"
"""What a spread is the spread of."""

Floats = npt.NDArray[np.float64]


def half_width(sd: npt.ArrayLike, n: npt.ArrayLike, level: float = LEVEL) -> Floats:
    """Half the confidence interval of a mean of `n` values with sample standard deviation `sd`, by Student's t.

    NaN where n < 2: one value has no interval.
    """
    from scipy.special import stdtrit

    sd, n = np.asarray(sd, float), np.asarray(n, float)
    several = n >= 2
    counted = np.where(several, n, 2)
    return np.where(several, stdtrit(counted - 1, (1 + level) / 2) * sd / np.sqrt(counted), np.nan)


def wilson(percent: npt.ArrayLike, images: npt.ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats]:
    """The interval (per cent) of an accuracy (per cent) measured on this many test images, by Wilson's formula.

    NaN where the number of images is not known.
    """
    from scipy.special import ndtri

    p, n = np.asarray(percent, float) / 100, np.asarray(images, float)
    z2 = ndtri((1 + level) / 2) ** 2
    middle, width = (p + z2 / (2 * n)) / (1 + z2 / n), np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return 100 * (middle - width), 100 * (middle + width)


def joined_interval(
    mean: npt.ArrayLike,
    seeds: npt.ArrayLike,
    test_low: npt.ArrayLike,
    test_high: npt.ArrayLike,
    highest: float = 100.0,
) -> tuple[Floats, Floats]:
    """The interval (per cent) of a mean that has both errors: of its seeds (a half-width) and of its test images.

    Their squares add on either side. Where the test images' part is not known (NaN) it is that of the seeds alone.
    Never below 0 or above `highest`.
    """
    mean, seeds = np.asarray(mean, float), np.asarray(seeds, float)
    below, above = (np.nan_to_num(side) for side in (mean - np.asarray(test_low), np.asarray(test_high) - mean))
    return np.maximum(mean - np.hypot(seeds, below), 0.0), np.minimum(mean + np.hypot(seeds, above), highest)


def inferred_images(values: npt.ArrayLike) -> int | None:
    """The number of test images of which all of these accuracies (per cent) are counts; None where that is not clear.

    It is the smallest up to 5,000 that gives whole counts. Values of two decimals or fewer say nothing: they may have
    been rounded. A set that is too small by a factor makes the resolution coarser and the tests more careful.
    """
    x = np.unique(np.asarray(values, float))
    x = x[np.isfinite(x)]
    if len(x) < 3 or np.allclose(x, np.round(x, 2), atol=1e-9, rtol=0):
        return None
    candidates = np.arange(2, 5001)
    for value in x:
        counts = candidates * value / 100
        candidates = candidates[np.abs(counts - np.round(counts)) < 1e-4]
    return int(candidates[0]) if len(candidates) else None


def summarise(
    runs: pd.DataFrame, by: Sequence[str], unit: str, metrics: Sequence[str], images: int | None = None
) -> pd.DataFrame:
    """One row per group of `by`: n_pretrain, n_eval, spread_of, and <metric>_mean, _sd, _ci95, _test_ci95, _low, _high.

    Args:
        runs: evaluations with a column for each of `metrics`, in per cent.
        unit: the column that tells independent pretrainings apart. The n's are those of the first metric; another
            metric that fewer runs have is left empty, because its mean would be over other runs. With one pretraining
            sd and interval are those of its evaluations, and `spread_of` says so.
        images: of the test set, where metrics are accuracies on it. No spread is smaller than one image, and
            `_test_ci95` is half the interval that so few images give by themselves. UNBOUNDED metrics have neither.
    """
    by, metrics = list(by), list(metrics)
    within = runs.groupby([*by, unit])[metrics].mean()
    between, evaluations = within.groupby(level=by), runs.groupby(by)[metrics]
    n, n_eval = between.count(), evaluations.count()
    sd = between.std().where(n > 1, evaluations.std())
    shares = [metric not in UNBOUNDED for metric in metrics]
    one_image = [100 / images if images and share else 0.0 for share in shares]
    width = half_width(sd.clip(lower=pd.Series(one_image, metrics), axis=1), n.where(n > 1, n_eval))
    whole = n.eq(n[metrics[0]], axis=0) & n_eval.eq(n_eval[metrics[0]], axis=0)
    columns: dict[str, pd.Series] = {"n_pretrain": n[metrics[0]], "n_eval": n_eval[metrics[0]]}
    columns["spread_of"] = _spread_of(n[metrics[0]], n_eval[metrics[0]])
    mean = between.mean()
    for i, metric in enumerate(metrics):
        test_images = images if images and shares[i] else np.nan
        test = wilson(mean[metric], test_images)
        seeds, highest = np.where(n[metric] > 1, width[:, i], np.nan), 100.0 if shares[i] else np.inf
        low, high = joined_interval(mean[metric], seeds, test[0], test[1], highest)
        values = {"sd": sd[metric], "ci95": width[:, i], "test_ci95": (test[1] - test[0]) / 2, "low": low, "high": high}
        columns[f"{metric}_mean"] = mean[metric].where(whole[metric])
        for name, value in values.items():
            columns[f"{metric}_{name}"] = pd.Series(value, index=mean.index).where(whole[metric])
    return pd.DataFrame(columns)


def _spread_of(n: pd.Series, n_eval: pd.Series) -> pd.Series:
    return pd.Series(np.where(n > 1, PRETRAINING, np.where(n_eval > 1, FINE_TUNING, NONE)), index=n.index)
