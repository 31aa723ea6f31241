"""What tools write into detection sets is used with the right AP where it can be, and refused in a line where not."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.coco_folder import edit, write_coco
from tests.support.oracle import evaluate_oracle
from tests.support.voc_folder import write_voc
from transfer.annotation_checks import mask_area, mask_extent, run_lengths
from transfer.coco_layout import Files
from transfer.coco_set import CocoSet, read_coco
from transfer.detection_set import annotation_hashes, check_image_files, find_folder, read_data, register
from transfer.evaluation_trial import try_annotations, try_masks
from transfer.trial_process import Fault, run_trial
from transfer.voc_reading import read_images
from transfer.voc_set import CLASSES, VocSet
from transfer.voc_xml import parse_image
from whitebench.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
TRAIN, VAL = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")


def change_all(folder: Path, change: Callable[[dict[str, Any]], Any], split: str = VAL) -> None:
    edit(folder / split, lambda raw: [change(item) for item in raw["annotations"]])


def read_corrected(folder: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    """Annotations of val as Detectron2's evaluator gets them; everything before training was tried."""
    from detectron2.data import MetadataCatalog

    data = read_data(folder, **options)
    _, name = register(data, out)
    check_image_files(data)
    try_annotations(data, name, masks=options.get("masks", True))
    annotations: list[dict[str, Any]] = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())["annotations"]
    return annotations


DERIVED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "area null": (lambda item: item.update(area=None), r"'area' is missing or not a number: derived \(6\)"),
    "area missing": (lambda item: item.pop("area"), "'area' is missing"),
    "area text": (lambda item: item.update(area="12"), "'area' is missing or not a number"),
    "area 0": (lambda item: item.update(area=0), r"'area' is 0 or larger than the box: derived \(6\)"),
    "area huge": (lambda item: item.update(area=1e12), "'area' is 0 or larger than the box"),
    "iscrowd missing": (lambda item: item.pop("iscrowd"), r"'iscrowd' is missing: taken as 0 \(6\)"),
    "iscrowd text": (lambda item: item.update(iscrowd="0"), ""),
    "iscrowd false": (lambda item: item.update(iscrowd=False), ""),
    "id text": (lambda item: item.update(id=f"a{item['id']}"), ""),
    "id from 0": (lambda item: item.update(id=item["id"] - 1), ""),
    "id missing": (lambda item: item.pop("id"), ""),
    "keypoints": (lambda item: item.update(keypoints=[[1, 1], [2, 2]]), ""),
}


@pytest.mark.parametrize("kind", DERIVED)
def test_what_can_be_derived_is_and_is_noted(tmp_path: Path, kind: str) -> None:
    folder = write_coco(tmp_path / "coco")
    expected = json.loads((folder / VAL).read_text())["annotations"]
    change, note = DERIVED[kind]
    change_all(folder, change)
    assert read_corrected(folder, tmp_path) == expected
    assert any(note in line.replace("(6)", r"\(6\)") for line in read_data(folder).notes) or not note


