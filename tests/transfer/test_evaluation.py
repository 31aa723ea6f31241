"""What is reported is what pycocotools counts on the same detections; pictures and curves show just that."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.coco_folder import edit, write_coco
from tests.support.oracle import evaluate_oracle
from tests.support.voc_folder import write_voc
from transfer import coco_det
from transfer.coco_det import main
from transfer.detection_set import read_data
from transfer.evaluate_trained import evaluate_only
from transfer.pictures import write_pictures
from transfer.records import Options
from transfer.stages import detect_stage
from transfer.voc_set import CLASSES
from whitebench.errors import UserError
from whitebench.records import read_record

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("data") / "many", val=12)


@pytest.mark.parametrize("count", [None, 7])
def test_metrics_are_pycocotools_on_the_detections_that_are_left(coco: Path, tmp_path: Path, count: int | None) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found, (images, _) = evaluate_oracle(coco, count=count, blur=1.5, lost=0.2)
    truth = COCO(str(coco / "annotations" / "instances_val2017.json"))
    for kind, task in (("box", "bbox"), ("mask", "segm")):
        counted = COCOeval(truth, truth.loadRes(str(found.write(tmp_path))), task)
        counted.params.imgIds = sorted(image["image_id"] for image in images)
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
        ours = [found.metrics[f"{kind}_{name}"] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        assert ours == [None if value < 0 else 100 * value for value in counted.stats[:6]]
        assert ours[0] is not None
        assert 10 < ours[0] < 90


def test_curves_have_the_ap_as_their_mean(coco: Path, tmp_path: Path) -> None:
    found, _ = evaluate_oracle(coco, blur=1.5, lost=0.2)
    for kind in ("box", "mask"):
        assert list(found.curves[kind]) == ["AP", "AP50", "AP75"]
        for metric, precision in found.curves[kind].items():
            assert len(precision) == 101
            assert 100 * np.mean(precision) == pytest.approx(found.metrics[f"{kind}_{metric}"], abs=1e-3)


def test_what_is_left_is_found_again(coco: Path, tmp_path: Path) -> None:
    found, (images, name) = evaluate_oracle(coco, blur=1.0)
    files = write_pictures(found, tmp_path, images, name)
    assert files.keys() == {"curves", "predictions"}
    assert json.loads((tmp_path / "pr_curves.json").read_text()) == found.curves
    assert len(found.examples) == 3
    with Image.open(files["predictions"]) as grid:
        assert grid.width == 4 * 320  # two pairs side by side
        pixels = np.asarray(grid.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 1000  # photos, not a blank sheet
    with Image.open(files["curves"]) as curves:
        assert curves.width == 1000


def test_voc_is_judged_by_detectron2_and_by_coco_beside_it(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc")
    perfect, _ = evaluate_oracle(folder, "c4-24k")
    assert perfect.metrics["coco_box_AP"] == pytest.approx(100)
    assert perfect.metrics["box_AP"] == perfect.metrics["box_AP50"] == pytest.approx(100 * 2 / 20)  # 2 of 20 classes
    blurred, (images, name) = evaluate_oracle(folder, "c4-24k", blur=2.0)
    assert blurred.metrics["coco_box_AP"] < perfect.metrics["coco_box_AP"]
    assert "mask_AP" not in blurred.metrics
    write_pictures(blurred, tmp_path, images, name)
    assert not (tmp_path / ".images.txt").exists()


def test_difficult_objects_of_voc_do_not_count(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc")
    found, (images, _) = evaluate_oracle(folder, "c4-24k")
    easy = {image["image_id"] for k, image in enumerate(images) if k % 2 == 0}
    dog = 11
    kept = [item for item in found.detections if item["category_id"] != dog or item["image_id"] in easy]
    assert len(kept) == len(found.detections) - 1  # without the difficult dog
    from transfer.voc_set import VocSet
    from transfer.voc_truth import voc_by_coco

    data = read_data(folder)
    assert isinstance(data, VocSet)
    counted = voc_by_coco([data.by_name[image["image_id"]] for image in images], kept, CLASSES)
    assert counted.stats[0] == pytest.approx(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a fine-tuning of 20 iterations, and its data."""
    from pretrain.checkpoint import write_backbone
    from tests.support.formats import resnet
    from transfer.stages import convert_stage

    out = tmp_path_factory.mktemp("runs")
    coco = write_coco(tmp_path_factory.mktemp("data") / "tiny", val=6)
    write_backbone(out / "backbone.safetensors", resnet(), {"arch": "resnet18", "dataset": "sample", "recipe": "x"})
    converted = convert_stage(out / "backbone.safetensors", out=out, say=lambda _: None)
    options = Options(protocol="sample", coco=coco, iterations=20, image_size=64, batch=2, device="cpu", subset=4)
    said: list[str] = []
    record = detect_stage(out / "convert" / converted.id, options, out=out, say=said.append)
    assert any(line.startswith("estimate: ") for line in said)
    return out / "detect" / record.id, coco


