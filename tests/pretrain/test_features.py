"""Evaluation of what lies beyond the backbone: the projector's output, and what a method makes of it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from pretrain.evaluate.stage import config
from pretrain.evaluate.target import Options, Target
from whitebench.errors import UserError
from whitebench.records import read_record

Command = Callable[..., CompletedProcess[str]]
SMALL = ("data.dataset=tiny", "batch=64", "schedule.epochs=1", "monitor.knn_every=0", "data.views.0.size=32")


@pytest.fixture
def trained(places: Path, command: Command) -> Path:
    done = command("-m", "pretrain", "sample/intl", *SMALL, "network.projector=[256,256]")
    assert done.returncode == 0, done.stderr
    (folder,) = (places / "pretrain").iterdir()
    return folder


def test_each_kind_of_features_is_judged_by_itself(trained: Path, places: Path, command: Command) -> None:
    for features in ("backbone", "embedding", "transformed"):
        done = command("-m", "pretrain.evaluate", "knn", "--ckpt", str(trained), "--features", features)
        assert done.returncode == 0, done.stderr
    records = [read_record(folder) for folder in (places / "knn").iterdir()]
    found = {record.config.get("features", "backbone"): record for record in records if record}
    assert set(found) == {"backbone", "embedding", "transformed"}
    assert len({record.metrics["top1"] for record in found.values()}) > 1
    assert "deviations" not in found["backbone"].metrics
    assert found["embedding"].metrics["deviations"] == ["features: embedding, published backbone"]

    alone = places / "alone"
    alone.mkdir()
    shutil.copy(trained / "backbone.safetensors", alone)
    refused = command("-m", "pretrain.evaluate", "knn", "--ckpt", str(alone), "--features", "embedding")
    assert refused.returncode != 0
    assert "need the projector, which a backbone alone does not have" in refused.stderr


def test_a_method_without_a_transform_says_so(places: Path, command: Command) -> None:
    assert command("-m", "pretrain", "sample/simclr", *SMALL).returncode == 0
    (folder,) = (places / "pretrain").iterdir()
    refused = command("-m", "pretrain.evaluate", "knn", "--ckpt", str(folder), "--features", "transformed")
    assert refused.returncode != 0
    assert "simclr compares embeddings as they are; use features=embedding" in refused.stderr
    assert not (places / "knn").exists()


def test_what_depends_on_the_batch_is_not_trained_on_in_batches_of_another_size(places: Path) -> None:
    target = Target("intl-s0", "intl-s0-0", "tiny", 32, 32, {})
    assert "features" not in config("linear", target, Options("sample"))
    assert config("linear", target, Options("sample", features="transformed"))["features"] == "transformed"
    with pytest.raises(UserError, match="features=transformed depend on the batch"):
        config("linear", target, Options("moco", features="transformed"))
