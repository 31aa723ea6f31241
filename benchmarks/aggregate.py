"""How long `results.aggregate` takes over many run folders, and how much memory (goal: 10,000 in 5 s and 200 MB).

python benchmarks/aggregate.py [--folders 10000] [--repeats 3]
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHANGED = 100
METHODS = ("cwrgp", "intl", "simclr", "supervised", "random")
TIMED = """
import sys, time
from pathlib import Path
start = time.perf_counter()
from results.aggregate import aggregate, render
tables = aggregate([Path(sys.argv[1])], Path(sys.argv[2]))
render(tables)
print(time.perf_counter() - start, time.process_time(), len(tables.runs), len(tables.leaderboards), len(tables.faults))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=10_000, help="run folders to make (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="aggregations timed (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, out = Path(folder, "runs"), Path(folder, "out")
        size = sum(write(runs, record) for record in records(options.folders))
        print(f"{options.folders} run folders, {size / 1e6:.0f} MB of run.json")
        first, again = [], []
        for _ in range(options.repeats):
            shutil.rmtree(out, ignore_errors=True)
            first.append(aggregation(runs, out, "all read"))
            write_again(runs, CHANGED)
            again.append(aggregation(runs, out, f"{CHANGED} changed since"))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    medians = f"{statistics.median(first):.2f} s, again {statistics.median(again):.2f} s"
    print(f"median of {options.repeats}: {medians}; peak memory {peak:.0f} MB")


def aggregation(runs: Path, out: Path, what: str) -> float:
    """Seconds of one, in a process of its own."""
    command = [sys.executable, "-c", TIMED, str(runs), str(out)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    counts = f"{output[2]} rows, {output[3]} leaderboards, {output[4]} left out"
    print(f"{float(output[0]):6.2f} s ({float(output[1]):.2f} s of CPU), {what}: {counts}")
    return float(output[0])


def write_again(runs: Path, count: int) -> None:
    """Replaces `count` records, as their runs would."""
    from whitebench.files import write_atomically

    for path in sorted(runs.glob("linear/*/run.json"))[:count]:
        write_atomically(path, path.read_bytes())


def records(count: int) -> Iterator[dict[str, Any]]:
    """Cells of five stages: pretrain, linear, k-NN, and two detection seeds; one experiment in five seeds."""
    from whitebench.hashing import run_id

    draw = random.Random(0)
    for cell in range(-(-count // 5)):
        method, seed = METHODS[cell // 5 % len(METHODS)], cell % 5
        config = pretrain_config(method, seed, variant=cell // 25)
        parent = run_id(f"{method}-s{seed}", config)
        stages = [("pretrain", config, {"loss": draw.random(), "images_per_s": 300.0})]
        for stage, protocol in (("linear", "features"), ("knn", "euclidean-5")):
            evaluation = {"parent": parent, "protocol": {"name": protocol}, "dataset": "cifar10", "seed": 0}
            stages.append((stage, evaluation, {"top1": draw.gauss(90, 1), "top5": draw.gauss(99, 0.1)}))
        for fine_tuning in range(2):
            evaluation = {"parent": parent, "protocol": {"name": "c4-1x"}, "dataset": "coco", "seed": fine_tuning}
            metrics = {f"{kind}_AP{part}": draw.gauss(38, 0.3) for kind in ("box", "mask") for part in ("", "50", "75")}
            stages.append(("detect", evaluation, metrics))
        for i, (stage, stage_config, metrics) in enumerate(stages):
            if cell * 5 + i < count:
                yield record(stage, method, seed, stage_config, metrics, parent)


def pretrain_config(method: str, seed: int, variant: int) -> dict[str, Any]:
    return {
        "method": {"name": method, "groups": 4, "window": 64, "repeats": 1, "eps": 0.0, "normalize": True},
        "data": {
            "dataset": "cifar10",
            "views": [{"size": 32, "count": 2, "scale": [0.2, 1.0], "ratio": [0.75, 1.3333], "flip_p": 0.5}],
            "colour": {"jitter": [0.4, 0.4, 0.4, 0.1], "jitter_p": 0.8, "gray_p": 0.1, "blur_p": 0.0},
            "loader": "ffcv",
        },
        "network": {"backbone": "resnet18", "stem": "cifar", "projector": [1024, 512]},
        "optimizer": {"name": "adam", "lr": 0.003 * (1 + variant), "weight_decay": 1e-6},
        "schedule": {"epochs": 1000, "warmup_iterations": 500, "kind": "step", "steps": [-50, -25], "gamma": 0.2},
        "batch": 256,
        "seed": seed,
        "device": "cuda",
        "precision": "fp32",
        "world_size": 1,
        "threads": 1,
        "data_hash": "0" * 64,
    }


def record(
    stage: str, method: str, seed: int, config: dict[str, Any], metrics: dict[str, float], parent: str
) -> dict[str, Any]:
    from whitebench.code_hash import code_files
    from whitebench.hashing import run_id

    return {
        "schema": 1,
        "id": run_id(f"{method}-s{seed}", config),
        "stage": stage,
        "config": config,
        "status": "done",
        "cell": {"recipe": f"cifar10/{method}", "method": method, "seed": seed, "dataset": "cifar10"},
        "hashes": {"method": "1" * 64, "data": "0" * 64},
        "code": code_files(stage, method if stage == "pretrain" else None),
        "parents": [] if stage == "pretrain" else [parent],
        "metrics": metrics,
        "artifacts": {},
        "cost": {"wall_s": 3600.0, "gpu_s": 3600.0, "energy_kwh": 0.4, "restarts": 0},
        "started": "2026-01-01T00:00:00Z",
        "ended": "2026-01-01T01:00:00Z",
        "environment": {
            "git": "2" * 40,
            "dirty": False,
            "python": "3.11.2",
            "torch": "2.14.1",
            "host": "a",
            "device": "b",
        },
        "command": f"python -m pretrain cifar10/{method} seed={seed}",
        "error": None,
    }


def write(runs: Path, content: dict[str, Any]) -> int:
    folder = runs / content["stage"] / content["id"]
    folder.mkdir(parents=True)
    size = (folder / "run.json").write_text(json.dumps(content, indent=1))
    os.utime(folder / "run.json", (1.7e9, 1.7e9))  # not as if it were being written at this moment
    return size


if __name__ == "__main__":
    main()
