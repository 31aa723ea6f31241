"""How soon the commands answer, and in how much memory.

python benchmarks/cli.py [--repeats 5] [--only TEXT]

--status of the sample sweep needs that it was launched; --status of 10,000 cells reads made-up runs in a temporary
folder, half of them done. Goals: --help and --status in 0.5 s, --dry-run of 1,000 cells in 5 s, of 10,000 cells in
10 s and 500 MB, --status of 10,000 cells in 2 s. The CPU time says more than the wall time on a busy machine.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from slurm.graph import Graph, Job, Resources
from slurm.stages import LEADERBOARD, Task
from whitebench.records import RECORD, Record

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = "slurm/launch_sweep.py"
DRY_RUN = f"{LAUNCH} --dry-run --cluster local sweep.recipes=[sample/intl] --seeds "
MANY = 10_000
COMMANDS = {
    # title: (command, goal in seconds)
    "pretrain --help": ("-m pretrain --help", 0.5),
    "pretrain.data --help": ("-m pretrain.data --help", 0.5),
    "pretrain.evaluate --help": ("-m pretrain.evaluate --help", 0.5),
    "coco_det.py --help": ("transfer/coco_det.py --help", 0.5),
    "aggregate.py --help": ("results/aggregate.py --help", 0.5),
    "whitebench --help": ("-m whitebench.cli --help", 0.5),
    "launch_sweep.py --help": (f"{LAUNCH} --help", 0.5),
    "launch_sweep.py --status, the sample": (f"{LAUNCH} --status --cluster local", 0.5),
    "launch_sweep.py --status, 10,000 cells": (f"{LAUNCH} {{many}} --status --cluster local", 2.0),
    "launch_sweep.py --dry-run, the sample": (f"{LAUNCH} --dry-run --cluster local", 5.0),
    "launch_sweep.py --dry-run, 1,000 cells": (DRY_RUN + ",".join(map(str, range(1000))), 5.0),
    "launch_sweep.py --dry-run, 10,000 cells": (DRY_RUN + ",".join(map(str, range(MANY))), 10.0),
}


class Cost(NamedTuple):
    wall_s: float
    cpu_s: float
    peak_mb: float
    code: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="times each command is run (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only commands whose title has this in it")
    options = parser.parse_args()
    chosen = {title: entry for title, entry in COMMANDS.items() if options.only in title}
    print(f"n = {options.repeats}, after one run to warm up; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'command':42} {'median':>8} {'fastest':>8} {'CPU':>8} {'memory':>8} {'goal':>6}")
    report("python itself", measured(["-c", "pass"], options.repeats), None)
    with TemporaryDirectory() as folder:
        sweep = Path(folder) / "many.yaml"
        if any("{many}" in command for command, _ in chosen.values()):
            # in a process of its own: one that is started inherits the peak memory of this one
            multiprocessing.get_context("spawn").Pool(1).apply(make_up_sweep, (sweep,))
        for title, (command, goal) in chosen.items():
            runs = Path(folder) / "runs" if "{many}" in command else None
            report(title, measured(command.format(many=sweep).split(), options.repeats, runs), goal)


def report(title: str, costs: list[Cost], goal: float | None) -> None:
    wall, cpu = median([cost.wall_s for cost in costs]), median([cost.cpu_s for cost in costs])
    memory, fastest = max(cost.peak_mb for cost in costs), min(cost.wall_s for cost in costs)
    note = f"   exit code {costs[-1].code}" if costs[-1].code else ""
    aim = f"{goal:5.1f}s" if goal else ""
    print(f"{title:42} {wall:7.2f}s {fastest:7.2f}s {cpu:7.2f}s {memory:5.0f} MB {aim}{note}", flush=True)


def median(values: list[float]) -> float:
    """The standard library's module for it is hidden by `benchmarks/statistics.py` when this file is run."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def measured(arguments: list[str], repeats: int, runs: Path | None = None) -> list[Cost]:
    """The cost of each run but the first."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"WHITEBENCH_RUNS": str(runs)} if runs else {})}
    costs = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        costs.append(Cost(time.perf_counter() - began, cpu, usage.ru_maxrss / 1024, process.returncode))
    return costs[1:]


def make_up_sweep(path: Path) -> None:
    """Writes the file and the runs of a launched sweep of 10,000 cells of two stages, the first of which is done."""
    os.environ["WHITEBENCH_RUNS"] = str(path.parent / "runs")
    jobs = [job for seed in range(MANY) for job in cell(seed)]
    last = Task(LEADERBOARD, "", id="many")
    keys = tuple(job.key for job in jobs)
    Graph("many", [*jobs, Job(f"{LEADERBOARD}/many", LEADERBOARD, "", keys, Resources(), last)]).save("local", "")
    for job in jobs[::2]:
        record = Record(job.task.id, job.stage, config={"seed": job.task.seed}, status="done", metrics={"top1": 50.0})
        job.folder.mkdir(parents=True)
        (job.folder / RECORD).write_text(
            json.dumps(asdict(record), indent=1)
        )  # as runs do, but for the wait for the disk
    path.write_text("recipes: [sample/intl]\n")


def cell(seed: int) -> tuple[Job, Job]:
    run = f"intl-s{seed}-0123456789ab"
    name = f"sample/intl seed={seed}"
    first = Task("pretrain", "sample/intl", {"seed": seed}, id=run)
    second = Task("linear", "sample/intl", {"seed": seed}, id=run, parents={"pretrain": run})
    return (
        Job(f"pretrain/{run}", "pretrain", name, (), Resources(), first),
        Job(f"linear/{run}", "linear", name, (f"pretrain/{run}",), Resources(), second),
    )


if __name__ == "__main__":
    main()
