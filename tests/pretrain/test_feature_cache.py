"""Features that linear probe and k-NN share: the same bits as computed for each, and computed once."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint import read_backbone, write_backbone
from pretrain.evaluate import feature_cache, features, stage
from pretrain.evaluate.target import Options, Target
from pretrain.networks import build_backbone
from whitebench.errors import UserError
from whitebench.records import Record


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHITEBENCH_DATA", str(tiny_root))
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    return tmp_path


def backbone(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    metadata = {"arch": "resnet18", "stem": "imagenet", "mean": [0.5] * 3, "std": [0.25] * 3}
    write_backbone(path, build_backbone("resnet18", "imagenet").state_dict(), metadata)
    return path


def evaluate(kind: str, ckpt: Path, crop: int = 32, **options: Any) -> Record:
    target = Target.of_backbone(read_backbone(ckpt), "tiny", crop, 36)
    protocol = {"linear": "sample", "knn": "cosine-20"}[kind]
    return stage.run(kind, ckpt, target, Options(protocol=protocol, **options))


def cached(root: Path) -> list[Path]:
    return sorted((root / "runs" / feature_cache.FOLDER).glob("*"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits whose images are read."""
    splits: list[str] = []
    crops = features.centre_crops

    def counted(manifest: Any, split: str, *rest: Any) -> Any:
        splits.append(split)
        return crops(manifest, split, *rest)

    monkeypatch.setattr(features, "centre_crops", counted)
    return splits


def test_the_second_evaluation_of_a_backbone_reads_no_image_and_has_the_same_results(
    root: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt = backbone(root / "a.safetensors", seed=0)
    monkeypatch.setenv(feature_cache.LIMIT, "0")
    expected = {kind: evaluate(kind, ckpt).metrics for kind in ("linear", "knn")}
    assert encoded == ["val", "train", "train", "val"]
    assert not cached(root)

    monkeypatch.setenv("WHITEBENCH_RUNS", str(root / "again" / "runs"))
    monkeypatch.delenv(feature_cache.LIMIT)
    encoded.clear()
    assert evaluate("knn", ckpt).metrics == expected["knn"]
    assert encoded == ["train", "val"]
    assert evaluate("linear", ckpt).metrics == expected["linear"]
    assert encoded == ["train", "val"]


def test_other_weights_crops_threads_and_code_have_features_of_their_own(
    root: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt = backbone(root / "a.safetensors", seed=0)
    evaluate("knn", ckpt)
    for changes in ({"crop": 28}, {"threads": 2}):
        encoded.clear()
        evaluate("knn", ckpt, **changes)
        assert encoded == ["train", "val"], changes
    encoded.clear()
    evaluate("knn", backbone(root / "b.safetensors", seed=1))
    assert encoded == ["train", "val"]
    encoded.clear()
    monkeypatch.setattr(feature_cache, "files_behind", lambda entry: {entry: "changed"})
    evaluate("linear", ckpt)
    assert encoded == ["val", "train"]


def test_a_damaged_file_is_computed_again(root: Path, encoded: list[str]) -> None:
    ckpt = backbone(root / "a.safetensors", seed=0)
    expected = evaluate("knn", ckpt).metrics
    whole = [path.read_bytes() for path in cached(root)]
    for path in cached(root):
        path.write_bytes(path.read_bytes()[:-7])
    for path in (root / "runs" / "knn").glob("*/*"):
        path.unlink()
    encoded.clear()
    assert evaluate("knn", ckpt).metrics == expected
    assert encoded == ["train", "val"]
    assert [path.read_bytes() for path in cached(root)] == whole


def test_the_least_recently_used_leave_first_and_a_file_that_is_too_large_is_not_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "runs" / feature_cache.FOLDER
    rows = (torch.zeros(250, 9), torch.zeros(250, dtype=torch.int64))  # 11 KB
    monkeypatch.setenv(feature_cache.LIMIT, "25e-6")
    for number, name in enumerate(("a", "b", "c")):
        feature_cache._write(folder / f"{name}.safetensors", *rows, limit=25e3)
        os.utime(folder / f"{name}.safetensors", (number + 1, number + 1))
        if name == "b":
            assert feature_cache._read(folder / "a.safetensors") is not None  # now newer than b
    assert [path.name for path in cached(root)] == ["a.safetensors", "c.safetensors"]

    file: Any = type("Backbone", (), {"sha256": "", "arch": "", "stem": "", "origin": ""})
    large = torch.zeros(250, 99)
    result = feature_cache.cached_features(file, {}, lambda: (large, rows[1]), "cpu")
    assert result[0] is large
    assert [path.name for path in cached(root)] == ["a.safetensors", "c.safetensors"]


@pytest.mark.parametrize("text", ["much", "-1", "inf", "nan"])
def test_a_limit_that_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(feature_cache.LIMIT, text)
    with pytest.raises(UserError, match=f"WHITEBENCH_FEATURES_GB={text}: not a number of gigabytes"):
        feature_cache._limit_bytes()


def test_a_folder_that_may_not_be_written_costs_no_result(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ckpt = backbone(root / "a.safetensors", seed=0)
    (root / "runs").mkdir()
    (root / "runs" / feature_cache.FOLDER).write_text("a file where the folder would be")
    assert evaluate("knn", ckpt).metrics["top1"] > 0
