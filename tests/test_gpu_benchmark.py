"""`benchmarks/gpu.py` runs end to end on a CPU by the same command, and without ffcv, detectron2 and OpenCV."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ffcv", "detectron2", "cv2", "fvcore", "faiss", "timm", "pycocotools"}:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by a test)", name=name)

sys.meta_path.insert(0, Blocked())
"""
"""A sitecustomize.py: every Python process of the test starts with it."""


@pytest.fixture
def call(tmp_path: Path) -> Any:
    """Runs the command; none of its processes can import what such a machine lacks."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKED)

    def _call(*options: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "out"), *options]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    return _call


def state(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]


def test_a_part_of_each_kind_runs_without_ffcv_and_is_not_run_again(call: Any, tmp_path: Path) -> None:
    done = call("--device", "cpu", "--tiny", "--minutes", "8", "--only", "3 datasets")
    assert done.returncode == 0, done.stdout + done.stderr
    done = call("--device", "cpu", "--tiny", "--minutes", "8", "--only", "resnet18 cifar device of")
    assert done.returncode == 0, done.stdout + done.stderr
    (name,) = (name for name in state(tmp_path) if "step" in name)
    measured = state(tmp_path)[name]["result"]
    assert measured["images_per_s"] > 0
    again = call("--device", "cpu", "--tiny", "--minutes", "8", "--only", "resnet18 cifar device of")
    assert "..." not in again.stdout
    assert state(tmp_path)[name]["attempts"] == 1
    assert (tmp_path / "out" / "summary.md").read_text().count("no measurement") == 1


@pytest.mark.long
def test_the_whole_command_runs_on_a_cpu_in_small_sizes(call: Any, tmp_path: Path) -> None:
    for _ in range(4):
        done = call("--device", "cpu", "--tiny", "--minutes", "20")
        if "the same command goes on" not in done.stdout:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    parts = state(tmp_path)
    assert {part["status"] for part in parts.values()} == {"done"}
    assert {name[0] for name in parts} == set("1234")
    assert "top1" in json.dumps(parts)
    skipped = [part["result"]["skipped"] for part in parts.values() if "skipped" in part.get("result", {})]
    assert set(skipped) == {"ffcv is not installed"}


def test_a_training_that_the_time_ends_is_left_for_the_next_call(tmp_path: Path) -> None:
    from benchmarks.gpu_runs import Part, run_one

    part = Part("long", [sys.executable, "-c", "import time; time.sleep(60)"], 1, resumes=True, json=False)
    (tmp_path / "logs").mkdir()
    row = run_one(part, {}, 0.5, tmp_path)
    assert row["status"] == "left"
    once = Part("once", part.command, 1)
    assert run_one(once, {"attempts": 2}, 0.5, tmp_path)["status"] == "failed"


def test_a_part_without_a_result_fails_and_names_its_log(tmp_path: Path) -> None:
    from benchmarks.gpu_runs import Part, run_one

    (tmp_path / "logs").mkdir()
    silent = run_one(Part("silent", [sys.executable, "-c", "pass"], 1), {}, 60, tmp_path)
    assert (silent["status"], silent["error"]) == ("failed", "no result in its last line")
    broken = run_one(Part("broken", [sys.executable, "-c", "1 / 0"], 1), {}, 60, tmp_path)
    assert broken["status"] == "failed"
    assert "ZeroDivisionError" in (tmp_path / broken["log"]).read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "nothing"], "--only: no part's name contains 'nothing'"),
        (["--seeds", "x"], "is not a list of seeds"),
    ],
)
def test_mistakes_are_one_line(call: Any, options: list[str], message: str) -> None:
    done = call("--device", "cpu", "--tiny", *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_every_training_of_the_list_has_a_schedule_for_its_epochs() -> None:
    from argparse import Namespace

    from benchmarks.gpu import CIFAR_RECIPES, cifar_overrides
    from pretrain.recipe import load

    for name in CIFAR_RECIPES:
        recipe = load(f"cifar10/{name}", cifar_overrides(name, Namespace(tiny=False, epochs=200, device="cuda")))
        assert recipe.schedule.epochs == 200
        assert all(-200 < step < 0 or 0 < step < 200 for step in recipe.schedule.steps), name


def test_without_a_gpu_the_command_says_so(call: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = call("--only", "losses")
    assert done.returncode == 2
    assert "torch sees no CUDA device" in done.stderr
