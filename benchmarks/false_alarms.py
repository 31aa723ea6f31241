"""How often leaderboards call equal methods different, and planted differences real (goal: at most 5 %; as promised).

python benchmarks/statistics.py [--boards 2000] [--command-boards 20]

Accuracies are whole counts of 360 test images. `compare` is called directly, and for fewer boards the whole command:
records are written, `results/aggregate.py` reads them, and its comparisons.csv is counted.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from results.aggregate import aggregate  # noqa: E402
from results.leaderboards.intervals import LEVEL  # noqa: E402
from results.leaderboards.significance import compare, power_of, seeds_for  # noqa: E402
from tests.support.planted import IMAGES, write_boards  # noqa: E402

SEEDS, METHODS = (2, 3, 5), (3, 9, 18)
MIDDLE = 240.0
SPREADS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "0.3 images": lambda k, draw: np.full(k, 0.3),
    "1.5 images": lambda k, draw: np.full(k, 1.5),
    "8 images": lambda k, draw: np.full(k, 8.0),
    "one 3 x larger": lambda k, draw: np.r_[9.0, np.full(k - 1, 3.0)],
    "one 10 x larger": lambda k, draw: np.r_[20.0, np.full(k - 1, 2.0)],
    "log-normal": lambda k, draw: 3 * np.exp(0.7 * draw.normal(size=k)),
}
"""Standard deviations of a method's pretrainings, by name; they differ from method to method in the last three."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", type=int, default=2000, help="leaderboards of each kind (default: %(default)s)")
    parser.add_argument(
        "--command-boards", type=int, default=20, help="of each kind, through the command (default: %(default)s)"
    )
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    print(f"false alarms, % of {options.boards} leaderboards of equal methods (counts of {IMAGES} images)")
    print(f"{'seeds':>6}{'methods':>9}" + "".join(f"{name:>16}" for name in SPREADS))
    for seeds, methods in _sizes():
        rates = [_false_alarms(options.boards, seeds, methods, spread, draw) for spread in SPREADS.values()]
        print(f"{seeds:6}{methods:9}" + "".join(f"{100 * rate:16.1f}" for rate in rates), flush=True)
    print("\npower, % of leaderboards on which a pair planted so far apart is found, with the seeds that are proposed")
    print(f"{'methods':>8}{'distance':>10}{'seeds':>7}{'promised':>10}{'found':>8}")
    for methods in METHODS:
        for effect in (1.5, 3.0, 6.0):
            _power(options.boards // 4, methods, effect, draw)
    if options.command_boards:
        _through_the_command(options.command_boards, draw)


def _sizes() -> Iterator[tuple[int, int]]:
    yield from ((seeds, methods) for seeds in SEEDS for methods in METHODS)


def _false_alarms(
    boards: int,
    seeds: int,
    methods: int,
    spread: Callable[[int, np.random.Generator], np.ndarray],
    draw: np.random.Generator,
) -> float:
    alarms = 0
    for _ in range(boards):
        deviations = spread(methods, draw)[:, None]
        counts = np.clip(np.round(MIDDLE + draw.normal(0, 1, (methods, seeds)) * deviations), 0, IMAGES)
        alarms += bool(compare(100 * counts / IMAGES, 100 / IMAGES).better().any())
    return alarms / boards


def _power(boards: int, methods: int, effect: float, draw: np.random.Generator) -> None:
    """One method is `effect` standard deviations better than the others, each with the seeds proposed for that."""
    alpha = (1 - LEVEL) / (methods * (methods - 1) / 2)
    seeds = int(seeds_for([effect], alpha)[0])
    promised, detected = float(power_of([effect], [seeds], alpha)[0]), 0
    for _ in range(boards):
        values = draw.normal(0, 2.0, (methods, seeds))
        values[0] += 2.0 * effect
        detected += bool(compare(60 + values).better()[0, 1])
    print(f"{methods:8}{effect:7.1f} sd{seeds:7}{100 * promised:10.1f}{100 * detected / boards:8.1f}", flush=True)


def _through_the_command(boards: int, draw: np.random.Generator) -> None:
    print(f"\nthrough results/aggregate.py, {boards} leaderboards of equal methods (sd 3 images): false alarms, %")
    total = 0
    for seeds, methods in _sizes():
        with tempfile.TemporaryDirectory() as folder:
            runs, out = Path(folder, "runs"), Path(folder, "out")
            write_boards(runs, boards, seeds, [MIDDLE] * methods, 3.0, draw)
            aggregate([runs], out)
            pairs = pd.read_csv(out / "comparisons.csv")
        alarms = int(pairs.verdict.isin(["a", "b"]).groupby(pairs.dataset).any().sum())
        total += alarms
        print(f"{seeds:6}{methods:9}{100 * alarms / boards:16.1f}", flush=True)
    all_boards = boards * len(SEEDS) * len(METHODS)
    error = 100 * math.sqrt(0.05 * 0.95 / all_boards)
    print(f"together {100 * total / all_boards:.1f} (standard error at 5 %: {error:.1f})")


if __name__ == "__main__":
    main()
