"""Cityscapes' folders: found, checked, trained, and evaluated by Cityscapes' own metric."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.cityscapes_folder import write, write_cityscapes
from tests.support.oracle import evaluate_oracle
from tests.support.vit_backbone import write_vit
from transfer.cityscapes_content import CLASSES
from transfer.detection_set import annotation_hashes, check_image_files, form, read_data, register
from transfer.records import Options
from transfer.stages import detect_stage
from whitebench.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("cityscapesscripts", reason="the package cityscapesscripts is not installed")


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cityscapes(tmp_path_factory.mktemp("data") / "cityscapes")


def test_classes_are_those_that_its_metric_evaluates() -> None:
    from cityscapesscripts.helpers.labels import labels

    assert {x.id: x.name for x in labels if x.hasInstances and not x.ignoreInEval} == CLASSES


def test_set_is_found_counted_and_read_as_detectron2_reads_it(cityscapes: Path, tmp_path: Path) -> None:
    from detectron2.data import DatasetCatalog
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances
    from detectron2.structures import BoxMode

    data = read_data(cityscapes)
    assert form(data) == "Cityscapes"
    assert data.counts == {"train_images": 4, "train_objects": 8, "val_images": 3, "val_objects": 6}
    assert data.categories == tuple(CLASSES.values())
    assert (data.mask_format, data.has_masks) == ("bitmask", True)
    check_image_files(data)
    (train,), _ = register(data, tmp_path)
    for path in (cityscapes / "gtFine/train").glob(
        "*/*_instanceIds.png"
    ):  # which the loader looks for, and does not read
        for end in ("labelIds.png", "polygons.json"):
            path.with_name(path.name.replace("instanceIds.png", end)).touch()
    expected = load_cityscapes_instances(
        str(cityscapes / "leftImg8bit/train"), str(cityscapes / "gtFine/train"), from_json=False, to_polygons=False
    )
    by_name = {image["file_name"]: image for image in expected}
    for image in DatasetCatalog.get(train):
        other = by_name[image["file_name"]]
        assert (image["height"], image["width"]) == (other["height"], other["width"])
        ours = sorted(described(item, BoxMode) for item in image["annotations"])
        assert ours == sorted(described(item, BoxMode) for item in other["annotations"])
    assert sum(item["iscrowd"] for image in expected for item in image["annotations"]) == 1  # the group


def described(item: dict[str, Any], modes: Any) -> Any:
    from pycocotools import mask

    coded = item["segmentation"]
    counts = coded["counts"] if isinstance(coded["counts"], bytes) else coded["counts"].encode()
    pixels = mask.decode({"size": coded["size"], "counts": counts})
    box = modes.convert(list(map(float, item["bbox"])), item["bbox_mode"], modes.XYXY_ABS)
    return item["category_id"], item.get("iscrowd", 0), tuple(box), int(pixels.sum()), pixels.tobytes()


def ids_of(folder: Path) -> Path:
    return sorted((folder / "gtFine" / "val").glob("*/*.png"))[0]


def change_ids(folder: Path, value: int) -> None:
    ids = np.asarray(Image.open(ids_of(folder))).copy()
    ids[0, 0] = value
    Image.fromarray(ids).save(ids_of(folder))


def colour(folder: Path) -> None:
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(ids_of(folder))


def other_size(folder: Path) -> None:
    Image.fromarray(np.full((32, 64), 26001, np.uint16)).save(ids_of(folder))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "ids missing": (
        lambda folder: ids_of(folder).unlink(),
        "1 of 3 in val are without its gtFine_instanceIds.png, e.g. aa",
    ),
    "image missing": (
        lambda folder: next((folder / "leftImg8bit" / "val").glob("bochum/*")).unlink(),
        "1 of 3 in val are without its leftImg8bit.png, e.g. bochum/bochum_000001",
    ),
    "no val": (lambda folder: [path.unlink() for path in (folder / "gtFine/val").glob("*/*")], "no Cityscapes folder"),
    "truncated ids": (lambda folder: ids_of(folder).write_bytes(ids_of(folder).read_bytes()[:60]), "does not decode"),
    "licence plate": (lambda folder: change_ids(folder, 65535), "65535 is no instance id of Cityscapes"),
    "label ids beyond": (lambda folder: change_ids(folder, 40), "40 is no instance id of Cityscapes"),
    "colours": (colour, "holds no ids, but pixels of"),
    "another size": (other_size, r"is 128 x 64 pixels, its annotations are for 64 x 32"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line_before_training(tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    change(write_cityscapes(tmp_path / "set"))
    with pytest.raises(UserError, match=message) as error:
        check_image_files(read_data(tmp_path / "set"))
    assert "\n" not in str(error.value)


def test_hash_follows_the_ids(tmp_path: Path) -> None:
    folder = write_cityscapes(tmp_path / "set")
    before = annotation_hashes(folder)
    ids = np.full((64, 128), 24000, np.uint16)
    write(folder, "val", "ulm", "ulm_000000_000019", np.zeros((64, 128, 3), np.uint8), ids)
    after = annotation_hashes(folder)
    assert before["train"] == after["train"]
    assert before["val"] != after["val"]


def registered_oracle(folder: Path, out: Path, **options: Any) -> Any:
    """The oracle's evaluation, where annotations are written to `out`."""
    from tests.support.oracle import WEIGHTS, Oracle
    from transfer.evaluation import evaluate
    from transfer.protocol import build_cfg, load_protocol, resolve
    from transfer.trainer import dataset_images

    data = read_data(folder)
    _, name = register(data, out)
    cfg = build_cfg(load_protocol("c4-1x"), resolve(load_protocol("c4-1x"), image_size=64), WEIGHTS)
    images = dataset_images([name], False)[: options.pop("count", None)]
    return evaluate(Oracle(images, **options), cfg, data, name, images)


