"""Evaluations in several processes on a real SLURM cluster, by the launcher's command and submitit."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.evaluate.linear import load_probe
from whitebench.records import Record, read_metrics, read_record

pytestmark = [pytest.mark.slurm, pytest.mark.long, pytest.mark.timeout(3600), pytest.mark.xdist_group("slurm")]
COMPARED = {"linear": ("features", None), "semi": ("sample-10", 1), "finetune": ("sample-10", 2)}
"""Stage of evaluation -> its protocol, and how many epochs are compared; None: all."""


def sweep(lab_folder: Path, stages: dict[str, Any]) -> Path:
    path = lab_folder / "mine.yaml"
    stages = {**stages, "leaderboard": {"out": str(lab_folder / "tables")}}
    path.write_text(
        yaml.safe_dump({"recipes": ["sample/random"], "overrides": {"data.dataset": "tiny"}, "stages": stages})
    )
    return path


def records_of(runs: Path, stage: str) -> list[tuple[Path, Record]]:
    folders = sorted((runs / stage).iterdir())
    return [(folder, record) for folder in folders if (record := read_record(folder))]


def test_two_processes_give_the_result_of_one(lab_folder: Path, launch: Any) -> None:
    """In float32, so up to rounding: the linear probe over two nodes, fine-tunings on one.

    At these rates the loss of 43 images first rises: rounding grows into other losses within some epochs, of which the
    first ones are compared. `tests/pretrain/test_evaluation_ranks.py` compares whole trainings at small rates.
    """
    stages: dict[str, Any] = {}
    for stage, (protocol, _) in COMPARED.items():
        stages[stage] = {"protocol": protocol}
        nodes = {"nodes": 2} if stage == "linear" else {}
        stages[f"{stage}-two"] = {"stage": stage, "protocol": protocol, "world_size": 2, **nodes}
    code, output = launch(sweep(lab_folder, stages), "--cluster", "lab", "--wait")
    assert code == 0, output
    for stage in COMPARED:
        compare(lab_folder / "runs", stage)


def compare(runs: Path, stage: str) -> None:
    """The evaluation in one process and that in two: linear as a whole, others by the losses of the first epochs."""
    (alone, one), (joint, two) = sorted(records_of(runs, stage), key=lambda pair: pair[1].config.get("world_size", 1))
    assert (one.status, two.status) == ("done", "done")
    assert (one.config.get("world_size", 1), two.config["world_size"]) == (1, 2)
    losses = [[line["loss"] for line in read_metrics(folder) if "loss" in line] for folder in (alone, joint)]
    assert len(losses[0]) == len(losses[1])
    count = COMPARED[stage][1] or len(losses[0])
    assert losses[1][:count] == pytest.approx(losses[0][:count], rel=1e-3)
    if stage == "linear":
        images = one.data["manifest"]["splits"]["val"]["count"]
        assert abs(one.metrics["top1"] - two.metrics["top1"]) <= 100 / images + 1e-9
        for a, b in zip(load_probe(alone), load_probe(joint), strict=True):
            assert (a - b).norm() <= 1e-3 * (a.norm() + 1)
