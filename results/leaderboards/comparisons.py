"""Which differences on a leaderboard are real: every experiment against every other, and the ranks that follow."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from results.leaderboards import table_cells as grid
from results.leaderboards.intervals import LEVEL
from results.leaderboards.run_table import HEADLINES, UNTRAINED
from results.leaderboards.significance import EQUIVALENCE, Pairs, compare, holm
from results.leaderboards.warnings import BOUNDS, FEW_SEEDS

COMPARED = 30
"""This many of the best of a leaderboard are compared pair by pair in `comparisons.csv`; the correction counts all."""

BEST, WORSE, UNDECIDED = "best", "worse", "not decided"
MARGINS = {"box_AP": 0.2, "mask_AP": 0.2}
"""Points within which means are called equal, where it is not EQUIVALENCE: average precisions lie closer together."""
STANDING = ["rank_low", "rank_high", "versus_best", "behind_best", "behind_best_ci95", "p_adjusted", "fresh_seeds"]
"""Columns of a leaderboard, by its first headline metric: the ranks that an experiment may have, and how it compares
with the best mean: their difference in points, its 95 % half-width, p with Holm's correction over all pairs of the
leaderboard, and how many seeds of both, in a fresh set, would probably decide what is not decided."""

ABOVE_RANDOM = ["above_random", "above_random_ci95", "p_above_random"]
"""Columns of a leaderboard, by its first headline metric: the difference from the untrained network of the same
architecture in points, its 95 % half-width, and p with Holm's correction over the rows of the leaderboard."""

COLUMNS = (
    *("dataset", "stage", "protocol", "metric", "a", "b", "test", "n", "difference", "ci95", "p", "p_adjusted"),
    *("verdict", "fresh_seeds", "a_config", "b_config", "a_eval_config", "b_eval_config"),
)
"""Of `comparisons.csv`. test: by the variance of all experiments pooled, or Welch's by their own; n: the smaller number
of pretrainings of the two; verdict: a, b, equal within a margin, or not decided."""


def label(row: Any) -> str:
    """What tells an experiment apart for a reader."""
    return " ".join(part for part in (row["recipe"], row["variant"], row["eval_variant"]) if part)


def standing(
    runs: pd.DataFrame, table: pd.DataFrame, by: Sequence[str], metric: str, resolution: float = 0.0
) -> pd.DataFrame:
    """The columns STANDING for the rows of a leaderboard whose first row is the best, by its evaluations `runs`.

    `resolution` is the difference (points) that one test image makes.
    """
    cells: dict[str, Any] = {name: np.full(len(table), np.nan) for name in STANDING}
    cells["versus_best"] = np.full(len(table), "", object)
    valued = np.flatnonzero(table[f"{metric}_mean"].notna())
    if len(valued):
        pairs = _compared(runs, table.iloc[valued], by, metric, resolution)
        cells["rank_low"][valued], cells["rank_high"][valued] = pairs.ranks()
        others, rest = list(range(1, len(valued))), valued[1:]
        cells["versus_best"][valued] = [BEST, *(_verdict(pairs, 0, j) for j in others)]
        for name, array in (
            ("behind_best", pairs.difference),
            ("behind_best_ci95", pairs.half_width),
            ("p_adjusted", pairs.adjusted),
        ):
            cells[name][rest] = array[0, 1:]
        cells["fresh_seeds"][rest] = _fresh_seeds(pairs, [0] * len(others), others)
    columns = pd.DataFrame(cells, index=table.index)
    return columns.astype(dict.fromkeys(("rank_low", "rank_high", "fresh_seeds"), "Int64"))


def above_random(
    runs: pd.DataFrame, table: pd.DataFrame, by: Sequence[str], metric: str, resolution: float = 0.0
) -> pd.DataFrame:
    """The columns ABOVE_RANDOM for the rows of a leaderboard, the best first; see `standing`.

    Whether a method learns anything is a question of its own, to which one comparison a method belongs: fewer than all
    pairs, so that fewer seeds answer it. Empty where no untrained network of that architecture was evaluated.
    """
    cells = {name: np.full(len(table), np.nan) for name in ABOVE_RANDOM}
    valued = np.flatnonzero(table[f"{metric}_mean"].notna())
    if len(valued):
        rows = table.iloc[valued]
        pairs = _compared(runs, rows, by, metric, resolution)
        networks, untrained = list(zip(rows.backbone, rows.stem)), list(rows.method == UNTRAINED)
        bound = {
            network: i for i, network in reversed(list(enumerate(networks))) if untrained[i]
        }  # the best of several
        tested = [i for i, network in enumerate(networks) if not untrained[i] and network in bound]
        against = [bound[networks[i]] for i in tested]
        values = pairs.difference, pairs.half_width, pairs.p
        difference, half_width, p = (array[tested, against] for array in values)
        for name, column in zip(ABOVE_RANDOM, (difference, half_width, holm(p)), strict=True):
            cells[name][valued[tested]] = column
    return pd.DataFrame(cells, index=table.index)


