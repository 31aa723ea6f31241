"""Writing datasets: what a beton holds, that a write is whole or not at all, and what its user is told."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain.data.__main__ import main
from pretrain.data.betons import format as beton_format
from pretrain.data.betons.format import RAW, BetonWriter, page_size_for, read_samples
from pretrain.data.betons.images import BadImage, WriteSettings, prepare
from pretrain.data.betons.libjpeg import import_ffcv
from pretrain.data.betons.manifest import MANIFEST, read_manifest
from pretrain.data.betons.read import BetonImages
from pretrain.data.betons.split_writer import SplitWriter
from pretrain.data.betons.write import WRITING, verify_dataset, write_dataset, write_subset
from pretrain.data.loaders.build import training_loader
from pretrain.data.statistics import IMAGENET_MEAN
from pretrain.recipe_sections import Data, Views
from tests.support.photos import CLASSES, image_folder, jpeg, photo
from whitebench.errors import UserError, run_command
from whitebench.hashing import file_hash


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$WHITEBENCH_DATA."""
    monkeypatch.setenv("WHITEBENCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "source")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command which must fail leaves on standard error."""
    with pytest.raises(SystemExit) as exit:
        run_command(lambda: main(arguments))
    assert exit.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_format_is_ffcvs() -> None:
    types, fields = import_ffcv("ffcv.types"), import_ffcv("ffcv.fields")
    assert types.HeaderType == beton_format.HEADER
    assert types.FieldDescType == beton_format.FIELD
    assert types.ALLOC_TABLE_TYPE == beton_format.ALLOCATION
    assert types.CURRENT_VERSION == beton_format.VERSION
    samples = types.get_metadata_type([fields.RGBImageField(), fields.IntField()])
    assert samples.itemsize == beton_format.SAMPLE.itemsize
    assert [samples.fields[n][1] for n in samples.names] == [
        beton_format.SAMPLE.fields[n][1] for n in beton_format.SAMPLE.names
    ]


def test_ffcvs_reader_finds_every_image(source: Path, root: Path) -> None:
    manifest = write_dataset(source, root / "photos")
    reader = import_ffcv("ffcv.reader").Reader(str(manifest.beton("train")))
    assert reader.field_names == ["image", "label"]
    table = reader.alloc_table[np.argsort(reader.alloc_table["sample_id"])]
    with open(manifest.beton("train"), "rb") as file:
        for name, sample, place in zip(manifest.file_names("train"), reader.metadata, table, strict=True):
            file.seek(int(place["ptr"]))
            assert file.read(int(place["size"])) == (source / "train" / name).read_bytes()
            assert place["ptr"] == sample["f0"]["data_ptr"]
            assert manifest.classes[sample["f1"]] == name.split("/")[0]
            with Image.open(source / "train" / name) as picture:
                assert picture.size == (sample["f0"]["width"], sample["f0"]["height"])


@given(lengths=st.lists(st.integers(1, 1500), min_size=1, max_size=40), page=st.sampled_from([2048, 4096]))
@settings(max_examples=40, deadline=None)
def test_what_is_written_can_be_read_and_no_image_crosses_a_page(
    lengths: list[int], page: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("format") / "x.beton"
    payloads = [os.urandom(length) for length in lengths]
    with BetonWriter(path, len(lengths) + 3, page) as writer:
        for number, payload in enumerate(payloads):
            writer.append(payload, number + 1, 2 * number + 1, number % 5)
    samples = read_samples(path)
    with samples.open() as file:
        assert [samples.bytes_of(i, file) for i in range(len(samples))] == payloads
    assert samples.label.tolist() == [number % 5 for number in range(len(lengths))]
    assert samples.height.tolist() == [number + 1 for number in range(len(lengths))]
    assert (samples.offset // page == (samples.offset + samples.size - 1) // page).all()


def test_pages_hold_the_largest_image() -> None:
    assert page_size_for(1) == page_size_for(beton_format.MIN_PAGE_SIZE) == beton_format.MIN_PAGE_SIZE
    assert page_size_for(beton_format.MIN_PAGE_SIZE + 1) == 2 * beton_format.MIN_PAGE_SIZE


def test_the_same_images_give_the_same_bytes(source: Path, root: Path, tmp_path: Path) -> None:
    one = write_dataset(source, root / "one")
    copy = Path(shutil.copytree(source, tmp_path / "elsewhere"))
    two = write_dataset(copy, root / "two", workers=3)
    assert one.content_hash == two.content_hash
    for name in ("train.beton", "val.beton", "train.files.txt"):
        assert file_hash(root / "one" / name) == file_hash(root / "two" / name)


def test_the_content_hash_follows_pixels_labels_order_and_settings(source: Path, root: Path) -> None:
    def hash_now(name: str, **options: Any) -> str:
        return write_dataset(source, root / name, **options).content_hash

    hashes = [hash_now("a"), hash_now("b", settings=WriteSettings(max_side=64)), hash_now("c", classes=CLASSES[:2])]
    hashes.append(hash_now("d", statistics=((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))))
    os.rename(source / "train" / "bird" / "000.jpg", source / "train" / "cat" / "000.jpg")
    hashes.append(hash_now("e"))
    (source / "train" / "cat" / "000.jpg").write_bytes(jpeg(photo(0), quality=80))
    hashes.append(hash_now("f"))
    assert len(set(hashes)) == len(hashes)


def test_a_manifest_survives_being_written_and_read(source: Path, root: Path) -> None:
    written = write_dataset(source, root / "photos", statistics=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    assert read_manifest("photos") == written
    assert read_manifest(root / "photos") == written
    assert written.splits["train"].count == 24
    assert written.classes == CLASSES


@pytest.mark.parametrize(
    ("dataset", "mean"),
    [
        *(("cifar10", 0.4914), ("cifar100-lt", 0.5071), ("CIFAR-10", 0.4914), ("my-cifar10", 0.4914)),
        *(("tiny-imagenet", 0.48), ("tiny-imagenet-200", 0.48), ("stl10", 0.43)),
        *(("mine", IMAGENET_MEAN[0]), ("tinycats", IMAGENET_MEAN[0]), ("stlouis", IMAGENET_MEAN[0])),
        ("cifar1000", IMAGENET_MEAN[0]),
    ],
)
def test_statistics_go_by_the_datasets_name(source: Path, root: Path, dataset: str, mean: float) -> None:
    assert write_dataset(source, root / dataset).mean[0] == mean


def png(pixels: Any, mode: str = "RGB") -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "PNG")
    return out.getvalue()


def cmyk(pixels: Any) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "change"),
    [
        (jpeg(photo(1)), None),
        (jpeg(photo(1)[..., 0]), None),
        (jpeg(photo(1), progressive=True), None),
        (cmyk(photo(1)), "re-encoded as JPEG, with loss: JPEG CMYK"),
        (png(photo(1, 300, 300)), "re-encoded as JPEG, with loss: PNG RGB"),
        (png(photo(1)), "stored as pixels: PNG RGB"),
        (png(photo(1), "RGBA"), "stored as pixels: PNG RGBA, without its transparency"),
        (png(photo(1), "P"), "stored as pixels: PNG P"),
    ],
)
def test_only_what_the_loader_cannot_read_is_encoded_again(data: bytes, change: str | None) -> None:
    prepared = prepare(data, WriteSettings())
    assert prepared.change == change
    assert (prepared.payload == data) == (change is None)
    with Image.open(BytesIO(data)) as original:
        expected = np.asarray(original.convert("RGB"), int)
    assert expected.shape == (prepared.height, prepared.width, 3)
    if prepared.mode == RAW:
        np.testing.assert_array_equal(np.frombuffer(prepared.payload, np.uint8).reshape(expected.shape), expected)
        return
    with Image.open(BytesIO(prepared.payload)) as picture:
        assert np.abs(np.asarray(picture.convert("RGB"), int) - expected).mean() < 3


def test_a_jpeg_with_extraneous_bytes_is_kept_and_can_be_read(
    source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libjpeg-turbo warns of them, Pillow does not: the dataset is the same with FFCV and without, and trains."""
    path = source / "train" / "cat" / "001.jpg"
    sound = path.read_bytes()
    clean = write_dataset(source, root / "clean")
    path.write_bytes(sound[:-2] + b"\x12\x34" * 700 + sound[-2:])
    flawed = write_dataset(source, root / "flawed")
    monkeypatch.setattr("pretrain.data.betons.libjpeg.has_ffcv", lambda: False)
    assert write_dataset(source, root / "without").content_hash == flawed.content_hash
    monkeypatch.undo()
    assert flawed.splits["train"].changed == {}
    verify_dataset(root / "flawed")
    data = Data(dataset="any", views=(Views(size=32),))
    views = [
        next(training_loader(data, manifest, seed=0, batch=24, workers=2).epoch(0)).views[0].int()
        for manifest in (flawed, clean)
    ]
    assert (views[0] - views[1]).abs().max() <= 8


@pytest.mark.parametrize(
    "data",
    [b"", b"nothing", jpeg(photo(1))[:-300], jpeg(photo(1))[:100], png(photo(1))[:-200], b"\xff\xd8" + b"\0" * 99],
)
def test_what_does_not_decode_is_a_bad_image(data: bytes) -> None:
    with pytest.raises(BadImage):
        prepare(data, WriteSettings())


@given(cut=st.integers(0, 3000), place=st.integers(0, 3000), value=st.binary(min_size=1, max_size=30))
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_are_refused_or_mended(cut: int, place: int, value: bytes) -> None:
    data = jpeg(photo(3, 40, 50))
    data = (data[:place] + value + data[place + len(value) :])[: len(data) - cut if cut < 500 else None]
    try:
        prepared = prepare(data, WriteSettings())
    except BadImage:
        return
    assert prepare(prepared.payload, WriteSettings()).change is None


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(200, 100, (64, 32)), (30, 50, (30, 50)), (65, 64, (64, 63))]
)
def test_the_longer_side_is_reduced(height: int, width: int, expected: tuple[int, int]) -> None:
    data = jpeg(photo(5, height, width))
    prepared = prepare(data, WriteSettings(max_side=64, quality=90))
    assert (prepared.height, prepared.width) == expected
    assert prepared.change == (None if max(height, width) <= 64 else "reduced")


def test_a_bad_image_stops_the_write_and_leaves_nothing(
    source: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "train" / "dog" / "bad.jpg").write_bytes(jpeg(photo(1))[:500])
    message = fails(capsys, "write", str(source), "photos", "--workers", "2")
    assert "train/dog/bad.jpg: does not decode" in message
    assert "--skip-bad" in message
    assert not (root / "photos").exists()
    main(["write", str(source), "photos", "--skip-bad"])
    assert "1 left out" in capsys.readouterr().out
    assert read_manifest("photos").splits["train"].skipped == 1
    assert "dog/bad.jpg" not in read_manifest("photos").file_names("train")


def test_a_failed_rewrite_leaves_the_old_dataset(source: Path, root: Path) -> None:
    write_dataset(source, root / "photos")
    before = files_of(root / "photos")
    (source / "train" / "cat" / "bad.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="does not decode"):
        write_dataset(source, root / "photos", force=True)
    assert files_of(root / "photos") == before


def test_a_full_disk_leaves_nothing(
    source: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: BetonWriter, *_: object) -> None:
        raise OSError(28, "No space left on device", str(self.path))

    monkeypatch.setattr(BetonWriter, "append", full)
    assert "no space left on the disk" in fails(capsys, "write", str(source), "photos")
    assert not (root / "photos").exists()


def test_what_a_killed_write_left_is_cleared_away(source: Path, root: Path) -> None:
    """Killed before anything is moved: the folder has no manifest, and the next write starts anew."""
    program = f"""
import os, signal
from pathlib import Path
from pretrain.data.betons import write
write.SplitWriter._verify = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write.write_dataset(Path({str(source)!r}), Path({str(root / "photos")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3])
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in (root / "photos").iterdir()] == [WRITING]
    with pytest.raises(UserError, match="no dataset 'photos'"):
        read_manifest("photos")
    write_dataset(source, root / "photos")
    assert not (root / "photos" / WRITING).exists()
    assert verify_dataset("photos").splits["train"].count == 24


def test_two_writes_into_one_place_are_refused(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner: list[str] = []

    def second(*_: object) -> None:
        with pytest.raises(UserError, match="photos: another process is writing this dataset") as refused:
            write_dataset(source, root / "photos")
        inner.append(str(refused.value))

    monkeypatch.setattr(SplitWriter, "_verify", second)
    assert write_dataset(source, root / "photos").splits["train"].count == 24
    assert len(inner) == 2  # once a split


def test_raw_pixels_are_exact(source: Path, root: Path) -> None:
    jpegs = write_dataset(source, root / "jpegs", settings=WriteSettings(max_side=90, quality=95))
    main(["write", str(source), "raw", "--raw", "--max-side", "90", "--workers", "2"])
    raw = read_manifest("raw")
    assert (raw.raw, raw.splits["train"].changed) == (True, {"stored as pixels": 24})
    samples = read_samples(raw.beton("train"))
    assert (samples.size == 3 * samples.height * samples.width).all()
    np.testing.assert_array_equal(samples.height, read_samples(jpegs.beton("train")).height)
    assert verify_dataset("raw") == raw
    plain = write_dataset(source, root / "plain")
    main(["write", str(source), "pixels", "--raw"])
    pixels, fast = (BetonImages(manifest, "train") for manifest in (read_manifest("pixels"), plain))
    for index, name in enumerate(plain.file_names("train")):
        with Image.open(source / "train" / name) as picture:
            np.testing.assert_array_equal(pixels.pixels(index), np.asarray(picture.convert("RGB")))
        assert np.abs(pixels.pixels(index).astype(int) - fast.pixels(index)).mean() < 3
    part = write_subset(raw, root / "part", ["cat"])
    assert (part.raw, part.splits["train"].count) == (True, 8)
    assert verify_dataset(root / "part").content_hash == part.content_hash


def test_a_manifest_from_before_raw_betons_is_read(source: Path, root: Path) -> None:
    manifest = write_dataset(source, root / "photos")
    path = root / "photos" / MANIFEST
    content = json.loads(path.read_text())
    del content["raw"]
    path.write_text(json.dumps(content))
    assert read_manifest("photos") == manifest


def test_a_summary_says_what_a_record_needs_and_no_path(source: Path, root: Path) -> None:
    summary = write_dataset(source, root / "photos").summary
    assert summary["splits"]["train"]["count"] == 24
    assert (summary["classes"], summary["source"]) == (3, source.name)
    assert summary["written"] == {"max_side": None, "quality": 95, "raw": False}
    assert str(source.parent) not in json.dumps(summary)


def test_room_on_the_disk_is_looked_at_first(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"at least [0-9.]+ [kMG]B are needed, 1 kB are free"):
        write_dataset(source, root / "photos")
    assert not (root / "photos").exists()


def test_a_dataset_may_lie_in_its_own_image_folder(root: Path) -> None:
    image_folder(root / "mine")
    write_dataset(root / "mine", root / "mine")
    assert {path.name for path in (root / "mine").iterdir()} == {
        "train",
        "val",
        "train.beton",
        "val.beton",
        "train.files.txt",
        "val.files.txt",
        MANIFEST,
    }


def test_a_dataset_is_not_replaced_without_force(source: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["write", str(source), "photos"])
    assert "dataset exists; use --force" in fails(capsys, "write", str(source), "photos")
    main(["write", str(source), "photos", "--force", "--max-side", "60", "--quality", "80"])
    assert read_manifest("photos").max_side == 60


def test_splits_can_be_named_and_split_off(source: Path, root: Path, tmp_path: Path) -> None:
    os.rename(source / "val", source / "test")
    assert write_dataset(source, root / "a").splits["val"].count == 7
    named = write_dataset(source, root / "b", splits={"train": "test", "extra": "train"})
    assert {name: split.count for name, split in named.splits.items()} == {"train": 7, "extra": 24}
    share = write_dataset(source / "train", root / "c", val_fraction=0.25)
    assert {name: split.count for name, split in share.splits.items()} == {"train": 18, "val": 6}
    assert not set(share.file_names("train")) & set(share.file_names("val"))
    assert share.content_hash == write_dataset(source / "train", root / "d", val_fraction=0.25).content_hash


def test_a_subset_keeps_bytes_and_numbers_its_classes_anew(source: Path, root: Path, tmp_path: Path) -> None:
    whole = write_dataset(source, root / "whole")
    listed = tmp_path / "classes.txt"
    listed.write_text("# two\ndog  n. a pet\n\ncat\n")
    main(["subset", "whole", "part", "--classes", str(listed)])
    part = read_manifest("part")
    assert part.classes == ("cat", "dog")
    assert part.splits["train"].count == 16
    samples, old = read_samples(part.beton("train")), read_samples(whole.beton("train"))
    with samples.open() as file, old.open() as old_file:
        before = [old.bytes_of(i, old_file) for i in range(len(old)) if old.label[i] > 0]
        assert [samples.bytes_of(i, file) for i in range(len(samples))] == before
    assert samples.label.tolist() == [label - 1 for label in old.label if label > 0]
    main(["subset", str(source), "direct", "--classes", str(listed)])
    assert read_manifest("direct").content_hash == part.content_hash


def test_a_subset_may_hold_some_images_of_each_class(source: Path, root: Path) -> None:
    whole = write_dataset(source, root / "whole")
    main(["subset", "whole", "few", "--per-class", "3"])
    few = read_manifest("few")
    assert few.classes == whole.classes
    for split in ("train", "val"):
        there = Counter(name.partition("/")[0] for name in whole.file_names(split))
        kept = Counter(name.partition("/")[0] for name in few.file_names(split))
        assert kept == {name: min(3, count) for name, count in there.items()}
        assert set(few.file_names(split)) <= set(whole.file_names(split))
    main(["subset", str(source), "direct", "--per-class", "3"])
    assert read_manifest("direct").content_hash == few.content_hash
    with pytest.raises(UserError, match="choose classes"):
        main(["subset", "whole", "none"])


def test_a_subset_of_a_reduced_dataset_is_reduced_alike(source: Path, root: Path) -> None:
    whole = write_dataset(source, root / "whole", settings=WriteSettings(max_side=70, quality=88))
    part = write_subset(whole, root / "part", ["dog"])
    assert (part.max_side, part.quality) == (70, 88)
    assert part.splits["train"].changed == {}
    direct = write_dataset(source, root / "direct", classes=["dog"], settings=WriteSettings(70, 88))
    assert direct.content_hash == part.content_hash


def test_verify_finds_what_was_changed(source: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_dataset(source, root / "photos")
    assert verify_dataset("photos", workers=2) == manifest
    samples = read_samples(manifest.beton("train"))
    with open(samples.path, "r+b") as file:
        file.seek(int(samples.offset[3] + samples.size[3] - 40))
        file.write(b"\xff\xd9")
    assert "train.beton" in fails(capsys, "verify", "photos")


@pytest.mark.parametrize("cut", [1, 24, 1000, 10**5])
def test_a_truncated_beton_is_named(source: Path, root: Path, cut: int) -> None:
    manifest = write_dataset(source, root / "photos")
    path = manifest.beton("train")
    os.truncate(path, max(0, path.stat().st_size - cut))
    with pytest.raises(UserError, match=r"train\.beton: .*truncated"):
        manifest.beton("train")


def test_a_missing_beton_is_named(source: Path, root: Path) -> None:
    manifest = write_dataset(source, root / "photos")
    (root / "photos" / "val.beton").unlink()
    with pytest.raises(UserError, match=r"val\.beton: beton not found"):
        manifest.beton("val")
    with pytest.raises(UserError, match="has no split 'vla'; did you mean 'val'"):
        manifest.beton("vla")


@given(place=st.integers(0, 4000), value=st.binary(min_size=1, max_size=24))
@settings(max_examples=150, deadline=None)
def test_a_damaged_header_or_table_is_refused_or_harmless(
    place: int, value: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("hostile") / "x.beton"
    with BetonWriter(path, 3, 4096) as writer:
        for number in range(3):
            writer.append(b"abc" * 100, 10, 10, number)
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(value)
    try:
        samples = read_samples(path)
    except UserError:
        return
    assert (samples.offset + samples.size <= path.stat().st_size).all()
    assert (samples.offset >= 0).all()
    assert (samples.size >= 0).all()
    assert (samples.height > 0).all()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": 1}', '{"schema": 9}', "\0\0", '{"schema": 1, "splits": {"train": 3}}']
)
def test_a_damaged_manifest_is_named(root: Path, content: str) -> None:
    (root / "photos").mkdir(parents=True)
    (root / "photos" / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=r"photos/manifest\.json"):
        read_manifest("photos")


def test_a_manifest_changed_by_hand_is_refused(source: Path, root: Path) -> None:
    write_dataset(source, root / "photos")
    path = root / "photos" / MANIFEST
    path.write_text(path.read_text().replace("0.485", "0.5"))
    with pytest.raises(UserError, match="content hash"):
        read_manifest("photos")


def test_an_unknown_dataset_is_answered_with_those_there_are(source: Path, root: Path) -> None:
    write_dataset(source, root / "photos")
    with pytest.raises(UserError, match=r"no dataset 'photo' .*did you mean 'photos'.*write SOURCE photo"):
        read_manifest("photo")
    with pytest.raises(UserError, match=r"python -m pretrain\.data sample"):
        read_manifest("sample")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["write", "nowhere", "x"], "nowhere: not found"),
        (["write", "SOURCE", "x", "--splits", "train=train", "val=val/cat"], "has no folders of classes"),
        (["write", "SOURCE", "a/b"], "name of one folder"),
        (["write", "SOURCE", "x", "--splits", "train"], "looks like train=FOLDER"),
        (["write", "SOURCE", "x", "--splits", "train=no"], "no: not found"),
        (["write", "SOURCE", "x", "--val-fraction", "0.1"], "has a validation split"),
        (["write", "SOURCE", "x", "--mean", "1", "1", "1"], "--mean and --std go together"),
        (["write", "SOURCE", "x", "--classes", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["write", "SOURCE", "x", "--classes", "LIST"], "no class 'dgo'; did you mean 'dog'"),
        (["subset", "nothing", "x", "--classes", "LIST"], "no dataset 'nothing'"),
        (["verify", "nothing"], "no dataset 'nothing'"),
        (["show", "sample/nothing"], "unknown recipe"),
    ],
)
def test_commands_say_what_is_wrong(
    arguments: list[str],
    expected: str,
    source: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("dgo\n")
    places = {"SOURCE": str(source), "LIST": str(tmp_path / "list.txt")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert expected in fails(capsys, *arguments)
    assert not root.exists()


def test_an_empty_class_is_no_obstacle_but_an_empty_folder_is(source: Path, root: Path) -> None:
    (source / "train" / "empty").mkdir()
    assert write_dataset(source, root / "a").classes == ("bird", "cat", "dog", "empty")
    for path in (source / "val").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match="val: holds no images"):
        write_dataset(source, root / "b")


def test_progress_is_told(source: Path, root: Path) -> None:
    told: list[tuple[str, int, int]] = []
    write_dataset(source, root / "photos", progress=lambda *args: told.append(args))
    assert ("write train", 24, 24) in told
    assert ("verify val", 7, 7) in told


def test_a_contact_sheet_shows_the_views(source: Path, root: Path, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from pretrain.data.show import GAP, LINE, write_contact_sheet
    from pretrain.recipe_sections import Data, Views

    write_dataset(source, root / "photos")
    data = Data(dataset="photos", views=(Views(size=40, count=2), Views(size=20)))
    recipe: Any = SimpleNamespace(data=data, seed=0, view_sizes=[40, 40, 20])
    write_contact_sheet(recipe, tmp_path / "views.png", images=5)
    with Image.open(tmp_path / "views.png") as sheet:
        head = 2 * LINE + GAP  # views of 40 pixels are shown twice as large
        assert sheet.size == (3 * (80 + GAP) + 40 + GAP, head + 5 * (80 + GAP))
    with pytest.raises(UserError, match="not the name of a picture"):
        write_contact_sheet(recipe, tmp_path / "views.xyz", images=5)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_an_image_beyond_pillows_limit_is_reduced_on_request_and_refused_otherwise(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain.data.betons import images

    monkeypatch.setattr(images, "USUAL_PIXELS", 40_000)  # in place of 179 million
    monkeypatch.setattr(images, "REDUCIBLE_PIXELS", 200_000)
    before, content = Image.MAX_IMAGE_PIXELS, BytesIO()
    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (300, 1))] * 3, axis=-1)).save(content, form, quality=95)
    with pytest.raises(images.BadImage, match=r"120000 pixels\) exceeds limit of 40000 .*; --max-side reduces it"):
        images.prepare(content.getvalue(), images.WriteSettings())
    prepared = images.prepare(content.getvalue(), images.WriteSettings(max_side=40))
    assert (prepared.height, prepared.width) == (30, 40)
    reduced = images.decode(content.getvalue(), 40)
    assert np.abs(reduced[15, :, 0].astype(int) - np.linspace(0, 255, 40)).max() < 8
    assert before == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(images, "REDUCIBLE_PIXELS", 100_000)
    with pytest.raises(images.BadImage, match="exceeds limit of 100000"):
        images.decode(content.getvalue(), 40)
