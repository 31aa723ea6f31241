"""python results/recipe_list.py, or python -m pretrain --list: recipes with published and measured values; methods."""

import argparse
import inspect
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from pretrain.method import find_method, method_names
from pretrain.recipe import Recipe, load, recipe_names
from results.leaderboards.collect import Collection, collect
from results.leaderboards.run_table import flat, setting, views_text
from whitebench.errors import run_command
from whitebench.records import runs_root

PUBLISHED = Path(__file__).parent / "records"
HERE = ("device", "data_hash", "data.placement")
"""Settings that a recipe leaves to the machine and its data."""
CITATION = re.compile(r'"([^"]+)"(?:, ([\w-]+(?: [\w-]+)* \d{4}))?(?: \((arXiv [\d.]+\d)\))?')
"""The title of a paper, where it appeared, and its number, as the heads of `pretrain/methods` have them."""
LONGEST_TITLE = 48
"""Of a recipe's paper, in characters; the rest is in its file."""


def recipe_table(roots: Sequence[Path] | None = None) -> str:
    """One line per recipe. Measured values are those of runs with all of the recipe's settings and its protocols.

    Args:
        roots: folders of runs; by default the user's, and the published records.
    """
    from tabulate import tabulate

    runs = collect([root for root in roots or (runs_root(), PUBLISHED) if root.is_dir()])
    heads = ("recipe", "method", "backbone", "epochs", "batch", "views", "paper", "paper reports", "measured here")
    table = [
        (
            name,
            recipe.method_name,
            recipe.network.backbone,
            recipe.schedule.epochs,
            recipe.batch,
            _views(recipe),
            _cut(recipe.paper.title),
            _reported(recipe) + (" (reconstruction)" if recipe.paper.reconstruction else ""),
            _measured(recipe, runs),
        )
        for name, recipe in ((name, load(name)) for name in recipe_names())
    ]
    return tabulate(table, heads, tablefmt="plain", disable_numparse=True)


def method_table() -> str:
    """One line per method: its name here, that of its authors, and its paper, as the head of its file cites it."""
    from tabulate import tabulate

    table = [(name, *_name_and_paper(name)) for name in method_names()]
    return tabulate(table, ("method", "name", "paper"), tablefmt="plain", disable_numparse=True)


def _name_and_paper(method: str) -> tuple[str, str]:
    module = inspect.getmodule(find_method(method))
    text = " ".join(((module and module.__doc__) or "").split())
    name = text.partition(":")[0] if ":" in text else ""
    cited = CITATION.search(text)
    if cited is not None:
        return name, ", ".join(part for part in cited.groups() if part)
    number = re.search(r"arXiv [\d.]+\d", text)
    return name, number[0] if number else ""


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TITLE else text[: LONGEST_TITLE - 3].rstrip(" ,(") + "..."


def _views(recipe: Recipe) -> str:
    return views_text([{"count": group.count, "size": group.size} for group in recipe.data.views]) or ""


def _reported(recipe: Recipe) -> str:
    return ", ".join(f"{metric.removesuffix('_top1')} {value:g}" for metric, value in recipe.paper.reported.items())


def _measured(recipe: Recipe, runs: Collection) -> str:
    """Mean top-1, and the number of pretrainings, of each evaluation that the recipe names."""
    own_settings = {key: value for key, value in flat(setting(recipe.identity())).items() if key not in HERE}
    same = {digest for digest, settings in runs.texts.items() if _comparable(settings) == own_settings}
    parents = {
        id for (stage, id), summary in runs.summaries.items() if stage == "pretrain" and summary.facts["config"] in same
    }
    parts = []
    for stage, protocol in (("linear", recipe.evaluation.linear), ("knn", recipe.evaluation.knn)):
        values: dict[str, list[float]] = {}
        for summary in runs.evaluations:
            facts = summary.facts
            fits = summary.stage == stage and facts["protocol"] == protocol and facts["parent"] in parents
            if fits and summary.status == "done" and facts["top1"] is not None and not facts["deviations"]:
                values.setdefault(facts["parent"], []).append(facts["top1"])
        if values:
            means = [statistics.mean(of_parent) for of_parent in values.values()]
            parts.append(f"{stage} {statistics.mean(means):.1f} (n={len(means)})")
    return ", ".join(parts)


def _comparable(settings: str) -> dict[str, str]:
    return {key: value for key, value in json.loads(settings).items() if key not in HERE}


def main() -> None:
    argparse.ArgumentParser(
        description="List the recipes with their papers, published values and those measured here, and the methods."
    ).parse_args()
    print(recipe_table(), method_table(), sep="\n\n")


if __name__ == "__main__":
    run_command(main)
