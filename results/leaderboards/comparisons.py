"""Which differences on a leaderboard are real: every experiment against every other, and the ranks that follow."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from results.leaderboards import table_cells as grid
from results.leaderboards.run_table import HEADLINES
from results.leaderboards.significance import LEVEL, Pairs, compare
from results.leaderboards.warnings import BOUNDS, FEW_SEEDS

SHOWN = 30
"""Of a leaderboard, so many of the best are compared pair by pair in `comparisons.csv`; all count in the correction."""

BEST, TIE, WORSE, UNDECIDED = "best", "tie", "worse", "undecided"
STANDING = ["rank_low", "rank_high", "versus_best", "behind_best", "behind_best_ci95", "p_adjusted", "more_seeds"]
"""Columns of a leaderboard, by its first headline metric: the ranks that an experiment may have, and how it stands to
the best one: their difference in points, its 95 % half-width, p with Holm's correction over all pairs of the
leaderboard, and how many more seeds of both would probably decide a tie."""

COLUMNS = (
    *("dataset", "stage", "protocol", "metric", "a", "b", "test", "n", "difference", "ci95", "p", "p_adjusted"),
    *("verdict", "more_seeds", "a_config", "b_config", "a_eval_config", "b_eval_config"),
)
"""Of `comparisons.csv`. test: paired on n shared seeds, or Welch's of separate ones; verdict: a, b, tie or why none."""


def label(row: Any) -> str:
    """What tells an experiment apart for a reader."""
    return " ".join(part for part in (row["recipe"], row["variant"], row["eval_variant"]) if part)


def standing(runs: pd.DataFrame, table: pd.DataFrame, by: Sequence[str], metric: str) -> pd.DataFrame:
    """The columns STANDING for the rows of a leaderboard whose first row is the best, by its evaluations `runs`."""
    found: dict[str, Any] = {name: np.full(len(table), np.nan) for name in STANDING}
    found["versus_best"] = np.full(len(table), "", object)
    valued = np.flatnonzero(table[f"{metric}_mean"].notna())
    if len(valued):
        pairs = compare(_values(runs, table.iloc[valued], by, metric))
        found["rank_low"][valued], found["rank_high"][valued] = pairs.ranks()
        others, rest = list(range(1, len(valued))), valued[1:]
        found["versus_best"][valued] = [BEST, *(_verdict(pairs, 0, j) for j in others)]
        for name, array in (
            ("behind_best", pairs.difference),
            ("behind_best_ci95", pairs.half_width),
            ("p_adjusted", pairs.adjusted),
        ):
            found[name][rest] = array[0, 1:]
        found["more_seeds"][rest] = _more_seeds(pairs, [0] * len(others), others)
    columns = pd.DataFrame(found, index=table.index)
    return columns.astype(dict.fromkeys(("rank_low", "rank_high", "more_seeds"), "Int64"))


def pairwise(runs: pd.DataFrame, table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The pairs of a leaderboard's best experiments, in its order: the rows of `comparisons.csv`, for each headline."""
    rows: list[dict[str, Any]] = []
    board = {key: str(runs[key].iloc[0]) for key in ("dataset", "stage", "protocol")}
    for metric in HEADLINES[board["stage"]]:
        valued = table[table[f"{metric}_mean"].notna()]
        if len(valued) > 1:
            rows += [{**board, "metric": metric, **row} for row in _pair_rows(runs, valued, by, metric)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "Int64", "more_seeds": "Int64"})


def marks(runs: pd.DataFrame, table: pd.DataFrame, by: Sequence[str], metric: str, columns: int = 1) -> list[str]:
    """How papers would mark the rows of a column: the best and the second best, each only if it is significantly better
    than the next one, also when all `columns` of the table are looked at, and both have FEW_SEEDS pretrainings or more.
    Bounds (supervised, random) do not compete.
    """
    found = [""] * len(table)
    rivals = [i for i, row in enumerate(table.to_dict("records")) if row["method"] not in BOUNDS]
    rivals = [i for i in rivals if pd.notna(table[f"{metric}_mean"].iloc[i])]
    if len(rivals) > 1:
        pairs = compare(_values(runs, table.iloc[rivals], by, metric))
        better = pairs.better(columns) & (pairs.n >= FEW_SEEDS)
        order = sorted(range(len(rivals)), key=lambda k: -table[f"{metric}_mean"].iloc[rivals[k]])
        for mark, (one, next_) in zip((grid.BEST, grid.SECOND), itertools.pairwise(order)):
            found[rivals[one]] = mark if better[one, next_] else ""
    return found


def _pair_rows(runs: pd.DataFrame, table: pd.DataFrame, by: Sequence[str], metric: str) -> list[dict[str, Any]]:
    pairs = compare(_values(runs, table, by, metric))
    shown = table.head(SHOWN).to_dict("records")
    first, second = (list(map(int, places)) for places in np.triu_indices(len(shown), 1))
    more = _more_seeds(pairs, first, second)
    words = {WORSE: "a", BEST: "b"}
    return [
        {
            "a": label(shown[i]),
            "b": label(shown[j]),
            **{f"{side}_{key}": row[key] for side, row in (("a", shown[i]), ("b", shown[j])) for key in by[-2:]},
            "test": "paired" if pairs.paired[i, j] else "Welch" if np.isfinite(pairs.error[i, j]) else "none",
            "n": pairs.n[i, j],
            "difference": pairs.difference[i, j],
            "ci95": pairs.half_width[i, j],
            "p": pairs.p[i, j],
            "p_adjusted": pairs.adjusted[i, j],
            "verdict": words.get(verdict := _verdict(pairs, i, j), verdict),
            "more_seeds": more[place],
        }
        for place, (i, j) in enumerate(zip(first, second, strict=True))
    ]


def _values(runs: pd.DataFrame, table: pd.DataFrame, by: Sequence[str], metric: str) -> Any:
    """[experiments, seeds]: the mean of each pretraining's evaluations; NaN where a seed was not run.

    A pretraining whose seed is not known shares it with none.
    """
    seed = runs.seed.astype("string").fillna("of " + runs.parent)
    each = runs.assign(of=seed).groupby([*by, "of", "parent"])[metric].mean()
    values = each.groupby(level=[*by, "of"]).mean().unstack("of")
    return values.reindex(pd.MultiIndex.from_frame(table[list(by)])).to_numpy(float)


def _verdict(pairs: Pairs, i: int, j: int) -> str:
    """How j stands to i."""
    if np.isnan(pairs.p[i, j]):
        return f"{UNDECIDED}: {'one pretraining' if np.isnan(pairs.error[i, j]) else 'no spread'}"
    if pairs.adjusted[i, j] >= 1 - LEVEL:
        return TIE
    return WORSE if pairs.difference[i, j] > 0 else BEST


def _more_seeds(pairs: Pairs, first: list[int], second: list[int]) -> Any:
    """Beyond those that there are; NaN where the pair is decided, or no number would do."""
    needed = pairs.seeds_needed(first, second)
    tie = pairs.adjusted[first, second] >= 1 - LEVEL
    return np.where(tie, np.maximum(needed - pairs.n[first, second], 1), np.nan)
