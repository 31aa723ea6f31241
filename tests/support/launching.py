"""Sweeps whose stages are those of `slurm_stages.py`: shared by the tests of SLURM and of local launching."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def prepare(place: Path, monkeypatch: pytest.MonkeyPatch, preset: str, settings: str) -> Path:
    """Makes `place` the working folder, empty, with a cluster preset of one's own; jobs can import the stand-ins."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("WHITEBENCH_RUNS", str(place / "runs"))
    monkeypatch.setenv("WHITEBENCH_DATA", str(place / "data"))
    monkeypatch.setenv("WHITEBENCH_CLUSTERS", str(place))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]))
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "support"))
    (place / f"{preset}.yaml").write_text(settings)
    (place / "runs").mkdir()
    return place


def write_sweep(
    place: Path, stages: dict[str, Any], seeds: int = 2, recipes: tuple[str, ...] = ("sample/intl",)
) -> Path:
    """A sweep whose stages are functions of `slurm_stages`, given as `{stage: {"function": "count", ...}}`."""
    own = {name: {**spec, "function": f"slurm_stages:{spec['function']}"} for name, spec in stages.items()}
    own["leaderboard"] = {"out": str(place / "tables")}
    path = place / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipes": list(recipes), "seeds": list(range(seeds)), "stages": own}))
    return path


def log(place: Path) -> list[dict[str, Any]]:
    path = place / "runs" / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)
