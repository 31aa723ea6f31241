"""Which differences between experiments are real: every one compared with every other, by all runs of both.

Few seeds may look alike by chance, and many comparisons find something by chance: both are allowed for, and
`benchmarks/statistics.py` measures how often a table is wrong. Welch's test and Holm's correction are written out here
for whole tables at once; the tests compare them with scipy and statsmodels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from results.leaderboards.intervals import LEVEL, Floats

POWER = 0.8
EQUIVALENCE = 1.0
"""Points within which two mean accuracies are called equal, where both one-sided tests say so."""

MAX_SEEDS = 1000
"""More are not proposed."""


@dataclass(frozen=True)
class Spread:
    """The variance of a pretraining of each of k experiments, arrays [k]; NaN where there are fewer than two."""

    variance: Floats
    """The experiment's own or that of all k together, whichever is larger."""
    freedom: Floats
    """Degrees of freedom of `variance`."""
    pooled: npt.NDArray[np.bool_]
    """Where `variance` is that of all together."""


@dataclass(frozen=True)
class Pairs:
    """Every experiment of k with every other, by all runs of both: arrays [k, k], of which [i, j] compares i with j.

    `difference` is the mean of i minus that of j. NaN where nothing can be said: one of the two has one pretraining, or
    no run of any has a spread.
    """

    difference: Floats
    error: Floats
    """Standard error of `difference`."""
    freedom: Floats
    """Degrees of freedom of `error`, by Welch and Satterthwaite."""
    pooled: npt.NDArray[np.bool_]
    """Where both variances are those of all experiments together."""
    n: npt.NDArray[np.int64]
    """The smaller number of pretrainings of the two."""
    margin: float = EQUIVALENCE
    """Points within which two means are called equal."""

    @cached_property
    def p(self) -> Floats:
        """Two-sided p of a difference this large where there is none; by itself, not corrected."""
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
        return _adjusted(self.p)

    @cached_property
    def equal(self) -> npt.NDArray[np.bool_]:
        """Where two means differ by less than `margin`.

        By two one-sided tests (TOST), with Holm's correction for all pairs; that no difference was found is not enough.
        """
        from scipy.special import stdtr

        with np.errstate(divide="ignore", invalid="ignore"):
            t = (self.margin - np.abs(self.difference)) / self.error
        p = np.where(self.error > 0, stdtr(self.freedom, -t), np.nan)
        return _adjusted(p) < 1 - LEVEL

    @cached_property
    def half_width(self) -> Floats:
        """Half the 95 % interval of `difference`, by itself."""
        from scipy.special import stdtrit

        return np.where(np.isfinite(self.p), stdtrit(self.freedom, (1 + LEVEL) / 2) * self.error, np.nan)

    def better(self, families: int = 1) -> npt.NDArray[np.bool_]:
        """Where i is significantly better than j (a larger value is better).

        Of `families` such families of pairs, one is wrong in something at most once in 20.
        """
        return (self.adjusted < (1 - LEVEL) / families) & (self.difference > 0)

    def ranks(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The best and the worst rank (1 is best) that each experiment may have, by what is significant.

        Together they hold for all experiments with 95 % confidence, because the corrected comparisons do.
        """
        better = self.better()
        return 1 + better.sum(axis=0), len(better) - better.sum(axis=1)

    def seeds_needed(self, rows: Sequence[int], columns: Sequence[int], power: float = POWER) -> Floats:
        """Of pairs (rows[i], columns[i]): seeds of each, in a fresh set, with which a test would find the difference.

        That is, with probability `power` if difference and spread are truly what they look like now, at the level
        that Bonferroni's correction leaves a pair. They may not be added to the present seeds and tested again: every
        further look raises the rate of false alarms. NaN where there is no difference, or over MAX_SEEDS.
        """
        pick = np.asarray(rows, int), np.asarray(columns, int)
        sd = self.error[pick] * np.sqrt(np.maximum(self.n[pick], 1) / 2)  # of one pretraining, the two alike
        with np.errstate(divide="ignore", invalid="ignore"):
            effect = np.abs(self.difference[pick]) / sd
        effect = np.where(np.isfinite(self.p[pick]) & (effect > 0), effect, np.nan)
        return seeds_for(effect, (1 - LEVEL) / max(1, self.tested), power)


def spread(values: npt.ArrayLike, resolution: float = 0.0) -> Spread:
    """The variances of k experiments by `values` [k, s], for comparisons.

    Few seeds may look alike by chance. So an experiment whose own variance is below that of all experiments pooled gets
    the pooled one; where its own is larger it is Welch's, with its own degrees of freedom. Variances that stand out
    are not pooled (see `_pooled`). The degrees of freedom of the pooled variance are Satterthwaite's: few where
    experiments' variances differ. No variance is below `resolution` squared: a difference of one test image.
    """
    x = np.asarray(values, float)
    finite = np.isfinite(x)
    n = finite.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(finite, x, 0).sum(axis=1) / n
        variance = (np.where(finite, x - mean[:, None], 0) ** 2).sum(axis=1) / (n - 1)
    variance = np.where(n >= 2, np.maximum(variance, resolution**2), np.nan)
    freedom = np.where(n >= 2, n - 1.0, np.nan)
    several = n >= 2
    if not several.any():
        return Spread(variance, freedom, np.zeros(len(n), bool))
    pooled, shared = _pooled(variance[several], freedom[several])
    below = several & (variance <= pooled * (1 + 1e-9))  # equal ones, too, whatever their last bits
    return Spread(np.where(below, pooled, variance), np.where(below, shared, freedom), below)


def _pooled(variance: Floats, freedom: Floats) -> tuple[float, float]:
    """The variance [k] of all experiments together and its degrees of freedom, without variances that stand out.

    Those that Cochran's test calls too large for the others (ISO 5725-2, the largest first, one after the other) say
    nothing of how much the others vary. Its form for unequal numbers of runs is 't Lam's (2010), eqs. 25 and 26.
    """
    from scipy.special import fdtri

    inside = np.ones(len(variance), bool)
    while True:
        parts = freedom * variance * inside
        total, left = parts.sum(), (freedom * inside).sum()
        largest = int(parts.argmax())
        others = left - freedom[largest]
        if total == 0 or others <= 0 or inside.sum() < 4:
            break
        quantile = fdtri(freedom[largest], others, 1 - (1 - LEVEL) / inside.sum())
        if parts[largest] / total <= 1 / (1 + others / (freedom[largest] * quantile)):
            break
        inside[largest] = False
    squares = (freedom * variance**2 * inside).sum()
    return total / left, total**2 / squares if squares > 0 else left


def compare(values: npt.ArrayLike, resolution: float = 0.0, margin: float = EQUIVALENCE) -> Pairs:
    """Compares k experiments by `values` [k, s]: a row per experiment, a value per pretraining, NaN for none.

    `resolution` is the difference (points) that one test image makes; 0 where it is not known.
    Means that differ by less than `margin` may be called equal.
    """
    x = np.asarray(values, float)
    finite = np.isfinite(x)
    n = finite.sum(axis=1)
    deviation = spread(x, resolution)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(finite, x, 0).sum(axis=1) / n
        square = deviation.variance / n
        error = square[:, None] + square[None, :]
        parts = square**2 / deviation.freedom
        freedom = np.where(error > 0, error**2 / (parts[:, None] + parts[None, :]), 1.0)
    both = deviation.pooled[:, None] & deviation.pooled[None, :]
    freedom = np.where(both, deviation.freedom[:, None], freedom)  # one estimate, not two independent ones
    return Pairs(
        difference=mean[:, None] - mean[None, :],
        error=np.sqrt(error),
        freedom=freedom,
        pooled=both,
        n=np.minimum(n[:, None], n[None, :]),
        margin=margin,
    )


def _adjusted(p: Floats) -> Floats:
    """Holm's correction of p values [k, k] of pairs; symmetric, NaN where there is no test."""
    upper = np.triu_indices(len(p), 1)
    adjusted = np.full_like(p, np.nan)
    adjusted[upper] = holm(p[upper])
    return np.where(np.isnan(adjusted), adjusted.T, adjusted)


def holm(p: npt.ArrayLike) -> Floats:
    """Holm's step-down correction of p values [m]; NaN means no test, and stays (S. Holm, 1979)."""
    p = np.asarray(p, float)
    order = np.argsort(p, kind="stable")  # NaN last
    tests = int(np.isfinite(p).sum())
    adjusted = np.full(p.shape, np.nan)
    scaled = p[order[:tests]] * (tests - np.arange(tests))
    adjusted[order[:tests]] = np.minimum(1.0, np.maximum.accumulate(scaled)) if tests else []
    return adjusted


def seeds_for(effect: npt.ArrayLike, alpha: float, power: float = POWER) -> Floats:
    """Seeds [m] that each of two experiments needs for a two-sided t test at level `alpha`.

    With them it finds a difference with probability `power`; `effect` [m] is the difference by the standard deviation
    of one seed.
    """
    effect = np.asarray(effect, float)
    low, high = np.full(effect.shape, 1), np.full(effect.shape, MAX_SEEDS)
    reachable = power_of(effect, high, alpha) >= power
    while np.any(high - low > 1):
        middle = (low + high) // 2
        enough = power_of(effect, np.maximum(middle, 2), alpha) >= power
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    return np.where(reachable, np.maximum(high, 2), np.nan)


def power_of(effect: npt.ArrayLike, n: npt.ArrayLike, alpha: float) -> Floats:
    """Probability that a two-sided t test of `n` seeds of each finds `effect` (>= 0), and with its sign.

    2n - 2 degrees of freedom: as if the two experiments were alone. See `seeds_for`.
    """
    from scipy.special import nctdtr, stdtrit

    n = np.asarray(n, float)
    freedom, shift = 2 * (n - 1), np.asarray(effect) * np.sqrt(n / 2)
    limit = stdtrit(freedom, 1 - alpha / 2)
    return np.asarray(1 - nctdtr(freedom, shift, limit))
