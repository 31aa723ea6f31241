"""A sweep of 10,000 cells on a simulated cluster of a thousand nodes: whether anything is lost or run twice.

python benchmarks/cluster_sim.py [--cells 10000] [--jobs 2] [--seed 0] [--hidden-limits] [--work DIR]

The launcher's commands, the submission in waves, the requeueing and the records are the project's own code; SLURM's
commands, the time and the jobs' work are simulated (tests/support/simulated_slurm). Exit code 1 where a job was lost,
or submitted or run twice.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.simulated_slurm.controller import Settings
from tests.support.simulated_slurm.simulation import STAGES, Cost, report, simulated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=2, help="of each cell (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that happens by chance")
    parser.add_argument("--hidden-limits", action="store_true", help="accounting does not know the limits")
    parser.add_argument("--work", type=Path, help="an empty folder for all that this leaves; default: a temporary one")
    options = parser.parse_args()
    settings = replace(Settings(), limits_known=not options.hidden_limits)
    with TemporaryDirectory() as folder:
        work = (options.work or Path(folder) / "work").absolute()
        work.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        with simulated(work, options.cells, settings, options.seed, STAGES[: options.jobs]) as simulation:
            show("--dry-run", simulation.launcher("--cluster", "site", "--dry-run"))
            show("launch", simulation.launcher("--cluster", "site"))
            simulation.run(until=3.0)
            show("--status", simulation.launcher("--cluster", "site", "--status"))
            simulation.run()
            print(report(simulation))
            print(f"took {time.perf_counter() - began:.0f} s")
            twice = simulation.controller.submitted_twice or simulation.run_twice()
            return int(bool(simulation.lost() or twice or simulation.tables() != "done"))


def show(command: str, cost: Cost) -> None:
    print(f"{command:10} {cost.wall_s:6.1f} s, {cost.cpu_s:6.1f} s of CPU, {cost.peak_mb:4.0f} MB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
