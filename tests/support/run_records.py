"""Records of runs, and tables made from them, for tests of `results`."""

import csv
import json
from pathlib import Path
from typing import Any

from whitebench.code_hash import code_files
from whitebench.hashing import canonical, run_id

Rows = list[dict[str, str]]


class Records:
    """Writes records as the stages leave them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, stage: str, label: str, config: dict[str, Any], **changes: Any) -> str:
        record = {
            "schema": 1,
            "id": run_id(label, config),
            "stage": stage,
            "config": config,
            "status": "done",
            "cell": {},
            "hashes": {"method": "1" * 64, "data": "2" * 64},
            "code": code_files(stage, config.get("method", {}).get("name")),
            "parents": [],
            "metrics": {},
            "cost": {"wall_s": 60.0, "gpu_s": 0.0, "cpu_s": 100.0, "energy_kwh": None, "restarts": 0},
            "started": "2026-01-01T00:00:00Z",
            "ended": "2026-01-01T00:01:00Z",
            "environment": {"git": "3" * 40, "dirty": False, "device": "cpu"},
            **changes,
        }
        folder = self.root / stage / str(record["id"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(record))
        return str(record["id"])

    def pretrain(self, method: str = "intl", seed: int = 0, recipe: str | None = None, **changes: Any) -> str:
        """`changes` to the record, and by `config=` to its config, in sections."""
        config: dict[str, Any] = {
            "method": {"name": method},
            "data": {"dataset": "sample", "views": [{"size": 48, "count": 2}], "loader": "ffcv"},
            "network": {"backbone": "resnet18", "stem": "imagenet"},
            "schedule": {"epochs": 20},
            "batch": 128,
            "seed": seed,
            "precision": "fp32",
            "world_size": 1,
            "threads": 2,
        }
        for key, value in changes.pop("config", {}).items():
            merge = isinstance(value, dict) and isinstance(config.get(key), dict)
            config[key] = {**config[key], **value} if merge else value
        cell = {"recipe": recipe or f"sample/{method}", "method": method, "seed": seed, "dataset": "sample"}
        return self.put("pretrain", f"{method}-s{seed}", config, **{"cell": cell, **changes})

    def evaluate(
        self,
        parent: str,
        metrics: dict[str, float | None],
        stage: str = "linear",
        seed: int = 0,
        config: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        protocol = {"linear": "features", "knn": "cosine-20", "detect": "sample"}[stage]
        own = {"parent": parent, "protocol": {"name": protocol}, "dataset": "sample", "seed": seed, **(config or {})}
        parents = [] if parent.startswith("sha256:") else [parent]
        label = parent.rpartition("-")[0] or "foreign"
        return self.put(stage, label, own, **{"parents": parents, "metrics": metrics, **changes})

    def cell(self, method: str, seed: int, top1: float, **changes: Any) -> str:
        parent = self.pretrain(method, seed, **changes)
        self.evaluate(parent, {"top1": top1, "top5": 99.0})
        return parent


def read_csv(path: Path) -> Rows:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def three_methods(records: Records) -> None:
    """INTL, CW-RGP and an untrained network, three seeds each, by linear probe and k-NN."""
    for seed in range(3):
        for method in ("intl", "cwrgp", "random"):
            parent = records.cell(method, seed, 50 + seed / 3)
            records.evaluate(parent, {"top1": 40 + seed / 7}, "knn")


def made_now(records: Records, recipe: str, evaluated: dict[str, Any] | None = None, **pretrained: Any) -> None:
    """A pretraining and its linear probe that this checkout's code made, but for the changes."""
    from pretrain.evaluate.protocols import find_protocol

    protocol = canonical(find_protocol("linear", "features"))
    parent = records.pretrain(
        "intl", recipe=recipe, config={"lr": recipe}, **{"code": code_files("pretrain", "intl"), **pretrained}
    )
    changes = {"code": code_files("linear"), "protocol": protocol, **(evaluated or {})}
    records.evaluate(parent, {"top1": 70.0}, config={"protocol": changes.pop("protocol")}, **changes)


def csv_contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}
