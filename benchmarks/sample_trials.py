"""Trials on a part of the sample's training digits, which `sample_factors.py` and `sample_search.py` share.

Of each class's training digits a fifth is held out: a trial trains on the others and is evaluated on these by linear
probe and k-NN. The validation digits take no part. Datasets and runs are written below a folder of their own.
"""

import csv
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pretrain.data.sample.drawing import Style  # noqa: E402

HELD_OUT = 0.2
QUIET = ("monitor.knn_every=0", "monitor.spectra_every=0")


@dataclass(frozen=True)
class Trial:
    """A pretraining; a row of the table begins with these columns."""

    data: str
    recipe: str
    overrides: str
    """`key=value`, separated by spaces."""
    seed: int


@dataclass(frozen=True)
class Outcome:
    linear: float
    """Top-1 on the held-out training digits, per cent."""
    knn: float
    cpu_seconds: float
    """Of the pretraining, by the process's own clock; other work on the machine makes it larger."""
    spread: float | None
    """Of the embeddings in the last epoch: 1 is uniform on the sphere, 0 collapsed."""


COLUMNS = (*Trial.__dataclass_fields__, *Outcome.__dataclass_fields__)


def held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [N]: a fifth of each class, by a generator of its own."""
    rng, chosen = np.random.Generator(np.random.PCG64(1616)), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(HELD_OUT * len(members))]] = True
    return chosen


def write_trial_dataset(folder: Path, style: Style) -> None:
    """`folder` (absent before) as a dataset whose splits are the two parts of the training digits, in this style."""
    from PIL import Image

    from pretrain.data.betons.write import write_dataset
    from pretrain.data.sample.drawing import CLASSES, material, picture

    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    made_of = material()["train"]
    for number, (label, chosen) in enumerate(zip(made_of.labels, held_out(made_of.labels), strict=True)):
        path = staging / ("val" if chosen else "train") / CLASSES[label] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture("train", number, made_of, style)).save(path, quality=92, subsampling=0)
    write_dataset(staging, staging)
    try:
        staging.rename(folder)
    except OSError:  # another process was quicker
        shutil.rmtree(staging)


def run_trial(trial: Trial) -> Outcome:
    """Trains and evaluates, in this process; $WHITEBENCH_DATA and $WHITEBENCH_RUNS are set before."""
    from pretrain.evaluate.stage import run as evaluate
    from pretrain.evaluate.target import Options, Target
    from pretrain.recipe import load
    from pretrain.train import train
    from whitebench.files import BACKBONE
    from whitebench.records import stage_folder

    settings = [f"data.dataset={trial.data}", *QUIET, *trial.overrides.split(), f"seed={trial.seed}"]
    recipe = load(trial.recipe, settings)
    start = time.process_time()
    record = train(recipe)
    assert record is not None
    seconds = time.process_time() - start
    target, backbone = Target.of_recipe(recipe, record.id), stage_folder("pretrain", record.id) / BACKBONE
    linear = evaluate("linear", backbone, target, Options(recipe.evaluation.linear))
    knn = evaluate("knn", backbone, target, Options(recipe.evaluation.knn))
    assert linear is not None
    assert knn is not None
    spread = record.metrics.get("spread")
    for checkpoint in backbone.parent.glob("*.pt"):
        checkpoint.unlink()
    return Outcome(
        round(linear.metrics["top1"], 2),
        round(knn.metrics["top1"], 2),
        round(seconds, 1),
        None if spread is None else round(spread, 3),
    )


def run_pending(trials: Sequence[Trial], table: Path, folder: Path, styles: dict[str, Style], part: str) -> None:
    """Runs the trials that `table` lacks, and appends each outcome to it: stopped at any time, it continues there.

    Args:
        folder: of datasets and runs.
        styles: of the datasets that trials name.
        part: "i/n", the i-th (from 0) of every n trials; so n processes share them.
    """
    import torch

    os.environ.update(WHITEBENCH_DATA=str(folder / "data"), WHITEBENCH_RUNS=str(folder / "runs"))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    index, parts = map(int, part.split("/"))
    done = set(finished(table))
    for trial in [trial for trial in trials[index::parts] if trial not in done]:
        if not (folder / "data" / trial.data).exists():
            write_trial_dataset(folder / "data" / trial.data, styles[trial.data])
        outcome = run_trial(trial)
        append(table, trial, outcome)
        print(*asdict(trial).values(), "->", outcome, flush=True)


def append(table: Path, trial: Trial, outcome: Outcome) -> None:
    with open(table, "a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        writer.writerow([*asdict(trial).values(), *asdict(outcome).values()])


def rows(table: Path) -> Iterator[dict[str, str]]:
    if table.exists():
        with open(table, newline="") as file:
            yield from csv.DictReader(file)


def finished(table: Path) -> Iterator[Trial]:
    for row in rows(table):
        yield Trial(row["data"], row["recipe"], row["overrides"], int(row["seed"]))


def interval(values: Iterable[float]) -> str:
    """Mean and half the 95 % interval by Student's t, e.g. "81.2 ± 1.4 (3)"; one value has none."""
    from scipy.stats import t

    sample = np.array(list(values))
    if len(sample) < 2:
        return f"{sample.mean():.1f} (1)"
    half = t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / len(sample) ** 0.5
    return f"{sample.mean():.1f} ± {half:.1f} ({len(sample)})"
