"""What people have their images in: each layout gives the right images and labels, or one line of refusal."""

import json
import os
import pickle
import tarfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pretrain.data.betons.format import read_samples
from pretrain.data.betons.images import BadImage, WriteSettings, prepare
from pretrain.data.betons.manifest import Manifest, read_manifest
from pretrain.data.betons.read import BetonImages
from pretrain.data.betons.write import verify_dataset, write_dataset, write_subset
from pretrain.data.loaders.build import evaluation_batches, training_loader
from pretrain.data.sources.class_lists import choose_classes, read_class_list
from pretrain.data.sources.source import ImageSource
from pretrain.recipe_sections import Data, Views
from whitebench.errors import UserError

WNIDS = ("n01440764", "n01443537", "n01484850")
Put = Callable[..., Path]


def pixels(number: int, side: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)


def encoded(number: int, kind: str = "PNG") -> bytes:
    out = BytesIO()
    Image.fromarray(pixels(number)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """put("train/a/1.png", 3): writes image number 3 into the source; returns the source."""
    source = tmp_path / "source"

    def write(path: str, number: int = 0, content: bytes | None = None) -> Path:
        target = source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded(number) if content is None else content)
        return source

    return write


def write(source: Path, tmp_path: Path, **options: Any) -> Manifest:
    return write_dataset(source, tmp_path / "data" / options.pop("name", "set"), **options)


def labels(manifest: Manifest, split: str) -> dict[int, str]:
    """Number of each image (found by its pixels) -> its class; "" where it has none."""
    images = BetonImages(manifest, split)
    numbers = {pixels(number).tobytes(): number for number in range(200)}
    return {
        numbers[images.pixels(index).tobytes()]: manifest.classes[label] if label >= 0 else ""
        for index, label in enumerate(images.label.tolist())
    }


def classes_below(put: Put, folder: str, first: int = 0, count: int = 2) -> dict[int, str]:
    """`count` images in each of the classes, numbered from `first`; their labels."""
    named = {}
    for place, name in enumerate(WNIDS):
        for image in range(count):
            number = first + place * count + image
            put(f"{folder}/{name}/{name}_{image}.png", number)
            named[number] = name
    return named


TINY = "\t0\t32\t44\t62"


def flat_split(put: Put, folder: str, first: int = 100) -> dict[int, str]:
    """Six images without folders of classes; what their labels are."""
    for number in range(6):
        put(f"{folder}/val_{number}.png", first + number)
    return {first + number: WNIDS[number % 3] for number in range(6)}


LABEL_FILES = {
    "tiny": ("val_annotations.txt", "".join(f"val_{i}.png\t{WNIDS[i % 3]}{TINY}\n" for i in range(6))),
    "kaggle": (
        "LOC_val_solution.csv",
        "ImageId,PredictionString\n"
        + "".join(f"val_{i},{WNIDS[i % 3]} 1 2 3 4 {WNIDS[i % 3]} 5 6 7 8 \n" for i in range(6)),
    ),
    "spaces": ("list.txt", "".join(f"val/images/val_{i}.png {WNIDS[i % 3]}\r\n" for i in range(6))),
    "csv with a mark": (
        "list.csv",
        "\ufefffilename,class\n" + "".join(f"val_{i}.png,{WNIDS[i % 3]}\n" for i in range(6)),
    ),
}


@pytest.mark.parametrize("kind", LABEL_FILES)
@pytest.mark.parametrize("folder", ["val", "val/images"])
def test_labels_of_val_come_from_a_file(kind: str, folder: str, put: Put, tmp_path: Path) -> None:
    train = classes_below(put, "train")
    val = flat_split(put, folder)
    name, text = LABEL_FILES[kind]
    source = put(f"val/{name}" if kind == "tiny" else name, content=text.encode())
    options = {} if kind in ("tiny", "kaggle") else {"labels": {"val": source / name}}
    manifest = write(source, tmp_path, **options)
    assert manifest.classes == WNIDS
    assert labels(manifest, "train") == train
    assert labels(manifest, "val") == val
    views = list(evaluation_batches(manifest, "val", 16, 16, 4, loader="folder"))
    assert [label for batch in views for label in batch.label.tolist()] == BetonImages(manifest, "val").label.tolist()


