"""How soon the commands answer (goals: --help and --status under 0.5 s, --dry-run of 1,000 cells under 5 s).

python benchmarks/cli.py [--repeats 5]

--status is that of the sample sweep, which must have been launched; nothing is run or written.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = "slurm/launch_sweep.py"
CELLS = "slurm/launch_sweep.py --dry-run --cluster local --seeds " + ",".join(map(str, range(1000)))
COMMANDS = {
    # title: (command, goal in seconds)
    "pretrain --help": ("-m pretrain --help", 0.5),
    "pretrain.data --help": ("-m pretrain.data --help", 0.5),
    "pretrain.evaluate --help": ("-m pretrain.evaluate --help", 0.5),
    "coco_det.py --help": ("transfer/coco_det.py --help", 0.5),
    "aggregate.py --help": ("results/aggregate.py --help", 0.5),
    "doctor.py --help": ("doctor.py --help", 0.5),
    "launch_sweep.py --help": (f"{LAUNCH} --help", 0.5),
    "launch_sweep.py --status": (f"{LAUNCH} --status", 0.5),
    "launch_sweep.py --dry-run, the sample": (f"{LAUNCH} --dry-run --cluster local", 5.0),
    "launch_sweep.py --dry-run, 1,000 cells": (f"{CELLS} sweep.recipes=[sample/intl]", 5.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="times each command is run (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only commands whose title has this in it")
    options = parser.parse_args()
    chosen = {title: entry for title, entry in COMMANDS.items() if options.only in title}
    print(f"{'command':40} {'median':>8} {'fastest':>8} {'goal':>6}   n = {options.repeats}, after one run to warm up")
    bare, _ = timed(["-c", "pass"], options.repeats)
    print(f"{'python itself':40} {statistics.median(bare):7.2f}s {min(bare):7.2f}s")
    for title, (command, goal) in chosen.items():
        seconds, code = timed(command.split(), options.repeats)
        note = f"   exit code {code}" if code else ""
        print(f"{title:40} {statistics.median(seconds):7.2f}s {min(seconds):7.2f}s {goal:5.1f}s{note}", flush=True)


def timed(arguments: list[str], repeats: int) -> tuple[list[float], int]:
    """Wall seconds of each run but the first, and the last exit code."""
    seconds, code = [], 0
    for _ in range(repeats + 1):
        began = time.perf_counter()
        code = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True).returncode
        seconds.append(time.perf_counter() - began)
    return seconds[1:], code


if __name__ == "__main__":
    main()
