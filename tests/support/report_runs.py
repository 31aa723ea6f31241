"""Run folders as the stages leave them, with curves, spectra and logs, for tests of the report."""

import json
import math
from pathlib import Path
from typing import Any

from tests.support.run_records import Records


def history(folder: Path, level: float = 80.0, epochs: int = 6, size: int = 32) -> None:
    """What a pretraining leaves besides its record; the last line of the spectra is cut short, as by a kill."""
    curve = [
        {
            "epoch": epoch,
            "epochs": epochs,
            "loss": 1 + 8.0 / epoch + level / 100,
            "online_knn_top1": level * (1 - 0.5 / epoch),
            "spread": 0.9 - 0.1 / epoch,
            "images_per_s": 120 + level,
            "lr": 0.03 * (1 + math.cos(math.pi * epoch / (epochs + 1))),
            "eta_s": 60.0 * (epochs - epoch),
        }
        for epoch in range(1, epochs + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    probes = [
        {"epoch": epoch, "backbone": _part(epoch, size), "embedding": _part(epoch / 2, size), "transformed": None}
        for epoch in (1, epochs)
    ]
    (folder / "spectra.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in probes) + '{"epoch": 9, "ba')


def _part(epoch: float, size: int) -> dict[str, Any]:
    return {"effective_rank": 3.0 + epoch, "eigenvalues": [4.0 * math.exp(-k / (1 + epoch)) for k in range(size)]}


def sample_runs(root: Path, methods: dict[str, float], seeds: int = 3) -> Records:
    """Pretrainings of `methods` (name: accuracy) with linear, k-NN and detection evaluations."""
    records = Records(root)
    for i, (method, top1) in enumerate(methods.items()):
        for seed in range(seeds):
            value = top1 + seed - 1 + math.sin(7 * i + 3 * seed) * 0.5
            cost = {"wall_s": 600.0 + 90 * i, "gpu_s": 0.0, "cpu_s": 1100.0 + 90 * i, "restarts": 0}
            ranks = {"backbone_rankme": value / 3, "rankme": value / 5, "lidar": value / 4 + i % 3}
            parent = records.pretrain(method, seed, cost=cost, metrics=ranks)
            history(records.root / "pretrain" / parent, value)
            records.evaluate(parent, {"top1": value, "top5": 99.0})
            records.evaluate(parent, {"top1": value - 7}, "knn")
            records.evaluate(parent, {"box_AP": value / 4 + seed, "mask_AP": value / 5}, "detect")
    return records
