"""The built-in sample: what it holds, that nothing leaks, and that it is there whole or not at all."""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain.data.betons.manifest import read_manifest
from pretrain.data.sample import drawing as sample_drawing
from pretrain.data.sample import write as sample
from whitebench.errors import UserError
from whitebench.hashing import file_hash

MATERIAL = sample_drawing.material()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # e.g. the mean of an empty mask
        sample.write_sample(folder)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the two writers by quick ones; the list says which ran."""
    ran: list[str] = []

    def writer(name: str) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            ran.append(name)
            (folder / "train").mkdir()
            (folder / "train" / "a.txt").write_text(name)

        return write

    monkeypatch.setattr(sample, "_write_classification", writer("sample"))
    monkeypatch.setattr(sample, "_write_detection", writer("sample-det"))
    return ran


def coco(root: Path, split: str) -> Any:
    from pycocotools.coco import COCO

    return COCO(str(root / "sample-det" / "annotations" / f"instances_{split}2017.json"))


def pictures(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """[N, 64, 64, 3] and [N], as the files have them."""
    files = sorted((root / "sample" / split).glob("*/*.jpg"))
    return np.stack([np.asarray(Image.open(path)) for path in files]), np.array([int(p.parent.name) for p in files])


def test_written_twice_it_has_the_same_bytes(root: Path, tmp_path: Path) -> None:
    sample.write_sample(tmp_path)
    first, second = ({p.relative_to(r): file_hash(p) for p in r.rglob("*") if p.is_file()} for r in (root, tmp_path))
    assert len(first) > 2297
    assert first == second


def test_train_and_val_share_no_digit() -> None:
    train, val = MATERIAL["train"], MATERIAL["val"]
    assert len(train) == 1437
    assert len(val) == 360
    assert set(train.source) | set(val.source) == set(range(1797))
    assert not {ink.tobytes() for ink in train.digits} & {ink.tobytes() for ink in val.digits}


def test_train_and_val_share_no_photo_pixel() -> None:
    from sklearn.datasets import load_sample_images

    halves = zip(load_sample_images().images, MATERIAL["train"].photos, MATERIAL["val"].photos, strict=True)
    for photo, left, right in halves:
        np.testing.assert_array_equal(np.concatenate([left, right], axis=1), photo)
        assert left.shape == right.shape == (427, 320, 3)


def test_classes_are_balanced() -> None:
    assert set(Counter(MATERIAL["val"].labels.tolist()).values()) == {36}
    counts = Counter(MATERIAL["train"].labels.tolist())
    assert len(counts) == 10
    assert max(counts.values()) < 1.1 * min(counts.values())


def test_labels_are_those_of_the_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for made_of in MATERIAL.values():
        np.testing.assert_array_equal(made_of.labels, digits.target[made_of.source])
        np.testing.assert_array_equal(made_of.digits, np.rint(digits.images[made_of.source] * 255 / 16))


@pytest.mark.parametrize(("split", "count"), [("train", 1437), ("val", 360)])
def test_every_classification_picture_decodes_and_has_its_label(root: Path, split: str, count: int) -> None:
    images, labels = pictures(root, split)
    assert images.shape == (count, 64, 64, 3)
    assert sorted(labels) == sorted(MATERIAL[split].labels)
    for number in range(0, count, 97):
        path = root / "sample" / split / str(MATERIAL[split].labels[number]) / f"{number:04d}.jpg"
        drawn = sample_drawing.picture(split, number, MATERIAL[split])
        assert np.abs(np.asarray(Image.open(path)).astype(int) - drawn).mean() < 3


def test_the_manifest_names_the_dataset_and_its_splits(root: Path) -> None:
    manifest = read_manifest(root / "sample")
    assert manifest.dataset == "sample"
    assert manifest.classes == tuple("0123456789")
    assert {name: split.count for name, split in manifest.splits.items()} == {"train": 1437, "val": 360}
    assert all(not split.changed and not split.skipped for split in manifest.splits.values())
    assert str(root) not in (root / "sample" / "manifest.json").read_text()


def test_all_pictures_have_one_background(root: Path) -> None:
    """Views of a picture must not be matched by what is behind its digit."""
    images, _ = pictures(root, "train")
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    away = np.abs(corners - sample_drawing.PLAIN).max(axis=(1, 2)) > 8  # a stroke, or JPEG's ringing around one
    assert away.mean() < 0.05


def test_tints_are_lighter_and_darker_than_the_background() -> None:
    strokes = [np.percentile(luma(sample_drawing.picture("train", n, MATERIAL["train"])), (2, 98)) for n in range(200)]
    darker = np.mean([sample_drawing.PLAIN - low > high - sample_drawing.PLAIN for low, high in strokes])
    assert 0.3 < darker < 0.7


def luma(picture: np.ndarray) -> np.ndarray:
    return (picture * sample_drawing.LUMA).sum(axis=-1)


def test_raw_pixels_tell_classes_apart_a_little_and_not_well(root: Path) -> None:
    """20 nearest neighbours by cosine: above chance (0.10), far below what a trained encoder reaches."""
    assert 0.2 < neighbours_accuracy(root) < 0.75


def test_pictures_of_version_1_can_still_be_drawn() -> None:
    """For comparisons: a soft photo behind the digit."""
    drawn = sample_drawing.picture("train", 0, MATERIAL["train"], sample_drawing.VERSION_1)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 500


def neighbours_accuracy(root: Path) -> float:
    (train, labels), (val, truth) = pictures(root, "train"), pictures(root, "val")
    flat = [x.reshape(len(x), -1).astype(np.float32) for x in (train, val)]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in flat]
    nearest = labels[np.argsort(-unit[1] @ unit[0].T, axis=1, kind="stable")[:, :20]]
    votes = np.stack([(nearest == label).sum(axis=1) for label in range(10)], axis=1)
    return float((votes.argmax(axis=1) == truth).mean())


@pytest.mark.parametrize("split", ["train", "val"])
def test_scenes_load_as_coco(root: Path, split: str) -> None:
    api = coco(root, split)
    assert len(api.imgs) == sample.SCENE_COUNTS[split]
    assert [category["name"] for category in api.loadCats(api.getCatIds())] == list("0123456789")
    for image in api.imgs.values():
        with Image.open(root / "sample-det" / f"{split}2017" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (160, 160)
            picture.load()
        assert 2 <= len(api.getAnnIds(imgIds=image["id"])) <= 5


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_are_the_drawn_visible_pixels_and_fill_their_boxes(root: Path, split: str) -> None:
    api = coco(root, split)
    for number in range(0, sample.SCENE_COUNTS[split], 7):
        objects = sample_drawing.scene(split, number, MATERIAL[split]).objects
        annotations = api.loadAnns(api.getAnnIds(imgIds=number + 1))
        assert [a["category_id"] - 1 for a in annotations] == [item.label for item in objects]
        for annotation, item in zip(annotations, objects, strict=True):
            mask = api.annToMask(annotation).astype(bool)
            np.testing.assert_array_equal(mask, item.mask)
            rows, columns = np.nonzero(mask)
            left, top = columns.min(), rows.min()
            assert annotation["bbox"] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
            assert annotation["area"] == mask.sum() > 20
            assert annotation["iscrowd"] == 0


def test_digits_of_a_scene_overlap_and_none_is_nearly_hidden() -> None:
    scenes = [sample_drawing.scene("train", number, MATERIAL["train"]) for number in range(60)]
    shares = [item.mask.sum() / item.drawn for drawn in scenes for item in drawn.objects]
    assert min(shares) >= sample_drawing.MIN_VISIBLE
    assert 0.05 < np.mean(np.array(shares) < 1) < 0.8
    assert all(np.sum([item.mask for item in drawn.objects], axis=0).max() == 1 for drawn in scenes)
    assert all(drawn.objects[-1].mask.sum() == drawn.objects[-1].drawn for drawn in scenes)


def test_the_inside_of_each_mask_is_painted_in_one_colour() -> None:
    for number in range(20):
        drawn = sample_drawing.scene("val", number, MATERIAL["val"])
        for item in drawn.objects:
            colours = Counter(map(tuple, drawn.image[item.mask].tolist()))
            assert colours.most_common(1)[0][1] > 0.4 * item.mask.sum()


@given(st.lists(st.tuples(*[st.integers(0, 150)] * 2, *[st.integers(1, 60)] * 2), max_size=5))
@settings(max_examples=50, deadline=None)
def test_visible_is_what_a_painter_leaves(boxes: list[tuple[int, int, int, int]]) -> None:
    canvas, masks = np.full((160, 160), -1), []
    for number, (top, left, height, width) in enumerate(boxes):
        mask = np.zeros((160, 160), dtype=bool)
        mask[top : top + height, left : left + width] = True
        canvas[mask] = number
        masks.append(mask)
    for number, seen in enumerate(sample_drawing.visible(masks)):
        np.testing.assert_array_equal(seen, canvas == number)


def test_detectron2_reads_the_scenes_with_exact_masks(root: Path) -> None:
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.data import DatasetMapper
    from detectron2.data.datasets import load_coco_json

    folder, api = root / "sample-det", coco(root, "val")
    records = load_coco_json(
        str(folder / "annotations/instances_val2017.json"), str(folder / "val2017"), "sample-det-of-the-test"
    )
    mapper = DatasetMapper(
        is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True, instance_mask_format="bitmask"
    )
    instances = mapper(records[3])["instances"]
    annotations = api.loadAnns(api.getAnnIds(imgIds=records[3]["image_id"]))
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), [api.annToMask(a) == 1 for a in annotations])
    np.testing.assert_array_equal(instances.gt_classes.numpy(), [a["category_id"] - 1 for a in annotations])


def test_a_whole_sample_is_left_alone(tmp_path: Path, small: list[str]) -> None:
    sample.write_sample(tmp_path)
    sample.write_sample(tmp_path)
    (tmp_path / "sample" / "notes.txt").write_text("of somebody else")
    sample.write_sample(tmp_path)
    assert small == ["sample", "sample-det"]


def test_force_writes_it_anew(tmp_path: Path, small: list[str]) -> None:
    sample.write_sample(tmp_path)
    sample.write_sample(tmp_path, force=True)
    assert small == ["sample", "sample-det"] * 2


@pytest.mark.parametrize("damage", ["altered", "missing", "older"])
def test_a_damaged_or_older_sample_is_written_anew(tmp_path: Path, small: list[str], damage: str) -> None:
    sample.write_sample(tmp_path)
    file, stamp = tmp_path / "sample-det" / "train" / "a.txt", tmp_path / "sample-det" / sample.STAMP
    if damage == "altered":
        file.write_text("SAMPLE-DET")
    elif damage == "missing":
        file.unlink()
    else:
        stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "generator": sample.VERSION - 1}))
    assert not sample.is_whole(tmp_path / "sample-det")
    sample.write_sample(tmp_path)
    assert small == ["sample", "sample-det", "sample-det"]
    assert file.read_text() == "sample-det"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path: Path, small: list[str], force: bool) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="is not the built-in sample"):
        sample.write_sample(tmp_path, force=force)
    assert [path.name for path in (tmp_path / "sample").iterdir()] == ["precious.txt"]
    assert small == []


@pytest.mark.parametrize("before", [False, True])
def test_a_write_that_fails_changes_nothing(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    if before:
        sample.write_sample(tmp_path)

    def fails(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "_write_classification", fails)
    with pytest.raises(KeyboardInterrupt):
        sample.write_sample(tmp_path, force=True)
    assert (tmp_path / "sample").exists() == before
    assert not [path for path in tmp_path.rglob("*") if path.name in ("half", ".sample.new", ".sample.old")]
    assert sample.is_whole(tmp_path / "sample") == before


def test_what_a_killed_write_left_is_cleared_away(tmp_path: Path, small: list[str]) -> None:
    (tmp_path / ".sample.new" / "sample").mkdir(parents=True)
    (tmp_path / ".sample.new" / "sample" / "half").write_text("half")
    sample.write_sample(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".sample.lock", "sample", "sample-det"]
    assert not (tmp_path / "sample" / "half").exists()