def test_ids_of_images_and_categories_may_be_texts_or_decimals(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")

    def rename(raw: dict[str, Any]) -> None:
        for image in raw["images"]:
            image.update(id=f"image {image['id']}", width=float(image["width"]))
        for category in raw["categories"]:
            category["id"] = float(category["id"])
        for item in raw["annotations"]:
            item.update(image_id=f"image {item['image_id']}", category_id=float(item["category_id"]))

    expected = read_corrected(folder, tmp_path / "a")
    edit(folder / VAL, rename)
    corrected = read_corrected(folder, tmp_path / "b")
    assert [item["bbox"] for item in corrected] == [item["bbox"] for item in expected]
    assert [item["image_id"] for item in corrected] == [item["image_id"] for item in expected]
    assert [item["category_id"] for item in corrected] == [1, 2] * 3  # red and blue, 3 and 7 in train


def test_ignored_objects_are_crowds(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    edit(folder / VAL, lambda raw: raw["annotations"][0].update(ignore=1))
    assert [item["iscrowd"] for item in read_corrected(folder, tmp_path)] == [1, 0, 0, 0, 0, 0]
    assert read_data(folder).counts["val_objects"] == 5


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "NaN in a polygon": (lambda raw: raw["annotations"][0]["segmentation"][0].extend([float("nan"), 5.0]), "polygon"),
    "null in a polygon": (lambda raw: raw["annotations"][0]["segmentation"][0].extend([None, 5.0]), "polygon"),
    "far polygon": (lambda raw: raw["annotations"][0]["segmentation"][0].extend([1e9, 5.0]), "far outside the image"),
    "broken code": (
        lambda raw: raw["annotations"][0].update(segmentation={"size": [64, 64], "counts": "ooooo"}),
        "run-length code that does not decode",
    ),
    "other box": (lambda raw: raw["annotations"][0].update(bbox=[40, 40, 20, 20]), "does not fit their mask"),
    "crowd of nulls": (
        lambda raw: raw["annotations"].append(dict.fromkeys(raw["annotations"][0]) | {"iscrowd": 1, "id": 99}),
        "unknown image_id",
    ),
    "crowd with null box": (
        lambda raw: raw["annotations"].append({**raw["annotations"][0], "iscrowd": 1, "id": 99, "bbox": None}),
        "box that is not four numbers",
    ),
    "crowd with an object's id": (
        lambda raw: raw["annotations"].append({**raw["annotations"][0], "iscrowd": 1}),
        "two entries of 'annotations' have the id 1",
    ),
    "normalised boxes": (
        lambda raw: [a.update(bbox=[value / 100 for value in a["bbox"]]) for a in raw["annotations"]],
        "6 of 6 boxes lie within 0..1, as if normalised",
    ),
    "iscrowd 2": (lambda raw: raw["annotations"][0].update(iscrowd=2), "neither 0 nor 1"),
    "no masks": (lambda raw: raw["annotations"][0].pop("segmentation"), "1 of 6 annotations have no mask"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_evaluation_cannot_read_or_would_misread_is_refused(tmp_path: Path, kind: str) -> None:
    folder = write_coco(tmp_path / "coco")
    spoil, message = REFUSED[kind]
    edit(folder / VAL, spoil)
    with pytest.raises(UserError, match=message) as error:
        read_data(folder)
    assert "\n" not in str(error.value)


def test_faulty_annotations_are_left_out_on_request_and_listed(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    edit(folder / VAL, REFUSED["NaN in a polygon"][0])
    edit(folder / VAL, lambda raw: raw["annotations"][1].pop("segmentation"))
    data = read_data(folder, skip=True)
    assert [item["id"] for item in read_corrected(folder, tmp_path, skip=True)] == [3, 4, 5, 6]
    assert [line.partition(": has")[0] for line in data.skipped] == [
        f"instances_val2017.json: annotation {number} of image 1" for number in (1, 2)
    ]


def test_boxes_alone_serve_a_protocol_without_masks(tmp_path: Path) -> None:
    from transfer.protocol import check_masks, load_protocol, published_cfg

    folder = write_coco(tmp_path / "coco")
    for split in (TRAIN, VAL):
        change_all(folder, lambda item: item.pop("segmentation"), split)
    data = read_data(folder)
    assert not data.has_masks
    protocol = load_protocol("fpn-1x")
    with pytest.raises(UserError, match=r"fpn-1x needs masks.*MASK_ON: false"):
        check_masks(protocol, published_cfg(protocol), data)
    assert len(read_corrected(folder, tmp_path, masks=False)) == 6


def test_a_mask_that_pycocotools_never_ends_on_is_named_and_the_process_ended(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    try_masks(folder / VAL)
    edit(folder / VAL, REFUSED["NaN in a polygon"][0])
    with pytest.raises(UserError, match=r"cannot read annotation 1 \(pycocotools takes more than 5 s\)"):
        try_masks(folder / VAL, seconds=5)
    edit(folder / VAL, lambda raw: raw["annotations"][0].update(segmentation=[]))
    with pytest.raises(UserError, match=r"cannot read annotation 1 \("):
        try_masks(folder / VAL)


def test_an_annotation_of_voc_that_never_ends_is_named_and_the_process_ended(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    folder = tmp_path / "voc" / "VOC2007" / "Annotations"
    os.mkfifo(folder / "000001x.xml")  # whose end never comes
    assert run_trial("transfer.evaluation_trial", folder, "the parser", 3) == Fault(
        "000001x", "the parser takes more than 3 s"
    )
    files = [(path, path.with_suffix(".jpg")) for path in sorted(folder.iterdir())]
    with pytest.raises(UserError, match=r"000001x\.xml: cannot be read \(the XML parser takes more than 3 s\)"):
        read_images(files, seconds=3)


def test_a_process_that_the_system_ends_is_not_called_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ended.py").write_text(
        "import os\nprint('ready')\nprint('try 7', flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    fault = run_trial("ended", tmp_path, "the parser")
    assert fault == Fault("7", "the parser was ended by signal 9; out of memory?")


def test_annotations_read_in_another_process_are_those_of_this_one(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc") / "VOC2007"
    first = folder / "Annotations" / "000000.xml"
    first.write_text(first.read_text().replace("<xmin>3", "<xmin>3.125").replace(">cat<", ">chat \u00e9\n noir<"))
    files = [(path, folder / "JPEGImages" / f"{path.stem}.jpg") for path in sorted(first.parent.iterdir())]
    assert read_images(files) == [parse_image(*pair) for pair in files]
    first.write_text("<annotation>")
    with pytest.raises(UserError, match=r"000000\.xml: not XML, or truncated"):
        read_images(files)


def test_run_length_codes_are_those_of_pycocotools() -> None:
    from pycocotools import mask as coco_mask

    draw = np.random.default_rng(0)
    for number in range(100):
        height, width = draw.integers(1, 300, 2)
        pixels = np.zeros((height, width), np.uint8, order="F")
        top, left = draw.integers(0, height), draw.integers(0, width)
        pixels[top : top + number, left : left + 5 * number] = 1
        pixels[draw.random((height, width)) < 0.01 * (number % 5)] = 1
        code = coco_mask.encode(pixels)
        segmentation = {"size": [int(height), int(width)], "counts": code["counts"].decode()}
        runs = run_lengths(segmentation["counts"])
        assert runs is not None
        assert sum(runs) == pixels.size
        assert mask_area(segmentation) == pixels.sum()
        if pixels.any():
            box = coco_mask.toBbox(code)
            extent = mask_extent(segmentation, int(height))
            assert extent[0] == box[0]
            assert extent[2] == box[0] + box[2]


@pytest.mark.parametrize("counts", ["o", "PPYo0\x7f", "!", "oooooooooooooooooooooo", 5, None, [1, None], ["1"]])
def test_broken_run_length_codes_are_recognised(counts: Any) -> None:
    assert run_lengths(counts) is None


def turned(path: Path, turn: bool) -> None:
    """Gives a photo EXIF orientation 6; with `turn` it is stored on its side, so that it is shown as before."""
    with Image.open(path) as file:
        image = file.convert("RGB").resize((60, 64))
    tags = Image.Exif()
    tags[0x0112] = 6
    (image.transpose(Image.Transpose.ROTATE_90) if turn else image).save(path, exif=tags)


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_exif_orientation_is_followed_as_detectron2_does(tmp_path: Path, split: str) -> None:
    from detectron2.data.detection_utils import read_image

    folder = write_coco(tmp_path / "coco")
    path = folder / split / "000000000001.jpg"
    edit(folder / f"annotations/instances_{split}.json", lambda raw: raw["images"][0].update(width=60))
    turned(path, turn=True)
    assert read_image(str(path), "RGB").shape == (64, 60, 3)
    check_image_files(read_data(folder))
    turned(path, turn=False)
    with pytest.raises(UserError, match=r"is 64 x 60 pixels as its EXIF orientation shows it \(60 x 64 as stored\)"):
        check_image_files(read_data(folder))


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_truncated_images_are_named_before_training(tmp_path: Path, split: str) -> None:
    folder = write_coco(tmp_path / "coco")
    path = folder / split / "000000000002.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"{split}/000000000002\.jpg: does not decode"):
        check_image_files(read_data(folder))


@pytest.mark.timeout(60)
def test_images_without_an_end_are_refused(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    image = next((folder / "val2017").iterdir())
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(UserError, match="not a plain file"):
        check_image_files(read_data(folder))


def test_images_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    path = folder / "train2017" / "000000000001.jpg"
    Image.fromarray(np.full((64, 64), 3000, np.uint16)).save(path, "PNG")
    with pytest.raises(UserError, match=r"000000000001\.jpg: has 16 or 32 bits per channel"):
        check_image_files(read_data(folder))


def test_a_file_in_place_of_the_folder_gets_the_options_for_files(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    with pytest.raises(UserError, match="is a file; --coco takes the folder, --train-json and --val-json"):
        find_folder(folder / VAL)


def test_file_names_may_begin_with_the_split(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    for path in (TRAIN, VAL):
        split = Path(path).stem.removeprefix("instances_")
        raw = json.loads((folder / path).read_text())
        for image in raw["images"]:
            image["file_name"] = f"{split}/{image['file_name']}"
        (folder / path).write_text(json.dumps(raw))
    check_image_files(read_data(folder))


def test_every_image_is_looked_at(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", train=600)
    with Image.open(folder / "train2017" / "000000000599.jpg") as image:
        image.resize((10, 10)).save(folder / "train2017" / "000000000599.jpg")
    with pytest.raises(UserError, match=r"000000000599\.jpg: is 10 x 10 pixels"):
        check_image_files(read_data(folder))


def test_images_of_val_that_are_also_trained_are_a_deviation(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    assert read_data(folder).differences == []  # equal names, other photos
    shutil.copy(folder / "train2017" / "000000000002.jpg", folder / "val2017" / "000000000002.jpg")
    assert read_data(folder).differences == ["data: 1 of 3 val images are also in train"]


def renamed(folder: Path, moves: dict[str, str]) -> Path:
    for source, target in moves.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / source).rename(folder / target)
    return folder


LAYOUTS: dict[str, tuple[dict[str, str], Files]] = {
    "COCO 2014": (
        {TRAIN: "annotations/instances_train2014.json", VAL: "annotations/instances_val2014.json",
         "train2017": "train2014", "val2017": "val2014"}, Files()),
    "without years": (
        {TRAIN: "annotations/instances_train.json", VAL: "annotations/instances_val.json",
         "train2017": "images/train", "val2017": "images/val"}, Files()),
    "Roboflow": (
        {"train2017": "train", "val2017": "valid", TRAIN: "train/_annotations.coco.json",
         VAL: "valid/_annotations.coco.json"}, Files()),
    "own names": (
        {TRAIN: "a.json", VAL: "b.json", "train2017": "photos/a", "val2017": "photos/b"},
        Files("a.json", "photos/a", "b.json", "photos/b")),
    "own names, images beside": (
        {"train2017": "a", "val2017": "b", TRAIN: "a/labels.json", VAL: "b/labels.json"},
        Files(train_json="a/labels.json", val_json="b/labels.json")),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_of_coco_are_found(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moves, files = LAYOUTS[layout]
    folder = renamed(write_coco(tmp_path / "coco"), moves)
    data = read_data(folder, files)
    check_image_files(data)
    assert data.counts == {"train_images": 6, "train_objects": 12, "val_images": 3, "val_objects": 6}
    assert len(annotation_hashes(folder, files)) == 2
    monkeypatch.setenv("WHITEBENCH_DATA", str(tmp_path))
    assert find_folder("coco") == folder


def test_classes_are_matched_by_name_whatever_their_ids(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")

    def swap(raw: dict[str, Any]) -> None:
        for item in (*raw["categories"], *raw["annotations"]):
            key = "category_id" if "bbox" in item else "id"
            item[key] = {3: 7, 7: 3}[item[key]]

    edit(folder / VAL, swap)
    data = read_coco(folder)
    assert data.train.content.categories == data.val.content.categories == ("red", "blue")
    assert [item["category_id"] for item in read_corrected(folder, tmp_path)] == [1, 2] * 3
    assert read_coco(folder, categories=("blue", "red")).categories == ("blue", "red")
    with pytest.raises(UserError, match=r"its 2 categories are not the 2 that are expected: 'blue' is not among them"):
        read_coco(folder, categories=("red", "green"))


def change_xml(folder: Path, old: str, new: str, years: tuple[str, ...] = ("VOC2007", "VOC2012")) -> None:
    for year in years:
        for path in (folder / year / "Annotations").iterdir():
            path.write_text(path.read_text().replace(old, new))


def evaluated(folder: Path, protocol: str = "c4-24k") -> dict[str, float | None]:
    return evaluate_oracle(folder, protocol)[0].metrics


XML_KINDS = {
    "no pose": ("<pose>Unspecified</pose>", ""),
    "empty pose": ("<pose>Unspecified</pose>", "<pose/>"),
    "truncated by a share": ("<truncated>0</truncated>", "<truncated>0.06</truncated>"),
    "not truncated": ("<truncated>0</truncated>", ""),
    "decimal boxes": ("</xmin>", ".0</xmin>"),
}


@pytest.mark.parametrize("kind", XML_KINDS)
def test_what_voc_evaluation_does_not_need_may_be_missing(tmp_path: Path, kind: str) -> None:
    folder = write_voc(tmp_path / "voc")
    expected = evaluated(folder)
    change_xml(folder, *XML_KINDS[kind])
    assert evaluated(folder) == expected
    assert expected["coco_box_AP"] == pytest.approx(100)


def test_voc_of_own_classes(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc")
    change_xml(folder, ">cat<", ">hard hat<")
    change_xml(folder, ">dog<", ">vest/coat<")
    data = read_data(folder)
    assert data.categories == ("hard hat", "vest/coat")
    assert "data: 2 classes of its own, published VOC's 20" in data.differences
    assert evaluated(folder)["box_AP"] == pytest.approx(100)
    (folder / "classes.txt").write_text("vest/coat\nhard hat\ngloves\n")
    assert read_data(folder).categories == ("vest/coat", "hard hat", "gloves")


def test_voc_images_of_other_kinds(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc")
    images = folder / "VOC2007" / "JPEGImages"
    with Image.open(images / "000000.jpg") as image:
        image.save(images / "000000.png")
    (images / "000000.jpg").unlink()
    (images / "000003.jpg").rename(images / "000003.JPG")
    data = read_data(folder)
    check_image_files(data)
    assert evaluated(folder)["coco_box_AP"] == pytest.approx(100)


VOC_PLACES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "above VOCdevkit": (lambda f: f.parent, ["VOC2007 trainval", "VOC2012 trainval", "VOC2007 test"]),
    "2007 itself": (lambda f: f / "VOC2007", ["VOC2007 trainval", "VOC2007 test"]),
    "2012 itself": (lambda f: f / "VOC2012", ["VOC2012 train", "VOC2012 val"]),
}


@pytest.mark.parametrize("place", VOC_PLACES)
def test_voc_is_found_in_the_folders_that_people_name(tmp_path: Path, place: str) -> None:
    folder = write_voc(tmp_path / "data" / "VOCdevkit")
    lists = folder / "VOC2012" / "ImageSets" / "Main"
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text((lists / "trainval.txt").read_text())
    where, expected = VOC_PLACES[place]
    data = read_data(where(folder))
    assert isinstance(data, VocSet)
    assert [f"{part.source.folder.name} {part.source.split}" for part in (*data.train, *data.val)] == expected
    assert data.categories == CLASSES
    if place != "above VOCdevkit":
        assert data.differences[0].startswith(f"data: {expected[0]} and {expected[1]}, published")
    if place == "2012 itself":
        assert "data: 2 of 2 val images are also in train" in data.differences
        assert evaluated(where(folder))["box_AP"] == pytest.approx(100)  # a mean over the classes that occur


@pytest.mark.parametrize(("absent", "expected"), [("VOC2012", "VOC2007 trainval"), ("VOC2007", "VOC2012 train")])
def test_one_year_of_voc_is_enough(tmp_path: Path, absent: str, expected: str) -> None:
    folder = write_voc(tmp_path / "VOCdevkit")
    lists = folder / "VOC2012" / "ImageSets" / "Main"
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text((lists / "trainval.txt").read_text())
    shutil.rmtree(folder / absent)
    data = read_data(folder)
    assert data.differences[0].startswith(f"data: {expected} and ")
    assert isinstance(data, VocSet)
    assert len(register(data)[0]) == 1


def test_voc_dictionaries_are_those_of_detectron2(tmp_path: Path) -> None:
    from detectron2.data import DatasetCatalog
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    folder = write_voc(tmp_path / "voc")
    (name, _), _ = register(read_data(folder))
    assert DatasetCatalog.get(name) == load_voc_instances(str(folder / "VOC2007"), "trainval", CLASSES)


def test_a_set_in_order_is_used_as_it_is(tmp_path: Path) -> None:
    for coded in (False, True):
        data = read_data(write_coco(tmp_path / str(coded), coded=coded))
        assert isinstance(data, CocoSet)
        assert data.train.content.corrected is data.val.content.corrected is None
        assert data.notes == ()
