"""Spearman's rank correlation of two measures, with an interval, over groups of runs that share their settings.

The runs of a group are no independent points: only the groups' means are ranked, and n is the number of groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from results.leaderboards.intervals import LEVEL

FEWEST = 4
"""Groups below which there is no interval."""


@dataclass(frozen=True)
class RankCorrelation:
    rho: float
    groups: int
    runs: int

    @property
    def error(self) -> float:
        """Standard error of atanh(rho): Bonett and Wright, Psychometrika 65 (2000)."""
        return math.sqrt((1 + self.rho**2 / 2) / (self.groups - 3))

    @property
    def interval(self) -> tuple[float, float]:
        from scipy.special import ndtri

        half = float(ndtri((1 + LEVEL) / 2)) * self.error
        return math.tanh(self._z - half), math.tanh(self._z + half)

    def p(self, bound: float) -> float:
        """Two-sided, of the hypothesis that the correlation is `bound`."""
        from scipy.special import ndtr

        return 2 * float(ndtr(-abs(self._z - math.atanh(bound)) / self.error))

    @property
    def _z(self) -> float:
        # Half a step below 1, of the steps that ranks make: 1 itself would have an interval of no width.
        largest = 1 - 6 / (self.groups * (self.groups**2 - 1))
        return math.atanh(max(-largest, min(largest, self.rho)))


def rank_correlation(groups: Sequence[Sequence[tuple[float, float]]]) -> RankCorrelation | None:
    """Of the (x, y) of each group's runs. None for fewer than FEWEST groups, or where a measure never changes."""
    means = np.array([np.mean(group, axis=0) for group in groups if len(group)])
    if len(means) < FEWEST or (np.ptp(means, axis=0) == 0).any():
        return None
    from scipy.stats import spearmanr

    return RankCorrelation(float(spearmanr(means).statistic), len(means), sum(map(len, groups)))
