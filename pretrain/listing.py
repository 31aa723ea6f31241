"""python -m pretrain --list: the recipes, what their papers report, and what this suite has measured so far."""

import csv
import statistics
from collections.abc import Iterable
from pathlib import Path

from pretrain.recipe import Recipe, load, recipe_names
from results.rows import views_text

RUNS = Path(__file__).parents[1] / "results" / "runs.csv"
"""Written by results/aggregate.py: a row an evaluation."""


def recipe_table(runs: Path = RUNS) -> str:
    """A line a recipe. Measured values are those of runs with the recipe's own settings and evaluation protocols."""
    from tabulate import tabulate

    rows = _read(runs)
    heads = ("recipe", "method", "backbone", "epochs", "batch", "views", "paper reports", "measured here")
    table = [
        (
            name,
            recipe.method_name,
            recipe.network.backbone,
            recipe.schedule.epochs,
            recipe.batch,
            _views(recipe),
            _reported(recipe) + (" (reconstruction)" if recipe.paper.reconstruction else ""),
            _measured(recipe, rows),
        )
        for name, recipe in ((name, load(name)) for name in recipe_names())
    ]
    return tabulate(table, heads, tablefmt="plain", disable_numparse=True)


def _read(runs: Path) -> list[dict[str, str]]:
    if not runs.exists():
        return []
    with open(runs, newline="") as file:
        return [row for row in csv.DictReader(file) if row["status"] == "done"]


def _views(recipe: Recipe) -> str:
    return views_text([{"count": group.count, "size": group.size} for group in recipe.data.views]) or ""


def _reported(recipe: Recipe) -> str:
    return ", ".join(f"{metric.removesuffix('_top1')} {value:g}" for metric, value in recipe.paper.reported.items())


def _measured(recipe: Recipe, rows: Iterable[dict[str, str]]) -> str:
    """Mean top-1, and the number of pretrainings, of each evaluation that the recipe names."""
    epochs = recipe.schedule.epochs
    own = {
        "recipe": recipe.name,
        "method": recipe.method_name,
        "backbone": recipe.network.backbone,
        "epochs": str(epochs),
        "batch": str(recipe.batch),
        "views": _views(recipe),
    }
    found = []
    for stage, protocol in (("linear", recipe.evaluation.linear), ("knn", recipe.evaluation.knn)):
        wanted = {**own, "stage": stage, "protocol": protocol}
        of_parent: dict[str, list[float]] = {}
        for row in rows:
            if row["top1"] and all(row[key] == value for key, value in wanted.items()):
                of_parent.setdefault(row["parent"], []).append(float(row["top1"]))
        if of_parent:
            means = [statistics.mean(values) for values in of_parent.values()]
            found.append(f"{stage} {statistics.mean(means):.1f} (n={len(means)})")
    return ", ".join(found)