def test_the_ground_truth_of_ilsvrc_needs_the_order_of_its_classes(put: Put, tmp_path: Path) -> None:
    from scipy.io import savemat

    classes_below(put, "train")
    val = flat_split(put, "val")
    name = "ILSVRC2012_validation_ground_truth.txt"
    source = put(name, content=b"3\n1\n2\n3\n1\n2\n")
    with pytest.raises(UserError, match=r"meta\.mat"):
        write(source, tmp_path)
    order = np.array([(1, WNIDS[1]), (2, WNIDS[2]), (3, WNIDS[0])], dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
    savemat(source / "meta.mat", {"synsets": order[:, None]})
    assert labels(write(source, tmp_path), "val") == val


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val_0.png a\n", "no label for 5 of 6 images"),
        ("val_0.png a\nval_0.png b\n", "line 2: 'val_0.png' has the classes 'a' and 'b'"),
        ("nonsense\n", "line 1: not a file and its class"),
        ("", "holds no labels"),
        ("1\n2\n", "2 labels for 6 images"),
        ("".join(f"val_{i} other\n" for i in range(6)), "none of train's classes"),
        ("".join(f"val_{i} {'other' if i == 3 else WNIDS[0]}\n" for i in range(6)), "train has no image of 1"),
        ("\0\1", "not a text file"),
        ("²\n", "line 1: not a file and its class"),
        ("9" * 5000, "line 1: not a file and its class"),
    ],
)
def test_a_wrong_file_of_labels_is_refused(text: str, message: str, put: Put, tmp_path: Path) -> None:
    classes_below(put, "train")
    flat_split(put, "val")
    source = put("labels.txt", content=text.encode())
    with pytest.raises(UserError, match=message):
        write(source, tmp_path, labels={"val": source / "labels.txt"})
    assert not (tmp_path / "data").exists()


def test_a_validation_split_without_labels_is_refused(put: Put, tmp_path: Path) -> None:
    classes_below(put, "train")
    source = put("val/1.png", 100)
    with pytest.raises(UserError, match=r"val: has no folders of classes; .*--labels val=FILE"):
        write(source, tmp_path)
    source = put("val/images/1.png", 101)
    (source / "val" / "1.png").unlink()
    with pytest.raises(UserError, match="val split has none of train's classes"):
        write(source, tmp_path)


@pytest.mark.parametrize(
    "names", [("Train", "Val"), ("train", "validation"), ("training", "valid"), ("TRAIN", "dev"), ("train", "Test")]
)
@pytest.mark.parametrize("above", ["", "Data/CLS-LOC/"])
def test_splits_have_many_names_and_may_lie_deeper(
    names: tuple[str, str], above: str, put: Put, tmp_path: Path
) -> None:
    train, val = classes_below(put, above + names[0]), classes_below(put, above + names[1], 50)
    (put("notes.txt", content=b"x") / "Annotations" / "train").mkdir(parents=True)
    manifest = write(tmp_path / "source", tmp_path)
    assert (labels(manifest, "train"), labels(manifest, "val")) == (train, val)


def test_unused_folders_and_several_sets_are_reported(put: Put, tmp_path: Path) -> None:
    for folder in ("train", "val", "test", "extra"):
        classes_below(put, folder)
    manifest = write(tmp_path / "source", tmp_path)
    assert any("not used: extra/, test/" in note for note in manifest.notes)
    for folder in ("one/train", "two/train"):
        classes_below(put, f"several/{folder}")
    with pytest.raises(UserError, match="several folders hold splits: one, two"):
        write(tmp_path / "source" / "several", tmp_path, name="b")
    classes_below(put, "lonely/val")
    with pytest.raises(UserError, match="has val/ but no train/"):
        write(tmp_path / "source" / "lonely", tmp_path, name="c")


def test_a_class_may_be_called_train(put: Put, tmp_path: Path) -> None:
    for number, name in enumerate(("bus", "car", "train")):
        put(f"{name}/1.png", number)
    assert write(tmp_path / "source", tmp_path).classes == ("bus", "car", "train")


