"""What can be known at the start of a training is said at the start, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint import Backbone, write_backbone
from pretrain.data.betons.manifest import read_manifest
from pretrain.evaluate.stage import plan
from pretrain.evaluate.target import Options, Target
from pretrain.processes import record_processes, unfinished_with_other_world_size
from pretrain.recipe import load
from pretrain.train import pretrain_config, resolved, train
from whitebench.errors import Interrupted, UserError
from whitebench.files import BACKBONE
from whitebench.records import Run

TINY = {"data.dataset": "tiny", "batch": 64, "schedule.epochs": 2, "monitor.knn_every": 0}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "pcl",
            {"method.clusters": [10, 5000], "method.warmup_epochs": 1},
            "5000 clusters cannot be made of 429 images",
        ),
        ("pauc", {"method.clusters": [5000], "method.warmup_epochs": 1}, "5000 clusters cannot be made of 429 images"),
        ("simclr", {"batch": 1}, "batch norm needs at least 2 images"),
        ("simclr", {"schedule.warmup_epochs": 0, "schedule.warmup_iterations": 12}, "12 of 12 steps"),
        ("swav", {"method.queue": 0, "method.frozen_iterations": 313}, "method.frozen_iterations: 313 of 12 steps"),
        ("supervised", {"method.classes": 7}, "method.classes=7, but the dataset has 3 classes"),
        ("cwrgp", {"world_size": 2, "machine.processes": 1}, "cwrgp computes of a process's own 32 images"),
        (
            "moco",
            {"world_size": 2, "machine.processes": 1, "method.bn_splits": 4},
            "moco computes of a process's own 32 images",
        ),
        ("intl", {"world_size": 2, "machine.processes": 1, "network.sync_bn": False}, "batch norms are per process"),
        ("intl", {"machine.processes": 3}, "batch: 64 is not divisible by machine.processes=3"),
    ],
)
def test_what_cannot_work_is_refused(name: str, changes: dict[str, Any], message: str, places: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(load(f"sample/{name}", {**TINY, **changes}))
    assert not places.exists()


def test_a_backbone_that_cannot_be_written_is_said_before_the_training(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, tensor: Any) -> None:
        raise UserError(f"{name} holds no plain values")

    monkeypatch.setattr("pretrain.encoders.as_float32", refuse)
    with pytest.raises(UserError, match=r"conv1\.weight holds no plain values"):
        train(load("sample/simclr", TINY))
    (folder,) = (places / "pretrain").iterdir()
    assert not (folder / "metrics.jsonl").exists()
    assert not list(folder.glob("*.pt"))


def test_an_unfinished_run_of_another_world_size_is_pointed_out(places: Path) -> None:
    def config(**changes: Any) -> dict[str, Any]:
        recipe = resolved(load("sample/intl", {**TINY, **changes}))
        return pretrain_config(recipe, read_manifest("tiny"))

    recipe = resolved(load("sample/intl", TINY))
    with pytest.raises(Interrupted), Run("pretrain", recipe.label, config(world_size=2), cell={}):
        raise Interrupted("stopped")
    (folder,) = (places / "pretrain").iterdir()
    hint = unfinished_with_other_world_size(recipe, config())
    assert hint is not None
    assert hint.startswith(f"{folder.name}: unfinished run of this recipe with world_size=2")
    assert hint.endswith("world_size=2 machine.processes=1")
    assert unfinished_with_other_world_size(recipe, config(seed=1)) is None
    with Run("pretrain", recipe.label, config(world_size=2), cell={}) as run:
        record_processes(run, resolved(load("sample/intl", {**TINY, "world_size": 2, "machine.processes": 1})), 7)
        record_processes(run, resolved(load("sample/intl", {**TINY, "world_size": 2})), 9)
    assert run.record.data["processes"] == [{"step": 7, "processes": 1}, {"step": 9, "processes": 2}]
    assert run.metrics["deviations"] == ["processes: 1 from step 7, 2 from step 9, planned 2"]
    assert unfinished_with_other_world_size(recipe, config()) is None  # it is done


def test_evaluations_that_cannot_work_are_refused_when_they_are_planned(places: Path) -> None:
    def planned(stage: str, dataset: str = "tiny", **options: Any) -> str:
        return plan(stage, Target("x-s0-0", "x-s0", dataset, 32, 32, {}), Options(**options))

    with pytest.raises(UserError, match=r"'simsiam' trains on batches of 4096 images, but dataset 'tiny' has 429"):
        planned("linear", protocol="simsiam")
    default = planned("linear", protocol="features")
    assert planned("linear", protocol="features", loader="ffcv", workers=4) == default
    assert planned("linear", protocol="features", loader="folder") != default  # Pillow decodes to other pixels
    backbone = Backbone("resnet18", "imagenet", {}, {}, "", "0" * 64)
    with pytest.raises(UserError, match="the crop is at least 1 pixel"):
        Target.of_backbone(backbone, "tiny", 0, 32)
    with pytest.raises(UserError, match="the resized side not smaller"):
        Target.of_backbone(backbone, "tiny", 64, 32)


@pytest.mark.parametrize("option", ["--threads=0", "--workers=-2", "--seed=-1"])
def test_an_option_out_of_its_range_is_one_line(option: str, tmp_path: Path, places: Path, command: Any) -> None:
    from pretrain.networks import build_backbone

    write_backbone(tmp_path / BACKBONE, build_backbone("resnet18").state_dict(), {"stem": "imagenet"})
    place = ["--dataset", "tiny", "--crop", "32", "--resize", "32"]
    done = command("-m", "pretrain.evaluate", "knn", "--ckpt", str(tmp_path / BACKBONE), *place, option)
    assert done.returncode == 2
    assert f"error: {option.partition('=')[0]}: input should be greater than" in done.stderr
    assert done.stderr.count("\n") == 1


def test_online_evaluation_needs_a_validation_split(
    places: Path, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain.data.betons.write import write_subset

    root = tmp_path / "data"
    folder = root / "unlabelled"
    write_subset(read_manifest(tiny_root / "tiny"), folder, ["0", "1"])
    manifest = read_manifest(folder)
    del manifest.splits["val"]
    manifest.__dict__.pop("content_hash", None)
    manifest.write()
    monkeypatch.setenv("WHITEBENCH_DATA", str(root))
    with pytest.raises(UserError, match=r"monitor.knn_every=5: dataset 'unlabelled' has no split 'val'"):
        train(load("sample/simclr", {**TINY, "data.dataset": "unlabelled", "monitor.knn_every": 5}))
    assert not places.exists()
