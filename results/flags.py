"""What makes one doubt a row of a leaderboard, or read it in another way. Flagged rows stay in the table."""

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from results.command import UserError

RECIPES = Path(__file__).parents[1] / "pretrain" / "recipes"
FOREIGN, MISSING = "foreign", "missing"
"""`pretrain_status` of an evaluation whose pretraining has no record, because it is not ours, or was not found."""

UNTRAINED = "random"


def flags(row: dict[str, Any], bound: dict[Any, float], headline: str) -> list[str]:
    """Of an experiment, by its row in the leaderboard.

    `bound` holds the best value of the untrained network by (backbone, stem), in the leaderboard's column `headline`.
    """
    floor = bound.get((row["backbone"], row["stem"]))
    candidates = {
        "untrained": row["method"] == UNTRAINED,
        "reconstruction": is_reconstruction(row["recipe"]),
        "not above random": floor is not None and row["method"] != UNTRAINED and row[headline] <= floor,
        f"{row['n_failed']} failed": row["n_failed"] > 0,
        "without a value": row["n_pretrain"] == 0,
        "deviates from the protocol": row["deviations"] != "",
    }
    return [name for name, holds in candidates.items() if holds]


def doubtful(runs: pd.DataFrame, by: list[str]) -> pd.Series:
    """Of each experiment (group of `by`), by the evaluations behind it: a list of flags."""
    dirty = runs.dirty.fillna(False) | runs.pretrain_dirty.fillna(False)
    status = runs.pretrain_status
    single = pd.DataFrame(
        {
            "collapsed": runs.collapsed.fillna(False),
            "foreign checkpoint": status == FOREIGN,
            "pretraining's record is missing": status == MISSING,
            "pretraining not done": ~status.isin(["done", FOREIGN, MISSING]),
            "uncommitted code": dirty,
        }
    )
    any_run = single.astype(bool).groupby([runs[key] for key in by]).any()
    versions = runs.groupby(by)[["pretrain_git", "git", "method_hash"]].nunique() > 1
    any_run["several versions of the code"] = versions.pretrain_git | versions.git
    any_run["several versions of the method"] = versions.method_hash
    found = [[str(name) for name, holds in zip(any_run.columns, row) if holds] for row in any_run.to_numpy()]
    return pd.Series(found, index=any_run.index)


@cache
def is_reconstruction(recipe: str) -> bool:
    """Whether the suite's recipe of that name says that its paper's exact method or settings are not known.

    Raises:
        UserError: the recipe's file is not readable as YAML.
    """
    path = RECIPES / f"{recipe}.yaml"
    if path not in set(RECIPES.rglob("*.yaml")):
        return False
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        return False
    paper = content.get("paper")
    if isinstance(paper, dict) and "reconstruction" in paper:
        return bool(paper["reconstruction"])
    return is_reconstruction(str(content.get("extends")))