def test_classes_in_one_folder_deeper_are_found(put: Put, tmp_path: Path) -> None:
    named = classes_below(put, "cats_and_dogs")
    manifest = write(tmp_path / "source", tmp_path)
    assert labels(manifest, "train") == named
    assert "the classes are in cats_and_dogs/" in manifest.notes


def test_classes_that_hold_only_folders_are_reported(put: Put, tmp_path: Path) -> None:
    for number, path in enumerate(("a/x", "a/y", "b/x", "b/y")):
        put(f"{path}/1.png", number)
    assert any("holds only folders" in note for note in write(tmp_path / "source", tmp_path).notes)


def test_a_class_that_val_lacks_is_reported(put: Put, tmp_path: Path) -> None:
    classes_below(put, "train")
    source = put(f"val/{WNIDS[0]}/1.png", 60)
    manifest = write(source, tmp_path)
    assert any(f"val has no image of 2 of train's 3 classes: {WNIDS[1]}, {WNIDS[2]}" in note for note in manifest.notes)
    assert read_manifest(manifest.folder) == manifest
    part = write_subset(manifest, tmp_path / "data" / "part", [WNIDS[2]])
    assert set(part.splits) == {"train"}
    assert any("val: left out" in note for note in part.notes)


def test_photos_without_labels_can_be_trained_on(put: Put, tmp_path: Path) -> None:
    for number in range(6):
        source = put(f"{number}.png", number)
    manifest = write(source, tmp_path)
    assert (manifest.classes, manifest.splits["train"].unlabelled) == ((), 6)
    data = Data(dataset="set", views=(Views(size=8, count=2),))
    (batch,) = training_loader(data, manifest, seed=0, batch=6).epoch(0)
    assert batch.label.tolist() == [-1] * 6
    assert len(manifest.labelled("train")) == 0  # type: ignore[arg-type]
    assert verify_dataset(manifest.folder) == manifest


@pytest.mark.parametrize("folder", ["unlabeled", "train/unlabeled"])
def test_unlabelled_images_join_the_training_split(folder: str, put: Put, tmp_path: Path) -> None:
    named = classes_below(put, "train")
    classes_below(put, "test", 50)
    for number in range(5):
        source = put(f"{folder}/{number}.png", 90 + number)
    manifest = write(source, tmp_path)
    assert labels(manifest, "train") == {**named, **{90 + number: "" for number in range(5)}}
    assert manifest.splits["train"].unlabelled == 5
    labelled = manifest.labelled("train")
    assert labelled is not None
    assert (read_samples(manifest.beton("train")).label[labelled] >= 0).all()
    assert len(labelled) == 6


def test_folders_of_systems_are_left_out_and_listed(put: Put, tmp_path: Path) -> None:
    named = classes_below(put, "train")
    for folder in ("@eaDir", "__MACOSX", f"{WNIDS[0]}/.ipynb_checkpoints", f"{WNIDS[0]}/@eaDir", ".cache"):
        put(f"train/{folder}/x.png", 70)
    put(f"train/{WNIDS[0]}/notes.pdf", content=b"x")
    put(f"train/{WNIDS[0]}/._a.png", content=b"x")
    source = put("train/loose.png", 71)
    manifest = write(source, tmp_path)
    assert labels(manifest, "train") == named
    split = manifest.splits["train"]
    assert split.left_out == {"a system folder": 5, "not an image (.pdf)": 1, "not in a folder of a class": 1}
    listed = (manifest.folder / split.left_out_list).read_text().splitlines()
    assert f"{WNIDS[0]}/notes.pdf\tnot an image (.pdf)" in listed
    assert read_manifest(manifest.folder) == manifest


def test_a_link_to_a_folder_above_is_not_followed(put: Put, tmp_path: Path) -> None:
    named = classes_below(put, "train")
    os.symlink(tmp_path / "source", tmp_path / "source" / "train" / WNIDS[0] / "up")
    os.symlink(tmp_path / "source" / "train", tmp_path / "source" / "train" / WNIDS[1] / "again")
    manifest = write(tmp_path / "source", tmp_path)
    assert labels(manifest, "train") == named
    assert manifest.splits["train"].left_out == {"a link to a folder above it": 2}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["x.jpg", "no extension", "val_annotations.txt", "x.tar"])
