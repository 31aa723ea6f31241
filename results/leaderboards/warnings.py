"""What makes one doubt a row of a leaderboard, or read it in another way. Flagged rows stay in the table."""

from typing import Any

import pandas as pd

from results.leaderboards import recipe_papers as recipes
from results.leaderboards.published import FEW_SEEDS
from results.leaderboards.run_table import UNTRAINED

FOREIGN, MISSING = "foreign", "missing"
"""`pretrain_status` of an evaluation whose pretraining has no record, which is foreign or was not found."""

BOUNDS = ("supervised", UNTRAINED)
"""Methods that compete with none."""
CODE = {"pretrain_code": "pretrain_git", "code": "git"}
"""Columns with the code that a result depends on, and those to go by where a record does not say: its commit."""


def flags(row: dict[str, Any], bound: dict[Any, float], headline: str) -> list[str]:
    """Of an experiment, by its row in the leaderboard.

    `bound` holds the best value of the untrained network by (backbone, stem), in the leaderboard's column `headline`.
    """
    floor = bound.get((row["backbone"], row["stem"]))
    total, pretrained = row["n_eval"] + row["n_no_value"], row["n_trained"]
    candidates = {
        "untrained": row["method"] == UNTRAINED,
        "reconstruction": recipes.is_reconstruction(row["recipe"]),
        "not above random": floor is not None and row["method"] != UNTRAINED and row[headline] <= floor,
        f"{row['n_failed']} failed": row["n_failed"] > 0,
        f"{row['n_no_value']} of {total} without a value": row["n_no_value"] > 0,
        f"{row['n_collapsed']} of {pretrained} collapsed": row["n_collapsed"] > 0,
        "one pretraining": row["n_pretrain"] == 1,
        f"only {row['n_pretrain']} pretrainings": 1 < row["n_pretrain"] < FEW_SEEDS,
        "deviates from the protocol": row["deviations"] != "",
    }
    return [name for name, holds in candidates.items() if holds]


def doubtful(runs: pd.DataFrame, by: list[str]) -> pd.Series:
    """Of each experiment (group of `by`), by the evaluations behind it: a list of flags."""
    resumed = runs.resumed_under_other_code.fillna(False) | runs.eval_resumed_under_other_code.fillna(False)
    dirty = runs.dirty.fillna(False) | runs.pretrain_dirty.fillna(False)
    status = runs.pretrain_status
    single = pd.DataFrame(
        {
            "foreign checkpoint": status == FOREIGN,
            "pretraining's record is missing": status == MISSING,
            "pretraining not done": ~status.isin(["done", FOREIGN, MISSING]),
            "uncommitted code": dirty,
            "resumed under other code": resumed,
            "another record contradicts it": runs.contradicts.fillna(False),
        }
    )
    any_run = single.astype(bool).groupby([runs[key] for key in by]).any()
    code = {name: runs[name].where(runs[name] != "", runs[git]) for name, git in CODE.items()}
    versions = runs.assign(**code).groupby(by)[list(CODE)].nunique() > 1
    any_run["several versions of the code"] = versions.any(axis=1)
    reasons = [[str(name) for name, holds in zip(any_run.columns, row) if holds] for row in any_run.to_numpy()]
    return pd.Series(reasons, index=any_run.index)