def test_run_leaves_estimate_events_config_pictures_and_what_it_left_out(trained: tuple[Path, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = trained
    record = read_record(folder)
    assert record is not None
    assert record.metrics["estimate"]["total_s"] >= 20 * record.metrics["estimate"]["iteration_s"] > 0
    assert 0.1 < record.metrics["estimate"]["memory_gb"] < 100
    assert record.metrics["data"]["train_images"] == 6
    assert "data: 4 images of each part at most, published all" in record.metrics["deviations"]
    assert record.artifacts.keys() == {"model", "detections", "curves", "predictions"}
    assert len({item["image_id"] for item in json.loads((folder / "detections.json").read_text())}) <= 4
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert events.Scalars("train/loss")[-1].step == 20
    assert events.Scalars("val/box_AP")[0].value == pytest.approx(record.metrics["box_AP"], abs=1e-4)


def test_trained_run_is_judged_again_without_training(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, coco = trained
    before = (folder / "run.json").read_bytes()
    monkeypatch.setattr("transfer.trainer.FineTuning.fit", lambda *_: pytest.fail("was trained"))
    main(["--eval-only", str(folder), "--coco", str(coco), "--device", "cpu"])
    said = capsys.readouterr().out
    assert "as the record says" in said
    assert (folder / "run.json").read_bytes() == before
    out = folder / "evaluations" / "tiny-4"
    record = read_record(folder)
    assert record is not None
    assert json.loads((out / "metrics.json").read_text())["box_AP"] == record.metrics["box_AP"]
    assert (out / "detections.json").read_bytes() == (folder / "detections.json").read_bytes()


def test_same_classes_under_other_ids_give_the_same_ap(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, coco = trained
    other = tmp_path / "tiny"
    shutil.copytree(coco, other)

    def swap(raw: dict[str, Any]) -> None:
        for item in raw["categories"]:
            item["id"] = {3: 7, 7: 3}[item["id"]]
        for item in raw["annotations"]:
            item["category_id"] = {3: 7, 7: 3}[item["category_id"]]

    for split in ("train2017", "val2017"):
        edit(other / "annotations" / f"instances_{split}.json", swap)
    metrics, _ = evaluate_only(folder, other, device="cpu", say=lambda _: None)
    record = read_record(folder)
    assert record is not None
    assert record.metrics["categories"] == ["red", "blue"]
    assert metrics == {name: record.metrics[name] for name in metrics}
    for split in ("train2017", "val2017"):
        edit(other / "annotations" / f"instances_{split}.json", lambda raw: raw["categories"][0].update(name="green"))
    with pytest.raises(UserError, match="'green' is not among them"):
        evaluate_only(folder, other, device="cpu", say=lambda _: None)


def test_a_picture_that_cannot_be_drawn_costs_nothing(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, (images, name) = evaluate_oracle(coco, blur=1.0)
    images[0]["annotations"][0]["keypoints"] = [1, 1, 2] * 17  # Detectron2 draws them, and finds no names for them
    lines: list[str] = []
    assert write_pictures(evaluation, tmp_path, images, name, lines.append).keys() == {"curves"}
    assert lines[0].startswith("warning: no picture of predictions: ")


def test_runs_that_cannot_be_judged_are_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = trained
    with pytest.raises(UserError, match="not the folder of a fine-tuning"):
        main(["--eval-only", str(tmp_path)])
    other = write_coco(tmp_path / "other")
    for split in ("train2017", "val2017"):
        path = other / "annotations" / f"instances_{split}.json"
        edit(path, lambda raw: raw["categories"].append({"id": 9, "name": "green"}))
    with pytest.raises(UserError, match="its 3 categories are not the 2 that are expected: 'green' is not among them"):
        main(["--eval-only", str(folder), "--coco", str(other), "--device", "cpu"])
    with pytest.raises(UserError, match="--ckpt, a checkpoint to fine-tune, or --eval-only"):
        main(["--eval-only", str(folder), "--ckpt", "x.pth"])
    with pytest.raises(UserError, match="--ckpt, a checkpoint to fine-tune, or --eval-only"):
        main([])


def test_mean_and_sd_over_seeds_are_said(capsys: pytest.CaptureFixture[str], trained: tuple[Path, Path]) -> None:
    records = []
    for box in (10.0, 12.0, 17.0):
        other = read_record(trained[0])
        assert other is not None
        other.metrics["box_AP"] = box
        records.append(other)
    coco_det._summarise(records, None)
    assert "box_AP: 13.00 +- 3.61 (mean and sd over 3 fine-tunings of one backbone)" in capsys.readouterr().out
