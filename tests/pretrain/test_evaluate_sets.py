"""Evaluations on sets of images in the layouts that people have, through the user's command."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.evaluate import __main__ as command
from pretrain.evaluate import fewshot, retrieval, robust, voc07
from pretrain.evaluate.image_files import read_image
from pretrain.evaluate.protocol_kinds import SVM, FewShot
from pretrain.evaluate.protocols import find_protocol
from pretrain.evaluate.stage import plan
from pretrain.evaluate.target import Options, Target
from results.leaderboards.collect import collect
from results.leaderboards.leaderboard import tabulate
from tests.support.evaluation_sets import (
    encoder,
    image,
    image_folder,
    retrieval_folder,
    shifted_folder,
    voc_folder,
)
from whitebench.errors import UserError
from whitebench.records import Record, read_record

CLASSES = ("apple", "banana", "cherry")
Evaluate = Callable[..., list[Record]]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "data"
    image_folder(root / "shapes", CLASSES)
    monkeypatch.setenv("WHITEBENCH_DATA", str(root))
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    return root


@pytest.fixture
def evaluate(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """evaluate("knn", "--datasets", "a,b"): the command in this process; the records that are there afterwards."""
    ckpt = encoder(tmp_path / "encoder-0.safetensors")

    def run(stage: str, *arguments: str, ckpt: Path = ckpt) -> list[Record]:
        monkeypatch.setattr(sys, "argv", ["evaluate", stage, "--ckpt", str(ckpt), *arguments])
        command.main()
        folders = sorted((tmp_path / "runs" / stage).iterdir())
        return [record for folder in folders if (record := read_record(folder))]

    return run


def test_two_encoders_over_four_sets_are_one_leaderboard(data: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    sets = ["one", "two", "three"]
    for number, name in enumerate(sets):
        image_folder(data / name, CLASSES[: 2 + number % 2], first=10 * number + 10)
    names = ",".join(["shapes", *sets])
    evaluate("knn", "--datasets", names)
    records = evaluate("knn", "--datasets", names, ckpt=encoder(tmp_path / "encoder-1.safetensors", seed=1))
    assert sorted(record.cell["dataset"] for record in records) == sorted(2 * ["shapes", *sets])
    (table,) = tabulate(collect([tmp_path / "runs"])).transfer.values()
    assert len(table) == 2
    assert set(table.n_datasets) == {4}
    assert (table.missing == "").all()
    ranks = table[[f"{name}_rank" for name in ("shapes", *sets)]]
    assert np.allclose(ranks.mean(axis=1), table.mean_rank)
    assert np.allclose(ranks.sum(), 3)
    assert table.mean_rank.is_monotonic_increasing
    means = table[[f"{name}_mean" for name in ("shapes", *sets)]].mean(axis=1)
    assert np.allclose(means, table["mean"])


def test_a_set_that_is_missing_is_named_before_anything_runs(data: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    image_folder(data / "flowers", CLASSES)
    with pytest.raises(UserError, match=r"no dataset 'flowres'.*did you mean 'flowers'"):
        evaluate("knn", "--datasets", "shapes,flowres")
    with pytest.raises(UserError, match="'shapes' is listed twice"):
        evaluate("knn", "--datasets", "shapes,shapes")
    with pytest.raises(UserError, match="empty name"):
        evaluate("knn", "--datasets", "shapes,,flowers")
    assert not (tmp_path / "runs").exists()


def test_a_damaged_checkpoint_is_one_line(evaluate: Evaluate, tmp_path: Path) -> None:
    whole = (tmp_path / "encoder-0.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.safetensors: "):
        evaluate("knn", ckpt=tmp_path / "half.safetensors")


def test_few_shots_have_a_mean_and_an_interval_over_draws(data: Path, evaluate: Evaluate) -> None:
    with pytest.raises(UserError, match="class 'apple' has 6 labelled training images, fewer than 10 shots"):
        evaluate("fewshot", "--datasets", "shapes")
    (record,) = evaluate("fewshot", "--datasets", "shapes", "--shots", "1,5")
    draws = record.metrics["shot5_draws"]
    assert len(draws) == 5
    assert record.metrics["shot5"] == pytest.approx(np.mean(draws))
    assert record.metrics["top1"] == pytest.approx((record.metrics["shot1"] + record.metrics["shot5"]) / 2)
    assert record.metrics["shot1_ci95"] == fewshot.half_interval(record.metrics["shot1_draws"])
    assert record.config["shots"] == [1, 5]


@pytest.mark.parametrize("name", ["centroid", "logistic"])
def test_few_shot_classifiers_tell_clusters_apart(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(4, 20, generator=generator)
    labels = torch.arange(40) % 4
    points = centres[labels] + torch.randn(40, 20, generator=generator)
    protocol = find_protocol("fewshot", name)
    assert isinstance(protocol, FewShot)
    for classes in (4, 2):
        rows = labels < classes
        x, y = points[rows], labels[rows]
        scores = fewshot.class_scores(x[:8], y[:8], x[8:], protocol)
        assert scores.shape == (len(x) - 8, classes)
        assert (scores.argmax(dim=1) == y[8:]).float().mean() > 0.9


def test_draws_take_this_many_of_each_class(data: Path, evaluate: Evaluate) -> None:
    from pretrain.data.betons.manifest import read_manifest

    evaluate("knn", "--datasets", "shapes")
    manifest = read_manifest("shapes")
    draws = fewshot.draw(manifest, FewShot("t", "", "centroid", shots=(1, 4), draws=3), 0)
    files = np.array(manifest.file_names("train"))
    for images in draws:
        assert images.shape == (3, 4)
        assert len(np.unique(images)) == 12
        for name, row in zip(manifest.classes, images, strict=True):
            assert all(file.startswith(f"{name}/") for file in files[row])
    assert any((draws[0] != other).any() for other in draws[1:])


def test_shifted_sets_are_matched_by_the_names_of_their_classes(data: Path, evaluate: Evaluate) -> None:
    shifted_folder(data / "rendered", ("cherry", "apple"))
    shifted_folder(data / "corrupted", CLASSES, corruptions=("fog", "snow"))
    records = evaluate("robust", "--datasets", "shapes", "--shifts", "rendered,corrupted")
    by_set = {record.cell["dataset"]: record for record in records}
    assert set(by_set) == {"rendered", "corrupted"}
    metrics = by_set["corrupted"].metrics
    assert metrics["mean_error"] == pytest.approx(100 - metrics["top1"])
    assert set(metrics["corruptions"]) == {"fog", "snow"}
    assert metrics["top1"] == pytest.approx(np.mean(list(metrics["corruptions"].values())))
    assert "mCE" not in metrics
    assert by_set["rendered"].config["trained_on"] == "shapes"
    shifted_folder(data / "other", ("aple", "cherry"))
    with pytest.raises(UserError, match=r"1 of 2 classes are not among .* e.g. 'aple'; did you mean 'apple'"):
        evaluate("robust", "--datasets", "shapes", "--shifts", "other")
    (data / "empty").mkdir()
    with pytest.raises(UserError, match="no images in folders of classes"):
        evaluate("robust", "--datasets", "shapes", "--shifts", "empty")


def test_alexnets_own_errors_are_a_mean_corruption_error_of_100() -> None:
    assert len(robust.ALEXNET_ERROR) == 15
    errors = {name: 100 * error for name, error in robust.ALEXNET_ERROR.items()}
    assert robust.mean_corruption_error(errors) == pytest.approx(100)
    assert robust.mean_corruption_error({**errors, "fog": 0.0}) == pytest.approx(100 * 14 / 15)


def test_severities_are_told_from_classes_that_are_digits(tmp_path: Path) -> None:
    digits = ("0", "1", "2")
    plain = robust.read_set(str(shifted_folder(tmp_path / "plain", digits)), digits)
    assert [part.corruption for part in plain.parts] == [""]
    corrupted = robust.read_set(str(shifted_folder(tmp_path / "c", digits, ("fog",))), digits)
    assert [(part.corruption, part.severity) for part in corrupted.parts] == [("fog", "1"), ("fog", "2")]
    assert corrupted.count == 12


def test_retrieval_by_a_ground_truth(data: Path, evaluate: Evaluate) -> None:
    retrieval_folder(data / "buildings")
    (record,) = evaluate("retrieval", "--dataset", "buildings")
    assert set(record.metrics) >= {"mAP", "mAP_easy", "mAP_medium", "mAP_hard"}
    assert record.metrics["mAP"] == record.metrics["mAP_medium"]
    truth = json.loads((data / "buildings" / "gnd_small.json").read_text())
    (data / "buildings" / "gnd_small.json").unlink()
    (data / "buildings" / "gnd_small.pkl").write_bytes(pickle.dumps(truth))
    assert retrieval.read_set("buildings").queries == retrieval.read_set(str(data / "buildings")).queries


def test_average_precision_is_that_of_the_revisited_sets() -> None:
    """By hand: right images at ranks 0 and 2 of 2: (1 + 1)/2 / 2 + (1/2 + 2/3)/2 / 2."""
    assert retrieval.average_precision(np.array([0, 2]), 2) == pytest.approx(0.5 + (0.5 + 2 / 3) / 4)
    order = np.array([[2, 0, 3, 1]])
    truths = [{"easy": [0], "hard": [1], "junk": [2]}]
    assert retrieval.mean_precision(order, truths, ("easy",), ("junk", "hard")) == pytest.approx(1)
    hard = retrieval.mean_precision(order, truths, ("hard",), ("junk", "easy"))
    assert hard == pytest.approx((0 + 1 / 2) / 2)
    assert np.isnan(retrieval.mean_precision(order, [{"easy": []}], ("easy",), ()))


def test_without_a_ground_truth_every_image_is_a_query(data: Path, evaluate: Evaluate) -> None:
    shutil.copytree(data / "shapes" / "val", data / "pictures")
    (record,) = evaluate("retrieval", "--dataset", "pictures")
    assert record.data["manifest"]["splits"]["val"]["count"] == 12
    assert 0 < record.metrics["mAP"] <= 100


def test_a_ground_truth_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (__import__, ("os",))

    (tmp_path / "gnd_evil.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="not a readable ground truth"):
        retrieval.read_set(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a ground truth"):
        retrieval.read_set(str(tmp_path / "empty"))


def test_voc07_has_a_mean_precision_over_classes(data: Path, evaluate: Evaluate) -> None:
    voc_folder(data / "voc")
    (record,) = evaluate("voc07", "--dataset", "voc", "--protocol", "svm-quick")
    assert record.metrics["mAP"] == pytest.approx(100 * np.mean(list(record.metrics["ap"].values())))
    assert set(record.metrics["ap"]) == {"cat", "dog"}
    lists = data / "voc" / "VOC2007" / "ImageSets" / "Main"
    (lists / "dog_test.txt").write_text("001000 yes\n")
    with pytest.raises(UserError, match=r"dog_test\.txt: '001000 yes' is not an image and 1, -1 or 0"):
        evaluate("voc07", "--dataset", "voc")


def test_difficult_images_do_not_count() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([1, -1] * 20)
    x = rng.normal(0, 1, (40, 5)).astype(np.float32) + labels[:, None]
    protocol = SVM("t", "", costs=(0.1, 1.0))
    _, clean = voc07.class_precision(x, labels, x, labels, protocol)
    wrong, marked = np.concatenate([x, -9 * np.ones((3, 5), np.float32)]), np.concatenate([labels, [0, 0, 0]])
    _, with_difficult = voc07.class_precision(wrong, marked, wrong, marked, protocol)
    assert with_difficult == clean > 0.9


def test_an_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    with pytest.raises(UserError, match=r"broken\.jpg: does not decode"):
        read_image(tmp_path / "broken.jpg")


def test_fine_tuning_records_what_it_omits_and_averages(data: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    (record,) = evaluate("finetune", "--datasets", "shapes", "--protocol", "sample-mixed")
    assert record.metrics["labelled"] == 18
    assert {"top1", "top1_plain", "top1_best", "best_epoch"} <= set(record.metrics)
    assert not list((tmp_path / "runs" / "finetune" / record.id).glob("checkpoint*"))
    assert "deviations" not in record.metrics
    assert find_protocol("finetune", "mae-base").omitted  # type: ignore[union-attr]


def test_a_grid_selects_on_training_images(data: Path, evaluate: Evaluate) -> None:
    (record,) = evaluate("linear", "--datasets", "shapes", "--protocol", "sample-grid")
    assert record.metrics["held_out"] == 3
    assert len(record.metrics["probes"]) == 24
    best = max(probe["held_out_top1"] for probe in record.metrics["probes"])
    assert record.metrics["held_out_top1"] == best
    chosen = {**record.metrics["selected"], "held_out_top1": best}
    assert chosen in record.metrics["probes"]


def test_labels_may_come_from_another_dataset_than_the_pretraining(
    data: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    """STL-10's way: pretrained on unlabelled images, `evaluation.dataset` names the labelled ones."""
    from pretrain.data.betons.write import write_dataset
    from pretrain.recipe import load
    from pretrain.train import train

    for number in range(12):
        image(data / "unlabelled" / f"{number}.png", number % 3, number)
    image_folder(data / "labelled", CLASSES)
    for name in ("unlabelled", "labelled"):
        write_dataset(data / name, data / name)
    settings = {"data.dataset": "unlabelled", "evaluation.dataset": "labelled", "data.views.0.size": 32, "batch": 6}
    recipe = load("sample/random", settings)
    record = train(recipe)
    assert record is not None
    (found,) = evaluate("knn", ckpt=tmp_path / "runs" / "pretrain" / record.id)
    assert (found.config["dataset"], found.cell["dataset"]) == ("labelled", "labelled")
    assert found.parents == [record.id]
    planned = Target.of_recipe(recipe, record.id)
    assert plan("knn", planned, Options("cosine-20")) == found.id
    with pytest.raises(UserError, match="dataset 'unlabelled' has no "):
        evaluate("knn", "--dataset", "unlabelled", ckpt=tmp_path / "runs" / "pretrain" / record.id)