def pairwise(runs: pd.DataFrame, table: pd.DataFrame, by: Sequence[str], resolution: float = 0.0) -> pd.DataFrame:
    """The pairs of a leaderboard's best experiments, in its order: the rows of `comparisons.csv`, for each headline."""
    rows: list[dict[str, Any]] = []
    board = {key: str(runs[key].iloc[0]) for key in ("dataset", "stage", "protocol")}
    for metric in HEADLINES[board["stage"]]:
        valued = table[table[f"{metric}_mean"].notna()]
        if len(valued) > 1:
            rows += [{**board, "metric": metric, **row} for row in _pair_rows(runs, valued, by, metric, resolution)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "Int64", "fresh_seeds": "Int64"})


def marks(
    runs: pd.DataFrame,
    table: pd.DataFrame,
    by: Sequence[str],
    metric: str,
    columns: int = 1,
    resolution: float = 0.0,
) -> list[str]:
    """How papers would mark the rows of a column: the best and the second best.

    Each is marked only if it is significantly better than the next one, also when all `columns` of the table are looked
    at, and both have FEW_SEEDS pretrainings or more.
    There is a second best only below a marked best. Bounds (supervised, random) do not compete.
    """
    cells, means = [""] * len(table), table[f"{metric}_mean"].to_numpy(float)
    rivals = [i for i, method in enumerate(table.method) if method not in BOUNDS and not np.isnan(means[i])]
    if len(rivals) > 1:
        pairs = _compared(runs, table.iloc[rivals], by, metric, resolution)
        better = pairs.better(columns) & (pairs.n >= FEW_SEEDS)
        order = sorted(range(len(rivals)), key=lambda k: -means[rivals[k]])
        for mark, (one, next_) in zip((grid.BEST, grid.SECOND), itertools.pairwise(order)):
            if not better[one, next_]:
                break
            cells[rivals[one]] = mark
    return cells


def _pair_rows(
    runs: pd.DataFrame, table: pd.DataFrame, by: Sequence[str], metric: str, resolution: float
) -> list[dict[str, Any]]:
    pairs = _compared(runs, table, by, metric, resolution)
    rows = table.head(COMPARED).to_dict("records")
    first, second = (list(map(int, indices)) for indices in np.triu_indices(len(rows), 1))
    fresh = _fresh_seeds(pairs, first, second)
    words = {WORSE: "a", BEST: "b"}
    return [
        {
            "a": label(rows[i]),
            "b": label(rows[j]),
            **{f"{side}_{key}": row[key] for side, row in (("a", rows[i]), ("b", rows[j])) for key in by[-2:]},
            "test": "none" if np.isnan(pairs.p[i, j]) else "pooled" if pairs.pooled[i, j] else "Welch",
            "n": pairs.n[i, j],
            "difference": pairs.difference[i, j],
            "ci95": pairs.half_width[i, j],
            "p": pairs.p[i, j],
            "p_adjusted": pairs.adjusted[i, j],
            "verdict": words.get(verdict := _verdict(pairs, i, j), verdict),
            "fresh_seeds": fresh[number],
        }
        for number, (i, j) in enumerate(zip(first, second, strict=True))
    ]


def _compared(runs: pd.DataFrame, table: pd.DataFrame, by: Sequence[str], metric: str, resolution: float) -> Pairs:
    return compare(_values(runs, table, by, metric), resolution, MARGINS.get(metric, EQUIVALENCE))


def _values(runs: pd.DataFrame, table: pd.DataFrame, by: Sequence[str], metric: str) -> Any:
    """[experiments, pretrainings]: the mean of each one's evaluations; NaN where an experiment has fewer than others.

    Two experiments' runs of one seed are not paired: seeds explain little of the variance, and few are shared.
    """
    each = runs.groupby([*by, "parent"])[metric].mean().dropna()
    number = each.groupby(level=list(by)).cumcount().rename("number")
    values = each.droplevel("parent").to_frame().set_index(number, append=True)[metric].unstack("number")
    return values.reindex(pd.MultiIndex.from_frame(table[list(by)])).to_numpy(float)


def _verdict(pairs: Pairs, i: int, j: int) -> str:
    """How j compares with i."""
    if np.isnan(pairs.p[i, j]):
        return f"{UNDECIDED}: {'one pretraining' if np.isnan(pairs.error[i, j]) else 'no spread'}"
    if pairs.adjusted[i, j] < 1 - LEVEL:
        return WORSE if pairs.difference[i, j] > 0 else BEST
    if pairs.equal[i, j]:
        return f"equal within {pairs.margin:g} point{'' if pairs.margin == 1 else 's'}"
    return UNDECIDED


def _fresh_seeds(pairs: Pairs, first: list[int], second: list[int]) -> Any:
    """Of each, in a fresh set; NaN where the pair is decided, or no number would do."""
    undecided = (pairs.adjusted[first, second] >= 1 - LEVEL) & ~pairs.equal[first, second]
    return np.where(undecided, pairs.seeds_needed(first, second), np.nan)