@pytest.mark.parametrize("count", [None, 1])
def test_a_detector_that_knows_all_has_full_ap_by_both_metrics(
    cityscapes: Path, tmp_path: Path, count: int | None
) -> None:
    metrics = registered_oracle(cityscapes, tmp_path, count=count).metrics
    assert metrics["box_AP"] == pytest.approx(100)
    assert metrics["mask_AP50"] == pytest.approx(100)
    assert metrics["mask_AP"] > 89  # the oracle's masks are its boxes, a pixel smaller
    assert {"coco_mask_AP", "coco_mask_APl"} <= metrics.keys()


def test_lost_objects_cost_ap_by_both_metrics(cityscapes: Path, tmp_path: Path) -> None:
    metrics = registered_oracle(cityscapes, tmp_path, blur=3.0, lost=0.4).metrics
    assert 0 < metrics["mask_AP50"] < 100
    assert 0 < metrics["coco_mask_AP50"] < 100


def test_vitdet_trains_on_cityscapes_and_is_evaluated_again(
    cityscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfer.evaluate_trained import evaluate_only
    from whitebench.records import stage_folder

    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    options = Options(protocol="sample-vitdet", coco=cityscapes, iterations=3, image_size=64, batch=2, device="cpu")
    record = detect_stage(write_vit(tmp_path), options, say=lambda _: None)
    assert record.metrics.keys() >= {"box_AP", "mask_AP", "mask_AP50", "coco_mask_AP"}
    assert "data: of Cityscapes's form, published COCO" in record.metrics["deviations"]
    metrics, _ = evaluate_only(stage_folder("detect", record.id), cityscapes, device="cpu", say=lambda _: None)
    assert metrics == {key: record.metrics[key] for key in metrics}


def test_oracle_on_coco_has_no_official_masks(tmp_path: Path) -> None:
    from tests.support.coco_folder import write_coco

    evaluation, _ = evaluate_oracle(write_coco(tmp_path / "coco"))
    assert not any(key.startswith("coco_") for key in evaluation.metrics)
