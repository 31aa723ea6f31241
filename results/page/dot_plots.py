"""Dots next to the rows of a leaderboard: each pretraining a mark, the mean a line, its interval a bar."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

TICKS = 3
"""Numbers on the scale above the dots, about."""


@dataclass(frozen=True)
class Scale:
    """Values to per cent of the width of a cell."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Scale | None":
        """With some room to either side; None where there is no value."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return None
        room = (max(finite) - min(finite)) * 0.06 or 1.0
        return cls(min(finite) - room, max(finite) + room)

    def __call__(self, value: float) -> float:
        """In per cent, cut at the edges."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)

    @property
    def ticks(self) -> list[float]:
        """Round numbers within the scale."""
        rough = (self.high - self.low) / TICKS
        base = 10 ** math.floor(math.log10(rough))
        step = next(base * k for k in (1, 2, 5, 10) if base * k >= rough * 0.999)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(k * step, 10) for k in range(first, last + 1)]


@dataclass(frozen=True)
class Dots:
    """Positions in per cent of the cell's width."""

    values: list[tuple[float, float]]
    """(position, value) of each pretraining."""
    mean: float | None
    interval: tuple[float, float] | None
    """(left edge, width)."""


def dots(values: Sequence[float], mean: float, low: float, high: float, scale: Scale) -> Dots:
    """`low` to `high` is the interval, NaN where there is none."""
    drawn = [(scale(value), float(value)) for value in values if math.isfinite(value)]
    middle = None if pd.isna(mean) else scale(mean)
    if pd.isna(low) or pd.isna(high):
        return Dots(drawn, middle, None)
    start, end = scale(low), scale(high)
    return Dots(drawn, middle, (start, round(end - start, 2)))


def value_range(values: pd.Series, means: pd.Series) -> Scale | None:
    """The scale of a leaderboard: all its pretrainings and means; intervals are cut at its edge."""
    return Scale.of(np.concatenate([values.dropna().to_numpy(float), means.dropna().to_numpy(float)]).tolist())
