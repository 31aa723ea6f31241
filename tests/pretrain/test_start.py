"""What can be known at the start of a training is said at the start, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest

from pretrain.recipe import load
from pretrain.train import train
from whitebench.errors import UserError

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
        ("cwrgp", {"world_size": 2, "machine.processes": 1}, "the loss of cwrgp is computed per process, of 32 images"),
        ("intl", {"world_size": 2, "machine.processes": 1, "network.sync_bn": False}, "batch norms are per process"),
        ("intl", {"machine.processes": 3}, "batch: 64 is not divisible by machine.processes=3"),
    ],
)
def test_what_cannot_work_is_refused(name: str, changes: dict[str, Any], message: str, places: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(load(f"sample/{name}", {**TINY, **changes}))
    assert not places.exists()


def test_online_evaluation_needs_a_validation_split(places: Path, tiny_root: Path, tmp_path: Path, monkeypatch) -> None:
    from pretrain.data.betons.manifest import read_manifest
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
