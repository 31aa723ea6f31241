"""LVIS's annotations: found, checked, trained with its federated loss, and evaluated by its own package."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.coco_folder import edit, write_coco
from tests.support.lvis_folder import write_lvis
from tests.support.oracle import Oracle, evaluate_oracle
from tests.support.vit_backbone import write_vit
from transfer.batches import repeating_order
from transfer.detection_set import annotation_hashes, form, read_data, register
from transfer.records import Options
from transfer.stages import detect_stage
from whitebench.errors import UserError

pytestmark = [pytest.mark.filterwarnings("ignore")]
pytest.importorskip("lvis", reason="the package lvis is not installed")
VAL = "lvis_v1_val.json"


@pytest.fixture(scope="module")
def lvis_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lvis(tmp_path_factory.mktemp("data") / "lvis")


def test_set_is_found_counted_and_read_by_detectron2s_own_reader(lvis_set: Path) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import load_lvis_json

    data = read_data(lvis_set)
    assert form(data) == "LVIS"
    assert data.counts == {"train_images": 6, "train_objects": 12, "val_images": 3, "val_objects": 6}
    assert data.categories == ("red", "blue", "green")
    assert (data.notes, annotation_hashes(lvis_set).keys()) == ((), {"train", "val"})
    (train,), val = register(data)
    expected = load_lvis_json(str(lvis_set / "lvis_v1_train.json"), f"{lvis_set}/")
    assert DatasetCatalog.get(train) == expected
    assert all(Path(image["file_name"]).is_file() for image in DatasetCatalog.get(val))
    assert [item["image_count"] for item in MetadataCatalog.get(train).class_image_count] == [6, 6, 0]


def test_coco_and_lvis_side_by_side_are_told_apart_by_the_names_given(tmp_path: Path) -> None:
    from transfer.coco_layout import Files

    write_lvis(tmp_path / "set")
    other = write_coco(tmp_path / "other")
    (other / "annotations").rename(tmp_path / "set" / "annotations2")
    for path in (tmp_path / "set" / "annotations2").iterdir():
        path.rename(tmp_path / "set" / "annotations" / path.name)
    assert form(read_data(tmp_path / "set")) == "COCO"
    files = Files(train_json="lvis_v1_train.json", val_json="lvis_v1_val.json")
    assert form(read_data(tmp_path / "set", files)) == "LVIS"
    with pytest.raises(UserError, match="of COCO's and of LVIS's form"):
        read_data(tmp_path / "set", Files(val_json="lvis_v1_val.json"))


def first_image(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw["images"][0].update(changes)


def drop(section: str, key: str) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw[section][0].pop(key)


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no negatives": (drop("images", "neg_category_ids"), "image 1 has no list 'neg_category_ids'"),
    "no exhaustive list": (first_image(not_exhaustive_category_ids=None), "no list 'not_exhaustive_category_ids'"),
    "unknown negative": (first_image(neg_category_ids=[9]), "names an unknown category 9 in 'neg_category_ids'"),
    "text as negative": (first_image(neg_category_ids=["3"]), "names an unknown category 3"),
    "no address": (drop("images", "coco_url"), "image 1 has neither 'coco_url' nor 'file_name'"),
    "no frequency": (drop("categories", "frequency"), "category red has the frequency None; LVIS's are r, c and f"),
    "image id as text": (first_image(id="1"), "an image has the id 1; LVIS's are whole numbers"),
    "run-length codes": (
        lambda raw: raw["annotations"][0].update(segmentation={"size": [64, 64], "counts": "x"}),
        "annotation 1 has no polygons",
    ),
    "ids with a gap": (lambda raw: raw["categories"][2].update(id=7), "category ids are 1 to 3, each once"),
    "another size": (first_image(width=0), "image 1 has the impossible size"),
    "absent image": (first_image(coco_url="http://x/val2017/none.jpg"), "1 of 3 images are missing, e.g. val2017/none"),
    "other category": (lambda raw: raw["categories"][1].update(name="azure"), "the categories of train and val"),
    "double annotation": (lambda raw: raw["annotations"][1].update(id=1), "two entries of 'annotations' have the id 1"),
    "mask of NaN": (
        lambda raw: raw["annotations"][0].update(segmentation=[[float("nan")] * 8]),
        "1 of 6 annotations have a polygon that is not finite",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line_before_training(tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    folder = write_lvis(tmp_path / "set")
    edit(folder / VAL, change)
    with pytest.raises(UserError, match=message) as error:
        read_data(folder)
    assert "\n" not in str(error.value)


def test_corrected_annotations_keep_what_lvis_needs(tmp_path: Path) -> None:
    folder = write_lvis(tmp_path / "set")
    edit(folder / VAL, lambda raw: raw["annotations"][0].update(bbox=[1, 1, 0, 0]))
    data = read_data(folder, skip=True)
    _, name = register(data, tmp_path / "run")
    from detectron2.data import MetadataCatalog

    written = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    assert len(written["annotations"]) == 5
    assert [image["not_exhaustive_category_ids"] for image in written["images"]] == [[2], [], []]
    assert [item["frequency"] for item in written["categories"]] == ["f", "r", "c"]


def test_images_with_a_name_alone_are_found(tmp_path: Path) -> None:
    folder = write_lvis(tmp_path / "set")
    for name in ("lvis_v1_train.json", VAL):
        edit(folder / name, lambda raw: [rename(image) for image in raw["images"]])
    _, name = register(read_data(folder), tmp_path / "run")
    from detectron2.data import DatasetCatalog

    assert all(Path(image["file_name"]).is_file() for image in DatasetCatalog.get(name))


def rename(image: dict[str, Any]) -> None:
    image["file_name"] = "/".join(image.pop("coco_url").split("/")[-2:])


def test_a_detector_that_knows_all_has_full_ap(lvis_set: Path) -> None:
    evaluation, _ = evaluate_oracle(lvis_set)
    metrics = evaluation.metrics
    assert {key for key in metrics if key.startswith("box")} == {
        f"box_{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    }
    assert metrics["box_AP"] == metrics["box_APr"] == metrics["box_APf"] == pytest.approx(100)
    assert metrics["mask_AP"] == pytest.approx(100)
    assert metrics["box_APc"] is None  # green does not occur
    assert {item["category_id"] for item in evaluation.detections} == {1, 2}


@pytest.mark.parametrize("count", [None, 2])
def test_metrics_are_lvis_on_the_detections_and_images_that_were_evaluated(
    lvis_set: Path, tmp_path: Path, count: int | None
) -> None:
    from transfer.lvis_evaluation import lvis_api

    evaluation, _ = evaluate_oracle(lvis_set, count=count, blur=3.0, lost=0.3)
    api = lvis_api()
    raw = json.loads((lvis_set / VAL).read_text())
    ids = [image["id"] for image in raw["images"]][:count]
    raw["images"] = [image for image in raw["images"] if image["id"] in ids]
    raw["annotations"] = [item for item in raw["annotations"] if item["image_id"] in ids]
    (tmp_path / "truth.json").write_text(json.dumps(raw))
    found = [{key: item[key] for key in ("image_id", "category_id", "bbox", "score")} for item in evaluation.detections]
    judged = api.LVISEval(str(tmp_path / "truth.json"), found, "bbox")
    judged.run()
    for name, value in judged.get_results().items():
        if f"box_{name}" in evaluation.metrics:
            expected = None if value < 0 else pytest.approx(100 * value)
            assert evaluation.metrics[f"box_{name}"] == expected, name
    assert 0 < evaluation.metrics["box_AP"] < 100  # type: ignore[operator]


def test_categories_that_were_not_looked_for_cost_nothing(lvis_set: Path) -> None:
    """False alarms of green, which is listed as absent, count; of a class in neither list they do not."""
    alone, _ = evaluate_oracle(lvis_set)
    folder_metrics = alone.metrics["box_APf"]

    class WithFalseAlarms(Oracle):
        def detect(self, image: dict[str, Any]) -> Any:
            from detectron2.structures import Boxes, Instances

            whole = super().detect(image)
            more = Instances(whole.image_size)
            more.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 5.0, 5.0]]))
            more.pred_classes, more.scores = torch.tensor([1]), torch.tensor([1.0])  # blue, in a corner
            more.pred_masks = torch.zeros(1, *whole.image_size, dtype=torch.bool)
            more.pred_masks[:, :5, :5] = True
            return Instances.cat([whole, more])

    metrics = evaluated(lvis_set, WithFalseAlarms)
    assert metrics["box_APf"] == folder_metrics
    assert metrics["box_APr"] < 100  # type: ignore[operator]  # blue is annotated exhaustively in two of three images


def evaluated(folder: Path, kind: Any) -> Any:
    from tests.support.oracle import WEIGHTS
    from transfer.evaluation import evaluate
    from transfer.protocol import build_cfg, load_protocol, resolve
    from transfer.trainer import dataset_images

    data = read_data(folder)
    cfg = build_cfg(load_protocol("c4-1x"), resolve(load_protocol("c4-1x"), image_size=64), WEIGHTS)
    _, name = register(data)
    images = dataset_images([name], False)
    evaluation = evaluate(kind(images), cfg, data, name, images)
    assert evaluation is not None
    return evaluation.metrics


def test_images_of_rare_classes_come_more_often_and_in_detectron2s_order() -> None:
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    factors = [1.0, 2.0, 1.5]
    order = list(islice(repeating_order(factors, seed=3), 900))
    expected = RepeatFactorTrainingSampler(torch.tensor(factors), seed=3)
    assert order == list(islice(iter(expected), 900))
    counts = Counter(order)
    assert counts[1] / counts[0] == pytest.approx(2, rel=0.02)
    assert counts[2] / counts[0] == pytest.approx(1.5, rel=0.1)


def test_vitdet_with_the_federated_loss_trains_and_leaves_ap_by_frequency(
    lvis_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfer.evaluate_trained import evaluate_only
    from whitebench.records import stage_folder

    pytest.importorskip("shapely", reason="polygons are cut by shapely")
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    own = tmp_path / "own.yaml"
    own.write_text("extends: vitdet-b-lvis-100ep\ntitle: small\nbackbones: ['timm:vit_tiny_*']\n")
    options = Options(protocol=str(own), coco=lvis_set, iterations=3, image_size=64, batch=2, device="cpu")
    record = detect_stage(write_vit(tmp_path), options, say=lambda _: None)
    assert record.metrics.keys() >= {"box_APr", "box_APc", "box_APf", "mask_APr"}
    lines = record.metrics["deviations"]
    assert "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES: 3, published 50 (the data's)" in lines
    assert not any(line.startswith("data: of") for line in lines)
    metrics, _ = evaluate_only(stage_folder("detect", record.id), lvis_set, device="cpu", say=lambda _: None)
    assert metrics == {key: record.metrics[key] for key in metrics}


def test_federated_loss_on_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    own = tmp_path / "own.yaml"
    own.write_text("extends: vitdet-b-lvis-100ep\ntitle: small\nbackbones: ['timm:vit_tiny_*']\n")
    options = Options(protocol=str(own), coco=write_coco(tmp_path / "coco"), iterations=3, image_size=64, batch=2)
    with pytest.raises(UserError, match="protocol own has the federated loss of LVIS"):
        detect_stage(write_vit(tmp_path), options, say=lambda _: None)
