"""Leaderboards of which the truth is known: records of accuracies drawn around planted means, one dataset per board."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from whitebench.code_hash import code_files
from whitebench.hashing import run_id

IMAGES = 360


def write_boards(
    runs: Path, boards: int, seeds: int, means: Sequence[float], sd: float, generator: np.random.Generator
) -> None:
    """Writes records of `boards` leaderboards: a method per mean (images of 360), `seeds` pretrainings of each.

    Accuracies are whole counts of 360 test images, normal around the method's mean with standard deviation `sd`. The
    boards share their pretrainings and are told apart by the name of their dataset.
    """
    code = code_files("linear")
    for number, mean in enumerate(means):
        method = f"method{number:02}"
        counts = np.clip(np.round(generator.normal(mean, sd, (boards, seeds))), 0, IMAGES)
        for seed in range(seeds):
            config = {"method": {"name": method}, "seed": seed}
            parent = _write(runs, "pretrain", f"{method}-s{seed}", config, method, seed, {}, {})
            for board in range(boards):
                top1 = 100 * counts[board, seed] / IMAGES
                evaluation = {"parent": parent, "protocol": {"name": "planted"}, "dataset": f"board{board}", "seed": 0}
                _write(runs, "linear", f"{method}-s{seed}", evaluation, method, seed, {"top1": top1}, code)


def _write(
    runs: Path,
    stage: str,
    label: str,
    config: dict[str, object],
    method: str,
    seed: int,
    metrics: dict[str, float],
    code: dict[str, str],
) -> str:
    identity = run_id(label, config)
    record = {
        "schema": 1,
        "id": identity,
        "stage": stage,
        "config": config,
        "status": "done",
        "cell": {"recipe": f"planted/{method}", "method": method, "seed": seed},
        "metrics": metrics,
        "data": {"manifest": {"splits": {"val": {"count": IMAGES}}}},
        "code": code,
    }
    folder = runs / stage / identity
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))
    return identity
