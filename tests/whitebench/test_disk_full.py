"""A disk that runs full in the middle of a run: it is said, nothing is lost that was kept, the run goes on later."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Disk
from tests.support.launching import prepare, write_sweep
from whitebench.records import Run, read_metrics

Command = Callable[..., subprocess.CompletedProcess[str]]

SMALL = (
    "sample/simclr",
    "data.dataset=tiny",
    "batch=64",
    "network.backbone=resnet18",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "data.views=[{count: 2, size: 32}]",
    "network.projector=[64, 32]",
    "monitor.knn_every=0",
    "machine.checkpoint_minutes=0",
)
"""Six steps, with a checkpoint of 136 MB after each."""


def fill(place: Path) -> None:
    """A file `ballast` that takes all the room there is."""
    free = os.statvfs(place)
    (place / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize))


def only_run(runs: Path) -> Path:
    (folder,) = (runs / "pretrain").iterdir()
    return folder


def test_a_pretraining_says_so_keeps_its_last_checkpoint_and_ends_as_if_undisturbed(
    disk: Disk, tiny_root: Path, tmp_path: Path, command: Command
) -> None:
    runs = disk(300)  # room for two checkpoints, not for three
    stopped = command("-m", "pretrain", *SMALL, WHITEBENCH_DATA=str(tiny_root), WHITEBENCH_RUNS=str(runs))
    assert stopped.returncode == 2
    assert "no space left on the disk" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    kept = {path.name for path in only_run(runs).iterdir()}
    assert {"checkpoint.pt", "checkpoint.sha256"} <= kept
    assert not [name for name in kept if name.endswith(".tmp")]

    disk(600)
    told = command("-m", "pretrain", *SMALL, WHITEBENCH_DATA=str(tiny_root), WHITEBENCH_RUNS=str(runs))
    assert told.returncode == 0, told.stderr
    record = json.loads((only_run(runs) / "run.json").read_text())
    assert (record["status"], record["cost"]["restarts"]) == ("done", 1)

    other = tmp_path / "undisturbed"
    told = command("-m", "pretrain", *SMALL, WHITEBENCH_DATA=str(tiny_root), WHITEBENCH_RUNS=str(other))
    assert told.returncode == 0, told.stderr
    for name in ("backbone.safetensors", "spectra.jsonl"):
        assert (only_run(runs) / name).read_bytes() == (only_run(other) / name).read_bytes()


def test_a_line_of_metrics_is_there_whole_or_not_at_all_and_the_run_is_free_again(disk: Disk) -> None:
    place = disk(1)

    def write_until_full() -> None:
        with Run("linear", "a", {}, cell={}, folder=place / "run") as run:
            run.log(step=0)
            fill(place)
            for step in range(1, 1000):
                run.log(step=step, text="x" * 100)

    with pytest.raises(OSError, match="No space left"):
        write_until_full()
    steps = [line["step"] for line in read_metrics(place / "run")]
    assert steps == list(range(len(steps)))
    assert (place / "run" / "metrics.jsonl").read_bytes().endswith(b"}\n")
    (place / "ballast").unlink()
    with Run("linear", "a", {}, cell={}, folder=place / "run") as run:
        run.log(step=len(steps))
    assert [line["step"] for line in read_metrics(place / "run")] == list(range(len(steps) + 1))


def test_a_sweep_says_which_jobs_it_stopped_and_goes_on_when_there_is_room(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: Any
) -> None:
    place = prepare(tmp_path, monkeypatch, "one", "kind: local\nslots: 1\n")
    runs = disk(2)
    monkeypatch.setenv("WHITEBENCH_RUNS", str(runs))
    stages = {
        "pretrain": {"function": "count", "options": {"to": 20}},
        "linear": {"function": "hoard", "options": {"megabytes": 4}},
        "after": {"function": "count", "needs": ["linear"]},
    }
    sweep = write_sweep(place, stages, seeds=1)
    code, shown = launch(sweep, "--cluster", "one")
    assert code == 1
    assert "no space left on the disk" in shown
    jobs = {job["stage"]: job["state"] for job in json.loads(launch(sweep, "--status", "--json")[1])["jobs"]}
    assert jobs == {"pretrain": "done", "linear": "interrupted", "after": "new"}

    disk(20)
    assert launch(sweep, "--cluster", "one")[0] == 0
    ends = [json.loads(line)["stage"] for line in (runs / "log.jsonl").read_text().splitlines() if '"end"' in line]
    assert ends == ["pretrain", "linear", "after"]