def test_files_without_an_end_are_left_out_and_listed(name: str, put: Put, tmp_path: Path) -> None:
    """FIFOs and devices, also behind links: whoever reads them waits for ever."""
    source = put("train/a/1.png")
    os.mkfifo(source / "train/a" / name)
    os.symlink("/dev/zero", source / "train/a" / f"device {name}")
    manifest = write(source, tmp_path)
    assert manifest.splits["train"].count == 1
    listed = (tmp_path / "data/set/train.left_out.txt").read_text().splitlines()
    assert listed == sorted(f"a/{name}\tnot a plain file" for name in (name, f"device {name}"))


@pytest.mark.timeout(60)
def test_lists_of_users_may_be_pipes_but_no_devices(put: Put, tmp_path: Path) -> None:
    put("train/a/1.png")
    put("train/b/1.png", 1)
    source, (end, start) = put("val/1.png", 2), os.pipe()
    os.write(start, b"1.png\tb\n")
    os.close(start)
    manifest = write(source, tmp_path, labels={"val": Path(f"/dev/fd/{end}")})  # as the shell's <(...)
    assert manifest.splits["val"].count == 1
    os.close(end)
    with pytest.raises(UserError, match="/dev/zero: cannot be read: not a regular file"):
        read_class_list(Path("/dev/zero"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="names no classes"):
        read_class_list(tmp_path / "fifo")


def test_what_cannot_be_read_is_one_line(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes_below(put, "train")
    os.symlink("/nowhere/x.png", tmp_path / "source" / "train" / WNIDS[0] / "gone.png")
    with pytest.raises(UserError, match=r"gone\.png: does not decode \(a link to a file that does not exist\)"):
        write(tmp_path / "source", tmp_path)
    manifest = write(tmp_path / "source", tmp_path, skip_bad=True)
    assert manifest.splits["train"].skipped == 1
    assert "gone.png" in (manifest.folder / "train.left_out.txt").read_text()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith(WNIDS[1]):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=f"{WNIDS[1]}: cannot be read: permission denied"):
        write(tmp_path / "source", tmp_path, name="other")


@pytest.mark.parametrize(
    "name", ["line\nbreak", "carriage\rreturn", '"quoted"', "back\\slash", os.fsdecode(b"caf\xe9")]
)
def test_any_file_name_survives(name: str, put: Put, tmp_path: Path) -> None:
    for number in range(4):
        source = put(f"a/{name}{number}.png", number)
    manifest = write(source, tmp_path, val_fraction=0.5)
    assert manifest.splits["val"].count == 2
    assert {file for split in ("train", "val") for file in manifest.file_names(split)} == {
        f"a/{name}{number}.png" for number in range(4)
    }
    list(evaluation_batches(manifest, "train", 16, 16, 4, loader="folder"))
    assert write_subset(manifest, tmp_path / "data" / "part", None, per_class=1).splits["train"].count == 1


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", ".png"), ("I;16", ".tif"), ("I;16B", ".tif"), ("I;16", ".pgm")])
def test_images_of_16_bits_are_scaled(mode: str, suffix: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    path = tmp_path / f"ramp{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 64 64 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(path)
    prepared = prepare(path.read_bytes(), WriteSettings())
    stored = np.frombuffer(prepared.payload, np.uint8).reshape(64, 64, 3)
    assert np.abs(stored[..., 0].astype(float) - ramp / 257).max() <= 0.51
    assert prepared.change is not None
    assert "scaled from 16 to 8 bits" in prepared.change


def test_images_of_unknown_range_are_refused(tmp_path: Path) -> None:
    for number, dtype in enumerate((np.float32, np.int32)):
        path = tmp_path / f"{number}.tif"
        Image.fromarray(np.linspace(0, 1, 64).reshape(8, 8).astype(dtype)).save(path)
        with pytest.raises(BadImage, match="pixels, of a range that the file does not state"):
            prepare(path.read_bytes(), WriteSettings())


def test_file_names_of_images_have_many_endings(put: Put, tmp_path: Path) -> None:
    kinds = {"a.JPG": "JPEG", "b.jfif": "JPEG", "c.jpe": "JPEG", "d.gif": "GIF", "e.bmp": "BMP", "f.jp2": "JPEG2000"}
    for number, (name, kind) in enumerate([*kinds.items(), ("without", "PNG")]):
        source = put(f"a/{name}", content=encoded(number, kind))
    source = put("a/text", content=b"no image")
    assert write(source, tmp_path).splits["train"].count == 7


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> bytes:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return path.read_bytes()


@pytest.mark.parametrize(("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.xz", "w:xz")])
def test_tars_are_sources(suffix: str, mode: str, tmp_path: Path) -> None:
    files = {
        f"./set/{split}/{name}/{n}.png": encoded(10 * s + n)
        for s, split in enumerate(("train", "val"))
        for n, name in enumerate(WNIDS)
    }
    files["set/train/._x.png"] = b"x"
    tar(tmp_path / f"set.{suffix}", files, mode)
    manifest = write(tmp_path / f"set.{suffix}", tmp_path)
    assert labels(manifest, "train") == dict(enumerate(WNIDS))
    assert labels(manifest, "val") == {10 + n: name for n, name in enumerate(WNIDS)}
    (batch,) = evaluation_batches(manifest, "val", 16, 16, 8, loader="folder")  # from the beton, by Pillow
    np.testing.assert_array_equal(batch.views[0][0].permute(1, 2, 0).numpy(), BetonImages(manifest, "val").pixels(0))


def test_a_tar_of_tars_has_a_class_per_tar(tmp_path: Path) -> None:
    inner = {f"{name}.tar": tar(tmp_path / "x.tar", {f"{name}_1.png": encoded(n)}) for n, name in enumerate(WNIDS)}
    folder = tmp_path / "imagenet"
    folder.mkdir()
    tar(folder / "ILSVRC2012_img_train.tar", inner)
    tar(folder / "ILSVRC2012_img_val.tar", {f"val_{n}.png": encoded(100 + n) for n in range(6)})
    expected = dict(enumerate(WNIDS))
    assert labels(write(folder / "ILSVRC2012_img_train.tar", tmp_path), "train") == expected
    with pytest.raises(UserError, match="--labels val=FILE"):
        write(folder, tmp_path, name="b")
    (folder / "LOC_val_solution.csv").write_text(LABEL_FILES["kaggle"][1])
    both = write(folder, tmp_path, name="b")
    assert labels(both, "train") == expected
    assert labels(both, "val") == {100 + n: WNIDS[n % 3] for n in range(6)}
    for name, content in inner.items():
        (tmp_path / "apart" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "apart" / "train" / name).write_bytes(content)
    assert labels(write(tmp_path / "apart", tmp_path, name="c"), "train") == expected


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    whole = tar(tmp_path / "whole.tar.gz", {f"a/{n}.png": encoded(n) for n in range(9)}, "w:gz")
    for number, content in enumerate((b"", b"x", whole[:200], whole[:-40], whole[:50] + b"zz" + whole[52:])):
        path = tmp_path / f"{number}.tar.gz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{number}\.tar\.gz"):
            write(path, tmp_path)
    plain = tar(tmp_path / "plain.tar", {f"a/{n}.png": encoded(n) for n in range(9)})
    (tmp_path / "cut.tar").write_bytes(plain[:2000])
    with pytest.raises(UserError):
        write(tmp_path / "cut.tar", tmp_path)
    assert not (tmp_path / "data").exists()


