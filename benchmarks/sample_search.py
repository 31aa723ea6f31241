"""Search for the settings of the sample's recipes: the same grid for each method, on a part of the training digits.

python benchmarks/sample_search.py FOLDER [--recipes sample/cwrgp,sample/intl] [--long | --own] [--part 0/2] [--show]

Each recipe is tried with its own learning rate, three times it and a third of it, one seed each, trained on four fifths
of the training digits for as many steps as 30 epochs of all have, and evaluated on the others (see `sample_trials.py`);
each has its first trial before any has its second. `--long` is the second round: a recipe whose best accuracy is below
60 % (an untrained network has 37 to 48) is tried once more, with its best rate and four times as many steps. `--own` is
the third: what is still below has up to four trials with settings of its own, listed in `OWN`. Results are appended to
`benchmarks/sample_search.csv`; trials that are in it are not run again, so that a search can be continued at any time.
A row is the trial of a recipe as it then was. `--show` prints a table of each recipe's best trial.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.sample_trials import HELD_OUT, Trial, finished, rows, run_pending  # noqa: E402
from pretrain.data.sample.drawing import STYLE  # noqa: E402

DATA = "sample-2"
TABLE = Path(__file__).with_suffix(".csv")
RATES = (1.0, 3.0, 1 / 3)
"""Factors of the recipe's learning rate."""
EPOCHS, LONG_EPOCHS = (round(epochs / (1 - HELD_OUT)) for epochs in (30, 120))
"""Of four fifths of the digits."""
LONG_BELOW = 60.0
"""Best linear accuracy of a recipe that the second round trains for longer."""
UNTRAINED = ("sample/random", "sample/random-resnet18", "sample/random-vit", "sample/random-vit-patch4")
_WEIGHTS = "method.invariance_weight={} method.length_weight={} method.sphere_weight={}"
OWN = {
    "sample/dino": (f"optimizer.lr=0.0005 batch=64 schedule.epochs={LONG_EPOCHS} method.momentum=0.97",),
    "sample/mae": (f"optimizer.lr=0.001 batch=64 schedule.epochs={EPOCHS} method.normalise=false",),
    "sample/tregs": (
        f"optimizer.lr=0.001 batch=64 schedule.epochs={EPOCHS} {_WEIGHTS.format(1.0, 0.2, 0.2)}",
        f"optimizer.lr=0.001 batch=64 schedule.epochs={EPOCHS} {_WEIGHTS.format(1.0, 1.0, 0.1)}",
        f"optimizer.lr=0.001 batch=64 schedule.epochs={EPOCHS} {_WEIGHTS.format(1.0, 1.0, 1.0)}",
        f"optimizer.lr=0.003 batch=64 schedule.epochs={EPOCHS} {_WEIGHTS.format(1.0, 1.0, 0.1)}",
    ),
}
"""The third round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of datasets and runs")
    parser.add_argument("--recipes", help="names, separated by commas; default: all of the sample")
    rounds = parser.add_mutually_exclusive_group()
    rounds.add_argument("--long", action="store_true", help="the second round")
    rounds.add_argument("--own", action="store_true", help="the third round")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="the I-th of N processes that share the trials")
    parser.add_argument("--show", action="store_true", help="print the table, run nothing")
    options = parser.parse_args()
    names = options.recipes.split(",") if options.recipes else _recipes()
    if options.show:
        print(_markdown(names))
    else:
        by_rate = zip(*(_trials(name) for name in names), strict=True)
        trials = [trial for of_rate in by_rate for trial in of_rate]
        if options.long:
            trials = [_longer(trial) for trial in _best_trials(trials) if trial.recipe not in UNTRAINED]
        if options.own:
            trials = [Trial(DATA, name, overrides, 0) for name in names for overrides in OWN.get(name, ())]
        run_pending(trials, TABLE, options.folder, {DATA: STYLE}, options.part)


def _recipes() -> list[str]:
    from pretrain.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith("sample/")]


def _trials(name: str) -> list[Trial]:
    """The settings are written out, so that a row keeps its meaning when the recipe takes other ones."""
    from pretrain.recipe import load

    recipe = load(name)
    if name in UNTRAINED:
        return [Trial(DATA, name, "", seed) for seed in range(len(RATES))]
    fixed = f"batch={recipe.batch} schedule.epochs={EPOCHS}"
    return [Trial(DATA, name, f"optimizer.lr={recipe.optimizer.lr * rate:.2g} {fixed}", 0) for rate in RATES]


def _best_trials(trials: list[Trial]) -> list[Trial]:
    """The best of each recipe's trials, where all are done and none reaches `LONG_BELOW`."""
    accuracy = {key: float(row["linear"]) for key, row in zip(finished(TABLE), rows(TABLE), strict=True)}
    best = []
    for name in {trial.recipe: None for trial in trials}:
        of_recipe = [trial for trial in trials if trial.recipe == name]
        if all(trial in accuracy for trial in of_recipe) and max(map(accuracy.__getitem__, of_recipe)) < LONG_BELOW:
            best.append(max(of_recipe, key=accuracy.__getitem__))
    return best


def _longer(trial: Trial) -> Trial:
    overrides = trial.overrides.replace(f"schedule.epochs={EPOCHS}", f"schedule.epochs={LONG_EPOCHS}")
    return replace(trial, overrides=overrides)


def _markdown(names: list[str]) -> str:
    """A table of each recipe's best trial, the best recipe first."""
    of_recipe = {name: [row for row in rows(TABLE) if row["recipe"] == name] for name in names}
    best = [(max(trials, key=_linear), len(trials)) for trials in of_recipe.values() if trials]
    lines = ["| recipe, best of its trials | trials | linear | k-NN | settings |", "|---|---|---|---|---|"]
    for row, count in sorted(best, key=lambda pair: -_linear(pair[0])):
        lines.append(
            f"| `{row['recipe']}` | {count} | {_linear(row):.1f} | {float(row['knn']):.1f} "
            f"| {row['overrides'] or 'untrained, the best seed'} |"
        )
    missing = [name for name, trials in of_recipe.items() if not trials]
    return "\n".join([*lines, *([f"no trial yet: {', '.join(missing)}"] if missing else [])])


def _linear(row: dict[str, str]) -> float:
    return float(row["linear"])


if __name__ == "__main__":
    main()
