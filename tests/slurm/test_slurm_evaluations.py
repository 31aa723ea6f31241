"""Evaluations on a real SLURM cluster, by the launcher: several processes, and backbones kept in training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.evaluate.kept import kept_name
from tests.support.launching import prepare
from tests.support.own_cluster import NoCluster, own_cluster
from whitebench.records import Record, read_metrics, read_record

pytestmark = [pytest.mark.slurm, pytest.mark.long, pytest.mark.timeout(3600), pytest.mark.xdist_group("slurm")]
PROTOCOLS = {"linear": "features", "semi": "sample-10", "finetune": "sample-10"}


@pytest.fixture
def place(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    try:
        with own_cluster():
            place = prepare(tmp_path, monkeypatch, "lab", "kind: slurm\nsignal_delay_s: 5\n")
            monkeypatch.setenv("WHITEBENCH_DATA", str(tiny_root))
            yield place
    except NoCluster as reason:
        pytest.skip(str(reason))


def sweep(place: Path, recipe: str, overrides: dict[str, Any], stages: dict[str, Any]) -> Path:
    path = place / "mine.yaml"
    overrides = {"data.dataset": "tiny", "batch": 64, **overrides}
    stages = {**stages, "leaderboard": {"out": str(place / "tables")}}
    path.write_text(yaml.safe_dump({"recipes": [recipe], "overrides": overrides, "stages": stages}))
    return path


def records_of(place: Path, stage: str) -> list[tuple[Path, Record]]:
    folders = sorted((place / "runs" / stage).iterdir())
    return [(folder, record) for folder in folders if (record := read_record(folder))]


def test_two_processes_give_the_result_of_one(place: Path, launch: Any) -> None:
    """In float32, so up to rounding: batch norm of few images enlarges it over the epochs of a fine-tuning."""
    stages: dict[str, Any] = {}
    for stage, protocol in PROTOCOLS.items():
        stages[stage] = {"protocol": protocol}
        nodes = {"nodes": 2} if stage == "linear" else {}
        stages[f"{stage}-two"] = {"stage": stage, "protocol": protocol, "world_size": 2, **nodes}
    code, shown = launch(sweep(place, "sample/random", {}, stages), "--cluster", "lab", "--wait")
    assert code == 0, shown
    for stage in PROTOCOLS:
        of_both = sorted(records_of(place, stage), key=lambda pair: pair[1].config.get("world_size", 1))
        (alone, one), (joint, two) = of_both
        assert (one.status, two.status) == ("done", "done")
        assert (one.config.get("world_size", 1), two.config["world_size"]) == (1, 2)
        images = one.data["manifest"]["splits"]["val"]["count"]
        allowed = 1 if stage == "linear" else 2
        assert abs(one.metrics["top1"] - two.metrics["top1"]) <= 100 * allowed / images + 1e-9
        losses = [[line["loss"] for line in read_metrics(folder) if "loss" in line] for folder in (alone, joint)]
        assert len(losses[0]) > 5
        assert losses[1][:3] == pytest.approx(losses[0][:3], rel=1e-3)
        assert losses[1] == pytest.approx(losses[0], rel=5e-2, abs=1e-3)


def test_kept_backbones_are_evaluated_while_the_training_runs(place: Path, launch: Any) -> None:
    """The evaluation of the first one has ended before the pretraining has."""
    overrides = {"schedule.epochs": 60, "monitor.knn_every": 0, "machine.keep_every": 20}
    code, shown = launch(sweep(place, "sample/intl", overrides, {"knn": {}}), "--cluster", "lab", "--wait")
    assert code == 0, shown
    ((folder, pretraining),) = records_of(place, "pretrain")
    assert (folder / kept_name(20)).exists()
    ended = {record.cell.get("kept_epoch"): record.ended for _, record in records_of(place, "knn")}
    assert ended.keys() == {20, 40, None}
    assert pretraining.ended is not None
    assert ended[20] is not None
    assert ended[20] < pretraining.ended
    table = (place / "tables" / "over_epochs.csv").read_text().splitlines()
    assert len(table) == 4  # a head, and epochs 20, 40 and 60
