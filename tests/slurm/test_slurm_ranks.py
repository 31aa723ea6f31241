"""Training over several nodes of a SLURM cluster, by the launcher's command: 2 nodes x 2 tasks, gloo."""

import json
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.launching import wait_until
from whitebench.records import Record, read_record

pytestmark = [pytest.mark.slurm, pytest.mark.long]
# Plain SGD: Adam's first steps would blow rounding errors of small gradients up to its full rate.
SETTINGS = {
    "data.dataset": "tiny",
    "batch": 64,
    "schedule.epochs": 2,
    "monitor.knn_every": 0,
    "monitor.spectra_every": 0,
    "machine.checkpoint_minutes": 0,
    "network.projector": [64, 64],
    "optimizer.name": "sgd",
    "optimizer.lr": 0.01,
    "optimizer.weight_decay": 0,
}


def write(lab_folder: Path, name: str, nodes: int, ranks: int) -> Path:
    content = {
        "recipes": ["sample/intl"],
        "overrides": {**SETTINGS, "world_size": nodes * ranks},
        "stages": {"pretrain": {"nodes": nodes}},
    }
    (lab_folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return lab_folder / f"{name}.yaml"


def record_of(lab_folder: Path, name: str) -> Record:
    plan = json.loads((lab_folder / "runs" / "sweeps" / name / "plan.json").read_text())
    record = read_record(lab_folder / "runs" / plan["jobs"][0]["key"])
    assert record is not None
    return record


def rank_process(rank: int) -> int | None:
    """Of a job on the cluster; all nodes are on this machine."""
    for process in psutil.process_iter(["cmdline"]):
        if "submitit.core._submit" in process.info["cmdline"]:
            try:
                if process.environ().get("SLURM_PROCID") == str(rank):
                    return process.pid
            except psutil.Error:
                continue
    return None


def test_two_nodes_of_two_ranks_train_as_one_process_though_a_rank_is_killed(lab_folder: Path, launch: Any) -> None:
    """Up to rounding, see test_train.py::test_two_processes_train_as_one."""
    launch(write(lab_folder, "alone", 1, 1), "--cluster", "lab")
    launch(write(lab_folder, "together", 2, 2), "--cluster", "lab")
    plan = json.loads((lab_folder / "runs" / "sweeps" / "together" / "plan.json").read_text())
    folder = lab_folder / "runs" / plan["jobs"][0]["key"]
    wait_until(lambda: (folder / "checkpoint.sha256").exists(), 300)
    process = rank_process(3)
    assert process is not None
    psutil.Process(process).kill()
    # the other ranks would wait for the dead one; srun ends them, and the job comes back by itself
    wait_until(lambda: not subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout, 400)
    alone, together = record_of(lab_folder, "alone"), record_of(lab_folder, "together")
    assert (alone.status, together.status) == ("done", "done")
    assert together.cost["restarts"] == 1
    assert together.config["world_size"] == 4
    assert together.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=2e-2)