def parquet(path: Path, images: list[Any], values: list[Any] | None, names: tuple[str, ...] | None = None) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    tables = pytest.importorskip("pyarrow.parquet")

    columns = {"image": [{"bytes": image, "path": None} for image in images]}
    table = pyarrow.table({**columns, **({"label": values} if values is not None else {})})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_table(table, path, row_group_size=2)


def test_parquet_files_of_hugging_face_are_sources(tmp_path: Path) -> None:
    names = ("tench", "goldfish, Carassius", "shark")
    data = tmp_path / "hf" / "data"
    parquet(data / "train-00000-of-00002.parquet", [encoded(n) for n in range(5)], [0, 1, 2, 0, 1], names)
    parquet(data / "train-00001-of-00002.parquet", [encoded(5)], [2], names)
    parquet(data / "validation-00000-of-00001.parquet", [encoded(10), encoded(11)], [2, 1], names)
    parquet(data / "test-00000-of-00001.parquet", [encoded(20)], [-1], names)
    manifest = write(tmp_path / "hf", tmp_path, workers=2)
    assert manifest.classes == names
    assert labels(manifest, "train") == {n: names[n % 3] for n in range(6)}
    assert labels(manifest, "val") == {10: names[2], 11: names[1]}
    single = write(data / "train-00000-of-00002.parquet", tmp_path, name="b")
    assert single.splits["train"].count == 5
    splits = {"train": "data/train-*.parquet", "val": "data/validation-*.parquet"}
    assert write(tmp_path / "hf", tmp_path, name="c", splits=splits).content_hash == manifest.content_hash


