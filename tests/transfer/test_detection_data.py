"""Faults of a detection set are found before anything is trained: counted, and the first one named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.coco_folder import edit, write_coco
from tests.support.voc_folder import write_voc
from transfer.coco_content import check_content
from transfer.detection_set import annotation_hashes, check_image_files, read_data, register, subset_of
from transfer.voc_set import CLASSES
from whitebench.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
TRAIN = "annotations/instances_train2017.json"


def first(folder: Path, **changes: Any) -> None:
    edit(folder / TRAIN, lambda raw: raw["annotations"][0].update(changes))


def resize(path: Path) -> None:
    with Image.open(path) as image:
        image.resize((20, 10)).save(path)


COCO_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty box": (
        lambda f: first(f, bbox=[3, 3, 0, 5]),
        r"1 of 12 annotations have an empty box, e\.g\. annotation 1",
    ),
    "beyond": (lambda f: first(f, bbox=[50, 3, 40, 5]), "reaches beyond the image"),
    "above": (lambda f: first(f, bbox=[3, -20, 10, 25]), "reaches beyond the image"),
    "not finite": (lambda f: first(f, bbox=[3, float("nan"), 10, 25]), "box that is not finite"),
    "three numbers": (lambda f: first(f, bbox=[3, 3, 5]), "box that is not four numbers"),
    "no polygon": (lambda f: first(f, segmentation=[]), "have an empty mask"),
    "a point": (lambda f: first(f, segmentation=[[5, 5, 5, 5, 5, 5]]), "have an empty mask"),
    "two points": (lambda f: first(f, segmentation=[[5, 5, 9, 9]]), "have an empty mask"),
    "coded, empty": (lambda f: first(f, segmentation={"size": [64, 64], "counts": [64 * 64]}), "have an empty mask"),
    "coded, other size": (lambda f: first(f, segmentation={"size": [9, 9], "counts": [1, 80]}), "mask of another size"),
    "no mask at all": (lambda f: first(f, segmentation="none"), "neither polygons nor run-length coded"),
    "one id twice": (lambda f: first(f, id=2), "two entries of 'annotations' have the id 2"),
    "no size": (lambda f: edit(f / TRAIN, lambda raw: raw["images"][0].update(width=0)), "impossible size 0 x 64"),
    "other size": (
        lambda f: resize(f / "train2017" / "000000000001.jpg"),
        r"000000000001\.jpg: is 20 x 10 pixels, its annotations are for 64 x 64",
    ),
    "no picture": (lambda f: (f / "val2017" / "000000000001.jpg").write_bytes(b"no"), "does not decode"),
}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_faults_of_coco_annotations_are_counted_and_named(tmp_path: Path, fault: str) -> None:
    folder = write_coco(tmp_path / "coco")
    spoil, message = COCO_FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        check_image_files(read_data(folder))
    assert "\n" not in str(error.value)


def content(count: int) -> dict[str, Any]:
    square = [[5, 5, 9, 5, 9, 9, 5, 9]]
    entry = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 4, 4], "segmentation": square, "area": 16, "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 20, "height": 20}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": number, **entry} for number in range(1, count + 1)],
    }


def test_few_faults_among_many_annotations_are_noted_and_more_are_refused() -> None:
    path, raw = Path("set/x.json"), content(2000)
    raw["annotations"][7]["bbox"] = [5, 5, 0, 4]
    checked = check_content(path, raw)
    assert checked.notes == ["x.json: 1 of 2000 annotations have an empty box, e.g. annotation 8 of image 1"]
    assert checked.corrected is None  # Detectron2 skips it
    for number in range(3):
        raw["annotations"][number]["bbox"] = [5, 5, 0, 4]
    with pytest.raises(UserError, match=r"set/x\.json: 4 of 2000 annotations .*at most 1 in 1000 may; --skip-faulty"):
        check_content(path, raw)
    skipped = check_content(path, raw, skip=True)
    assert skipped.corrected is not None
    assert len(skipped.corrected["annotations"]) == 1996
    assert skipped.skipped[0] == "x.json: annotation 1 of image 1: has an empty box"
    assert len(skipped.skipped) == 4


def test_an_annotation_that_evaluation_cannot_read_is_left_out_of_many() -> None:
    raw = content(2000)
    raw["annotations"][7]["segmentation"] = [[5, 5, float("nan"), 5, 9, 9]]
    checked = check_content(Path("x.json"), raw)
    assert checked.corrected is not None
    assert [item["id"] for item in checked.corrected["annotations"]] == [k for k in range(1, 2001) if k != 8]
    assert "annotation 8 of image 1" in checked.notes[0]


def test_counts_of_a_whole_coco_set(tmp_path: Path) -> None:
    found = read_data(write_coco(tmp_path / "coco"))
    assert found.counts == {"train_images": 6, "train_objects": 12, "val_images": 3, "val_objects": 6}
    assert found.notes == ()


def test_voc_folder_is_recognised_counted_and_known_to_detectron2(tmp_path: Path) -> None:
    from detectron2.data import DatasetCatalog

    folder = write_voc(tmp_path / "voc")
    found = read_data(folder)
    assert found.counts == {"train_images": 5, "train_objects": 10, "val_images": 3, "val_objects": 6}
    assert found.categories == CLASSES
    train, val = register(found)
    assert [len(DatasetCatalog.get(name)) for name in train] == [3, 2]
    (cat, _) = DatasetCatalog.get(val)[0]["annotations"]
    assert cat["category_id"] == CLASSES.index("cat")
    assert annotation_hashes(folder).keys() == {"train", "val"}


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def xml(folder: Path) -> Path:
    return folder / "VOC2007" / "Annotations" / "000000.xml"


VOC_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no list of 2012": (
        lambda f: (f / "VOC2012/ImageSets/Main/trainval.txt").unlink(),
        r"VOC2012/ImageSets/Main/trainval\.txt is missing",
    ),
    "no list": (lambda f: (f / "VOC2007/ImageSets/Main/test.txt").unlink(), r"ImageSets/Main/test\.txt is missing"),
    "short list": (lambda f: (f / "VOC2007/ImageSets/Main/test.txt").write_text("000003"), "lists 1 images"),
    "no image": (lambda f: (f / "VOC2007/JPEGImages/000001.jpg").unlink(), r"1 of 3 images are missing, e\.g\. 000001"),
    "no annotation": (lambda f: xml(f).unlink(), r"000000\.xml: is missing"),
    "truncated": (lambda f: xml(f).write_text(xml(f).read_text()[:200]), r"000000\.xml: not XML, or truncated"),
    "unknown class": (lambda f: change(xml(f), ">cat<", ">car park<"), "'car park' is none of VOC's classes"),
    "no size": (lambda f: change(xml(f), "<width>64</width>", ""), r"000000\.xml: 'width' is missing"),
    "no number": (lambda f: change(xml(f), "<xmin>3</xmin>", "<xmin>three</xmin>"), "'xmin' is not a number: three"),
    "beyond": (lambda f: change(xml(f), "<xmin>3</xmin>", "<xmin>-30</xmin>"), r"1 of 6 .* the image, e\.g\. 0000"),
    "not said": (lambda f: change(xml(f), "<difficult>0</difficult>", ""), "does not say whether it is difficult"),
    "other size": (lambda f: resize(f / "VOC2007/JPEGImages/000003.jpg"), "is 20 x 10 pixels"),
}  # fmt: skip


@pytest.mark.parametrize("fault", VOC_FAULTS)
def test_faulty_voc_folders_are_one_clear_line(tmp_path: Path, fault: str) -> None:
    folder = write_voc(tmp_path / "voc")
    spoil, message = VOC_FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        check_image_files(read_data(folder))
    assert "\n" not in str(error.value)


def test_hash_of_voc_follows_its_annotations(tmp_path: Path) -> None:
    one, other = write_voc(tmp_path / "one"), write_voc(tmp_path / "other")
    assert annotation_hashes(one) == annotation_hashes(other)
    third = write_voc(tmp_path / "third")
    change(xml(third), ">cat<", ">dog<")
    assert annotation_hashes(third)["train"] != annotation_hashes(one)["train"]
    assert annotation_hashes(third)["val"] == annotation_hashes(one)["val"]


def test_part_of_a_set_is_drawn_by_names_whatever_the_folder_and_order() -> None:
    images = [{"file_name": f"a/{k}.jpg"} for k in range(20)]
    moved = [{"file_name": f"b/{k}.jpg"} for k in reversed(range(20))]
    drawn = [Path(image["file_name"]).name for image in subset_of(images, 5)]
    assert len(drawn) == 5
    assert sorted(drawn) == sorted(Path(image["file_name"]).name for image in subset_of(moved, 5))
    assert set(drawn) < {Path(image["file_name"]).name for image in subset_of(images, 9)}
    assert subset_of(images, None) == subset_of(images, 99) == images
