"""What repetitions say: means, spreads, intervals and comparisons that count independent pretrainings.

Evaluation and fine-tuning seeds of one pretraining are not independent: they are averaged within it first. By
`scipy.special`, which is there in a tenth of the time of `scipy.stats`; the tests hold it against that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

LEVEL, POWER = 0.95, 0.8
MOST_SEEDS = 1000
"""More are not proposed."""

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


def summarise(runs: pd.DataFrame, by: Sequence[str], unit: str, metrics: Sequence[str]) -> pd.DataFrame:
    """One row a group of `by`: n_pretrain, n_eval, spread_of, and <metric>_mean, _sd, _ci95 for each of `metrics`.

    `unit` names the column that tells independent pretrainings apart. The n's are those of the first metric; another
    metric that fewer runs have is left empty, because its mean would be over other runs. With one pretraining sd and
    interval are those of its evaluations, and `spread_of` says so.
    """
    by, metrics = list(by), list(metrics)
    within = runs.groupby([*by, unit])[metrics].mean()
    between, evaluations = within.groupby(level=by), runs.groupby(by)[metrics]
    n, n_eval = between.count(), evaluations.count()
    sd = between.std().where(n > 1, evaluations.std())
    width = half_width(sd, n.where(n > 1, n_eval))
    whole = n.eq(n[metrics[0]], axis=0) & n_eval.eq(n_eval[metrics[0]], axis=0)
    columns: dict[str, pd.Series] = {"n_pretrain": n[metrics[0]], "n_eval": n_eval[metrics[0]]}
    columns["spread_of"] = _spread_of(n[metrics[0]], n_eval[metrics[0]])
    mean = between.mean()
    for i, metric in enumerate(metrics):
        columns[f"{metric}_mean"] = mean[metric].where(whole[metric])
        columns[f"{metric}_sd"] = sd[metric].where(whole[metric])
        columns[f"{metric}_ci95"] = pd.Series(width[:, i], index=mean.index).where(whole[metric])
    return pd.DataFrame(columns)


def _spread_of(n: pd.Series, n_eval: pd.Series) -> pd.Series:
    return pd.Series(np.where(n > 1, PRETRAINING, np.where(n_eval > 1, FINE_TUNING, NONE)), index=n.index)


# --- comparisons ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Every experiment of k against every other: arrays [k, k], of which [i, j] compares i with j.

    `difference` is the mean of i minus that of j: over the seeds that both have where `paired` (at least two), else of
    all their seeds. NaN where nothing can be said: one of the two has a single pretraining, or the seeds' differences
    are all the same but not 0, which leaves no spread to judge them by.
    """

    difference: Floats
    error: Floats
    """Standard error of `difference`."""
    freedom: Floats
    """Degrees of freedom of `error`: seeds - 1 where paired, else Welch's."""
    paired: npt.NDArray[np.bool_]
    n: npt.NDArray[np.int64]
    """Seeds shared where `paired`, else the smaller number of the two."""

    @cached_property
    def p(self) -> Floats:
        """Two-sided p of a difference so large where there is none; by itself, not corrected."""
        from scipy.special import stdtr

        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(self.difference) / self.error
        p = 2 * stdtr(self.freedom, -t)
        p = np.where((self.error == 0) & (self.difference == 0), 1.0, p)
        return np.where((self.error == 0) & (self.difference != 0), np.nan, p)

    @property
    def tested(self) -> int:
        """Number of pairs of different experiments that could be tested."""
        return int(np.isfinite(self.p[np.triu_indices(len(self.p), 1)]).sum())

    @cached_property
    def adjusted(self) -> Floats:
        """`p` with Holm's correction for all pairs: below 0.05 in one or more of true nulls at most once in 20."""
        upper = np.triu_indices(len(self.p), 1)
        adjusted = np.full_like(self.p, np.nan)
        adjusted[upper] = holm(self.p[upper])
        return np.where(np.isnan(adjusted), adjusted.T, adjusted)

    @cached_property
    def half_width(self) -> Floats:
        """Half the 95 % interval of `difference`, by itself."""
        from scipy.special import stdtrit

        return np.where(np.isfinite(self.p), stdtrit(self.freedom, (1 + LEVEL) / 2) * self.error, np.nan)

    def better(self, families: int = 1) -> npt.NDArray[np.bool_]:
        """Where i is significantly better than j (a larger value is better); of so many such families of pairs, one is
        wrong in something at most once in 20.
        """
        return (self.adjusted < (1 - LEVEL) / families) & (self.difference > 0)

    def ranks(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The best and the worst rank (1 is best) that each experiment may have, by what is significant.

        Together they hold for all experiments with 95 % confidence, because the corrected comparisons do.
        """
        better = self.better()
        return 1 + better.sum(axis=0), len(better) - better.sum(axis=1)

    def seeds_needed(self, rows: Sequence[int], columns: Sequence[int], power: float = POWER) -> Floats:
        """Of pairs (rows[i], columns[i]): seeds of each with which a test would probably find the difference.

        That is, with probability `power` if difference and spread are truly what they look like now, at the level
        that Bonferroni's correction leaves a pair. NaN where there is no difference or no spread, or over MOST_SEEDS.
        """
        pick = np.asarray(rows, int), np.asarray(columns, int)
        n, paired = self.n[pick], self.paired[pick]
        per_seed = self.error[pick] * np.sqrt(np.maximum(n, 1))  # standard deviation of one seed's difference
        with np.errstate(divide="ignore", invalid="ignore"):
            effect = np.abs(self.difference[pick]) / per_seed
        effect = np.where(np.isfinite(self.p[pick]) & (effect > 0), effect, np.nan)
        return seeds_for(effect, np.where(paired, 1, 2), (1 - LEVEL) / max(1, self.tested), power)


def compare(values: npt.ArrayLike) -> Pairs:
    """Compares k experiments by `values` [k, s]: a row an experiment, a column a pretraining seed; NaN is not run."""
    x = np.asarray(values, float)
    known = np.isfinite(x)
    shared = known[:, None] & known[None, :]
    gap = np.where(shared, x[:, None] - x[None, :], 0.0)
    both = shared.sum(axis=2)
    paired = both >= 2
    count = np.maximum(both, 2)
    middle = gap.sum(axis=2) / count
    spread = (np.where(shared, gap - middle[..., None], 0.0) ** 2).sum(axis=2) / (count - 1)
    n = known.sum(axis=1)
    welch_difference, welch_square, welch_freedom = _welch(x, known, n)
    several = np.minimum(n[:, None], n[None, :])
    testable = paired | (several >= 2)
    return Pairs(
        difference=np.where(paired, middle, welch_difference),
        error=np.where(testable, np.sqrt(np.where(paired, spread / count, welch_square)), np.nan),
        freedom=np.where(paired, count - 1.0, welch_freedom),
        paired=paired,
        n=np.where(paired, both, several),
    )


def _welch(x: Floats, known: npt.NDArray[np.bool_], n: npt.NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Of all pairs [k, k]: difference of the means, squared standard error, degrees of freedom."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(known, x, 0).sum(axis=1) / n
        square = (np.where(known, x - mean[:, None], 0) ** 2).sum(axis=1) / (n - 1) / n
        error = square[:, None] + square[None, :]
        freedom = error**2 / ((square**2 / (n - 1))[:, None] + (square**2 / (n - 1))[None, :])
    return mean[:, None] - mean[None, :], error, freedom


def holm(p: npt.ArrayLike) -> Floats:
    """Holm's step-down correction of p values [m]; NaN stands for no test, and stays. (S. Holm, 1979)"""
    p = np.asarray(p, float)
    order = np.argsort(p, kind="stable")  # NaN last
    tests = int(np.isfinite(p).sum())
    adjusted = np.full(p.shape, np.nan)
    scaled = p[order[:tests]] * (tests - np.arange(tests))
    adjusted[order[:tests]] = np.minimum(1.0, np.maximum.accumulate(scaled)) if tests else []
    return adjusted


def seeds_for(effect: npt.ArrayLike, samples: npt.ArrayLike, alpha: float, power: float = POWER) -> Floats:
    """Seeds [m] at which a two-sided t test at level `alpha` finds a difference with probability `power`.

    Args:
        effect: [m], the difference by the standard deviation of one seed's difference.
        samples: [m], 1 for paired seeds (n - 1 degrees of freedom), 2 for separate ones (2n - 2).
    """
    effect, samples = np.asarray(effect, float), np.asarray(samples, int)
    low, high = np.full(effect.shape, 1), np.full(effect.shape, MOST_SEEDS)
    reachable = power_of(effect, high, samples, alpha) >= power
    while np.any(high - low > 1):
        middle = (low + high) // 2
        enough = power_of(effect, np.maximum(middle, 2), samples, alpha) >= power
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    return np.where(reachable, np.maximum(high, 2), np.nan)


def power_of(effect: npt.ArrayLike, n: npt.ArrayLike, samples: npt.ArrayLike, alpha: float) -> Floats:
    """Probability that a two-sided t test of `n` seeds finds `effect` (>= 0), and with its sign; see `seeds_for`."""
    from scipy.special import nctdtr, stdtrit

    n = np.asarray(n, float)
    freedom, shift = np.asarray(samples) * (n - 1), np.asarray(effect) * np.sqrt(n)
    limit = stdtrit(freedom, 1 - alpha / 2)
    return np.asarray(1 - nctdtr(freedom, shift, limit))
