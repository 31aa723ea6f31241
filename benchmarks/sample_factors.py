"""Which property of the sample keeps methods from learning: one factor at a time, on a part of the training digits.

python benchmarks/sample_factors.py FOLDER [--seeds 0,1,2] [--recipes A,B] [--part 0/2] [--show]

The base is version 2 of the sample with the settings of its recipes. Each other row changes one factor: the background
(a gray of its own for each picture; a soft photo crop, which makes version 1), the tint, the position, the sizes, the
size of the views, the number of steps. Linear accuracy is that on the fifth of the training digits that is held out
(see `sample_trials.py`). Results are appended to FOLDER/factors.csv; trials that are in it are not run again. `--show`
prints the table as Markdown.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.sample_trials import Trial, interval, rows, run_pending  # noqa: E402
from pretrain.data.sample.drawing import STYLE, VERSION_1  # noqa: E402
from whitebench.errors import parse_seeds  # noqa: E402

RECIPES = ("sample/random", "sample/simsiam", "sample/byol", "sample/cwrgp")
STYLES = {
    "sample-2": STYLE,
    "gray-each": replace(STYLE, background="gray"),
    "sample-1": VERSION_1,
    "white": replace(STYLE, tint="white"),
    "centred": replace(STYLE, centred=True),
    "sizes": replace(STYLE, sides=(32, 60)),
}
"""Name of the dataset that a factor makes, and the style of its pictures."""
FACTORS: dict[str, tuple[str, str]] = {
    "version 2": ("sample-2", ""),
    "background: a gray for each picture": ("gray-each", ""),
    "background: a soft photo for each picture (version 1)": ("sample-1", ""),
    "tint: white in all pictures": ("white", ""),
    "position: centred": ("centred", ""),
    "sizes: 32 to 60 pixels": ("sizes", ""),
    "steps: a third": ("sample-2", "{third}"),
    "views: 48 pixels": ("sample-2", "data.views.0.size=48"),
}
"""What is changed, to its dataset and overrides."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=parse_seeds, default=(0, 1, 2), metavar="0,1,2")
    parser.add_argument(
        "--recipes", type=lambda text: tuple(text.split(",")), default=RECIPES, metavar="A,B", help="only these"
    )
    parser.add_argument("--part", default="0/1", metavar="I/N", help="the I-th of N processes that share the trials")
    parser.add_argument("--show", action="store_true", help="print the table, run nothing")
    options = parser.parse_args()
    table = options.folder / "factors.csv"
    if not options.show:
        run_pending(_trials(options.seeds, options.recipes), table, options.folder, STYLES, options.part)
    print(_markdown(table))


def _trials(seeds: tuple[int, ...], recipes: tuple[str, ...]) -> list[Trial]:
    """By seed: stopped early, every factor has as many."""
    return [
        Trial(data, recipe, _overrides(recipe, text), seed)
        for seed in seeds
        for data, text in FACTORS.values()
        for recipe in recipes
        if recipe != "sample/random" or "{third}" not in text
    ]


def _overrides(recipe: str, text: str) -> str:
    from pretrain.recipe import load

    return text.replace("{third}", f"schedule.epochs={load(recipe).schedule.epochs // 3}")


def _markdown(table: Path) -> str:
    """Mean linear accuracy, half the 95 % interval and the number of seeds, of each factor and recipe."""
    lines = ["| factor | " + " | ".join(RECIPES) + " |", "|---" * (len(RECIPES) + 1) + "|"]
    measured = list(rows(table))
    for name, (data, text) in FACTORS.items():
        cells = []
        for recipe in RECIPES:
            key = (data, recipe, _overrides(recipe, text))
            values = [float(row["linear"]) for row in measured if (row["data"], row["recipe"], row["overrides"]) == key]
            cells.append(interval(values) if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