def test_damaged_and_foreign_parquet_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet(path, [encoded(0), encoded(1)], [0, 7], ("a", "b"))
    with pytest.raises(UserError, match="label 7 is not one of its 2 classes"):
        write(path, tmp_path)
    parquet(path, [encoded(0)], ["cat"])
    assert write(path, tmp_path).classes == ("cat",)
    parquet(path, [encoded(0), None], [0, 0])
    with pytest.raises(UserError, match="no bytes of it"):
        write(path, tmp_path, name="b")
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        write(path, tmp_path, name="b")


def cifar(folder: Path, fine: bool = False, binary: bool = False) -> dict[str, dict[int, str]]:
    """CIFAR's files with 4 images each; their labels by split and number in the order of the files."""
    folder.mkdir(parents=True)
    names = [f"class{n:02d}" for n in range(100 if fine else 10)]
    batches = {
        "train": ["train"] if fine else [f"data_batch_{n}" for n in range(1, 6)],
        "val": ["test" if fine else "test_batch"],
    }
    expected: dict[str, dict[int, str]] = {}
    for split, files in batches.items():
        for position, file in enumerate(files):
            numbers = [(0 if split == "train" else 50) + 4 * position + n for n in range(4)]
            rows = np.stack([pixels(n, 32).transpose(2, 0, 1).ravel() for n in numbers])
            values = [n % 5 for n in numbers]
            expected.setdefault(split, {}).update({n: names[v] for n, v in zip(numbers, values, strict=True)})
            if binary:
                head = np.array([[0, v] if fine else [v] for v in values], np.uint8)
                (folder / f"{file}.bin").write_bytes(np.concatenate([head, rows], 1).tobytes())
            else:
                content = {"data": rows, "fine_labels" if fine else "labels": values, "coarse_labels": [0] * 4}
                (folder / file).write_bytes(pickle.dumps(content, protocol=2))
    if binary:
        (folder / ("fine_label_names.txt" if fine else "batches.meta.txt")).write_text("\n".join(names) + "\n")
    else:
        key, file = ("fine_label_names", "meta") if fine else ("label_names", "batches.meta")
        (folder / file).write_bytes(pickle.dumps({key: names}, protocol=2))
    return expected


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_cifar_is_read_as_its_site_ships_it(fine: bool, binary: bool, tmp_path: Path) -> None:
    expected = cifar(tmp_path / "cifar" / "files", fine, binary)
    manifest = write(tmp_path / "cifar", tmp_path)
    numbers = {pixels(number, 32).tobytes(): number for number in range(80)}
    for split, named in expected.items():
        images = BetonImages(manifest, split)
        assert {
            numbers[images.pixels(i).tobytes()]: manifest.classes[label] for i, label in enumerate(images.label)
        } == named
    packed = {f"files/{path.name}": path.read_bytes() for path in (tmp_path / "cifar" / "files").iterdir()}
    tar(tmp_path / "cifar.tar.gz", packed, "w:gz")
    assert write(tmp_path / "cifar.tar.gz", tmp_path, name="b").content_hash == manifest.content_hash


def test_a_pickle_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "was-run"),)

    cifar(tmp_path / "cifar")
    (tmp_path / "cifar" / "data_batch_2").write_bytes(pickle.dumps(Program()))
    with pytest.raises(UserError, match="data_batch_2: damaged, or not a file of CIFAR-10"):
        write(tmp_path / "cifar", tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_stl10_is_read_as_its_site_ships_it(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    names = [f"c{n}" for n in range(10)]
    (folder / "class_names.txt").write_text("\n".join(names))
    for file, numbers in (("train", [0, 1, 2]), ("test", [10, 11]), ("unlabeled", [20, 21, 22, 23])):
        (folder / f"{file}_X.bin").write_bytes(b"".join(pixels(n, 96).transpose(2, 1, 0).tobytes() for n in numbers))
        if file != "unlabeled":
            (folder / f"{file}_y.bin").write_bytes(bytes(n % 10 + 1 for n in numbers))
    manifest = write(folder, tmp_path)
    images = BetonImages(manifest, "train")
    assert images.label.tolist() == [0, 1, 2, -1, -1, -1, -1]
    for index, number in enumerate([0, 1, 2, 20, 21, 22, 23]):
        np.testing.assert_array_equal(images.pixels(index), pixels(number, 96))
    assert manifest.splits["val"].count == 2
    (folder / "train_y.bin").write_bytes(b"\1\2")
    with pytest.raises(UserError, match=r"train_y\.bin: damaged"):
        write(folder, tmp_path, name="b")


def test_a_message_is_one_line_whatever_files_are_called(put: Put, tmp_path: Path) -> None:
    name = "two\nlines\r" + os.fsdecode(b"\xe9")
    for folder in (f"{name}/train", "other/train"):
        classes_below(put, folder)
    with pytest.raises(UserError, match="several folders hold splits") as refused:
        write(tmp_path / "source", tmp_path)
    assert str(refused.value).encode().isascii()
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("content", [b"x", b"", b"%PDF"])
def test_other_files_are_no_sources(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.zip").write_bytes(content)
    with pytest.raises(UserError, match="not a folder, a tar archive or a Parquet file"):
        write(tmp_path / "file.zip", tmp_path)
    with pytest.raises(UserError, match="not found"):
        write(tmp_path / "nothing", tmp_path)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("golden retriever", "golden retriever"),
        ("tench, Tinca tinca", "tench, Tinca tinca"),
        ("a#b", "a#b"),
        ("n01440764,tench", "n01440764"),
        ("n01440764\ttench", "n01440764"),
        ("n01440764 tench  # a fish", "n01440764"),
        ('"n01440764","tench"', "n01440764"),
    ],
)
def test_a_line_of_a_class_list_may_say_more(line: str, name: str) -> None:
    classes = ("n01440764", "golden retriever", "tench, Tinca tinca", "a#b", "other")
    assert choose_classes(classes, [line], "list") == (name,)


def test_a_raw_write_asks_for_room_for_the_pixels(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = BytesIO()
    Image.new("RGB", (1000, 1000)).save(out, "JPEG")
    source = put("a/1.jpg", content=out.getvalue())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    assert write(source, tmp_path).splits["train"].count == 1
    with pytest.raises(UserError, match=r"at least 3.0 MB are needed, 1.0 MB are free"):
        write(source, tmp_path, name="raw", settings=WriteSettings(raw=True))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5_000}))
    assert write(source, tmp_path, name="small", settings=WriteSettings(max_side=20)).splits["train"].count == 1


def test_a_very_flat_image_may_need_a_larger_page(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.data.betons.format.MIN_PAGE_SIZE", 1 << 10)
    out = BytesIO()
    Image.new("RGB", (200, 200), (3, 4, 5)).save(out, "PNG")
    manifest = write(put("a/1.png", content=out.getvalue()), tmp_path)
    assert (BetonImages(manifest, "train").pixels(0) == (3, 4, 5)).all()


def test_an_orientation_is_counted_and_not_applied(put: Put, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = BytesIO()
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(out, "JPEG", exif=exif)
    manifest = write(put("a/1.jpg", content=out.getvalue()), tmp_path)
    assert manifest.splits["train"].rotated == 1
    assert BetonImages(manifest, "train").sides(0) == (10, 20)


def test_sources_count_what_they_hold(put: Put) -> None:
    classes_below(put, "train")
    from pretrain.data.sources.open import open_source

    source: ImageSource = open_source(put("train/x/1.png"))
    assert Counter(entry.label for entry in source.splits["train"]) == {0: 2, 1: 2, 2: 2, 3: 1}
