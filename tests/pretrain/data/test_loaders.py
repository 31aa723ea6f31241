"""The loaders' one contract: an image's pixels in an epoch depend on the seed, the epoch and the image alone."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as functional
from PIL import Image

from pretrain.data.batch import Batch
from pretrain.data.betons.format import read_samples
from pretrain.data.betons.libjpeg import decode_jpeg, import_ffcv
from pretrain.data.betons.manifest import Manifest, read_manifest
from pretrain.data.betons.read import BetonImages
from pretrain.data.betons.write import write_dataset
from pretrain.data.loaders.build import evaluation_batches, make_loader, training_loader
from pretrain.data.loaders.placement import placement_of
from pretrain.recipe_sections import Colour, Data, Views
from tests.support.photos import image_folder
from whitebench.errors import UserError

LOADERS = ("ffcv", "folder", "device")
COLOUR = Colour(jitter_p=0.8, mix_p=0.2, gray_p=0.2, blur_p=0.5, solarize_p=0.2, invert_p=0.1)
GROUPS = (Views(size=40, count=2), Views(size=24, scale=(0.05, 0.3), interpolation="bilinear"))
TRAIN = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Photos of many sizes."""
    source = image_folder(tmp_path_factory.mktemp("photos"), TRAIN)
    return write_dataset(source, tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Photos of 64 x 64 pixels, which the `device` loader can take."""
    source = image_folder(tmp_path_factory.mktemp("small"), TRAIN, side=64)
    return write_dataset(source, tmp_path_factory.mktemp("data") / "small")


def data(loader: str = "ffcv", groups: tuple[Views, ...] = GROUPS, colour: Colour = COLOUR, **other: Any) -> Data:
    return Data(dataset="photos", views=groups, colour=colour, loader=loader, **other)


def loader(manifest: Manifest, kind: str = "ffcv", batch: int = 6, seed: int = 0, **other: Any) -> Any:
    section = other.pop("data", data(kind))
    return training_loader(section, manifest, seed=seed, batch=batch, **other)


def digests(batches: Iterable[Batch]) -> dict[int, str]:
    """Of the views of each image, by its index."""
    found = {}
    for batch in batches:
        for row, index in enumerate(batch.index.tolist()):
            pixels = b"".join(view[row].contiguous().numpy().tobytes() for view in batch.views)
            found[index] = hashlib.sha256(pixels).hexdigest()
    return found


def pixels(batches: Iterable[Batch]) -> dict[int, list[np.ndarray]]:
    return {
        index: [view[row].numpy().astype(int) for view in batch.views]
        for batch in batches
        for row, index in enumerate(batch.index.tolist())
    }


@pytest.fixture(params=LOADERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def manifest(kind: str, photos: Manifest, small: Manifest) -> Manifest:
    return small if kind == "device" else photos


def test_a_batch_has_views_indices_and_labels(kind: str, manifest: Manifest) -> None:
    batch = next(loader(manifest, kind).epoch(0))
    assert [tuple(view.shape) for view in batch.views] == [(6, 3, 40, 40), (6, 3, 40, 40), (6, 3, 24, 24)]
    assert all(view.dtype == torch.uint8 for view in batch.views)
    assert batch.index.dtype == batch.label.dtype == torch.int64
    names = manifest.file_names("train")
    assert [manifest.classes[label] for label in batch.label] == [names[i].split("/")[0] for i in batch.index]


def test_an_epoch_shows_every_image_once(kind: str, manifest: Manifest) -> None:
    seen = [index for batch in loader(manifest, kind).epoch(0) for index in batch.index.tolist()]
    assert sorted(seen) == list(range(TRAIN))


def test_an_incomplete_last_batch_is_dropped(kind: str, manifest: Manifest) -> None:
    batches = loader(manifest, kind, batch=10)
    assert batches.batches_per_epoch == 2
    assert [len(batch.index) for batch in batches.epoch(0)] == [10, 10]


def test_pixels_do_not_depend_on_workers_or_batch_size(kind: str, manifest: Manifest) -> None:
    expected = digests(loader(manifest, kind).epoch(1))
    assert digests(loader(manifest, kind, workers=3).epoch(1)) == expected
    assert digests(loader(manifest, kind, batch=8).epoch(1)) == expected


def test_pixels_do_not_depend_on_ranks(kind: str, manifest: Manifest) -> None:
    whole = list(loader(manifest, kind).epoch(2))
    parts = [list(loader(manifest, kind, rank=rank, world_size=2).epoch(2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch.index, torch.cat([first.index, second.index]))
        assert all(
            torch.equal(view, torch.cat([a, b]))
            for view, a, b in zip(batch.views, first.views, second.views, strict=True)
        )


def test_an_epoch_can_be_resumed_in_the_middle(kind: str, manifest: Manifest) -> None:
    whole = [digests([batch]) for batch in loader(manifest, kind).epoch(3)]
    resumed = [digests([batch]) for batch in loader(manifest, kind).epoch(3, start=2)]
    assert resumed == whole[2:]
    assert list(loader(manifest, kind).epoch(3, start=4)) == []


def test_one_loader_gives_any_epoch_again(kind: str, manifest: Manifest) -> None:
    batches = loader(manifest, kind)
    first, second = digests(batches.epoch(0)), digests(batches.epoch(1))
    assert digests(batches.epoch(0)) == first
    assert not set(first.values()) & set(second.values())
    assert not set(first.values()) & set(digests(loader(manifest, kind, seed=1).epoch(0)).values())


def test_orders_of_epochs_differ(kind: str, manifest: Manifest) -> None:
    orders = [torch.cat([batch.index for batch in loader(manifest, kind).epoch(epoch)]).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]


def test_a_batch_keeps_its_pixels_while_later_ones_come(kind: str, manifest: Manifest) -> None:
    batches = loader(manifest, kind, batch=2)
    kept = list(batches.epoch(0))
    assert digests(kept) == digests(batches.epoch(0))


def test_loaders_draw_alike_and_agree_in_pixels(small: Manifest) -> None:
    """Stated tolerances. Decoders differ (fast and slow DCT, some levels), and jitter can more than double that."""
    plain = {kind: pixels(loader(small, data=data(kind, colour=Colour())).epoch(0)) for kind in LOADERS}
    full = {kind: pixels(loader(small, kind).epoch(0)) for kind in LOADERS}
    for views, one, other, most, mean in (
        (plain, "ffcv", "device", 1, 0.05),
        (plain, "ffcv", "folder", 8, 1.2),
        (full, "ffcv", "device", 5, 0.1),
        (full, "ffcv", "folder", 40, 2.5),
    ):
        differences = [np.abs(a - b) for i in views[one] for a, b in zip(views[one][i], views[other][i], strict=True)]
        assert max(difference.max() for difference in differences) <= most
        assert np.mean([difference.mean() for difference in differences]) <= mean


@pytest.mark.parametrize("kind", ["ffcv", "folder"])
def test_placements_draw_alike_and_agree_in_pixels(
    kind: str, photos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pretrain.data.loaders.build.placement_of", lambda data, device: data.placement
    )  # as on an accelerator
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inside = pixels(loader(photos, data=data(kind, placement="loader")).epoch(0))
    outside = loader(photos, data=data(kind, placement="accelerator"), device=device).epoch(0)
    outside = pixels(replace(batch, views=[view.cpu() for view in batch.views]) for batch in outside)
    differences = [np.abs(a - b) for i in inside for a, b in zip(inside[i], outside[i], strict=True)]
    assert max(difference.max() for difference in differences) <= 5
    assert np.mean([(difference > 1).mean() for difference in differences]) < 1e-3


def test_colour_is_placed_where_it_can_be() -> None:
    assert placement_of(data("ffcv"), "cuda") == "loader"
    assert placement_of(data("ffcv", placement="accelerator"), "cuda") == "accelerator"
    assert placement_of(data("ffcv", placement="accelerator"), "cpu") == "loader"
    assert placement_of(data("device"), "cpu") == "accelerator"
    with pytest.raises(UserError, match="loader=device"):
        placement_of(data("device", placement="loader"), "cpu")


def test_views_are_the_crops_that_the_parameters_say(photos: Manifest) -> None:
    from pretrain.data.views import random_parameters as draws

    groups, samples = (Views(size=48),), read_samples(photos.beton("train"))
    settings = draws.settings_of(groups, Colour())
    with samples.open() as file:
        for batch in loader(photos, data=data(groups=groups, colour=Colour())).epoch(5):
            for row, index in enumerate(batch.index.tolist()):
                sides = int(samples.height[index]), int(samples.width[index])
                table = draws.draw(0, 5, np.array([index]), *(np.array([side]) for side in sides), settings)[0, 0]
                image = decode_jpeg(samples.bytes_of(index, file), *sides)
                assert image is not None
                box = [int(table[column]) for column in (draws.TOP, draws.LEFT, draws.HEIGHT, draws.WIDTH)]
                view = functional.resized_crop(
                    torch.from_numpy(image).permute(2, 0, 1).float(), *box, [48, 48], interpolation=3, antialias=True
                )
                view = (view.flip(2) if table[draws.FLIP] else view).clamp(0, 255)
                assert (batch.views[0][row] - view).abs().max() <= 1


@pytest.mark.parametrize("kind", ["ffcv", "folder"])
@pytest.mark.parametrize(("resize", "crop"), [(72, 64), (64, 64), (40, 33)])
def test_evaluation_shows_every_image_in_order_as_torchvision_would(
    kind: str, photos: Manifest, resize: int, crop: int
) -> None:
    batches = list(evaluation_batches(photos, "train", resize, crop, 7, workers=2, loader=kind))  # type: ignore[arg-type]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(TRAIN))
    assert [len(batch.index) for batch in batches] == [7, 7, 7, 3]
    source = Path(photos.source) / "train"
    views = torch.cat([batch.views[0] for batch in batches])
    for view, name in zip(views, photos.file_names("train"), strict=True):
        image = torch.from_numpy(np.array(Image.open(source / name))).permute(2, 0, 1)
        expected = functional.center_crop(functional.resize(image, [resize], antialias=True), [crop, crop])
        difference = (view.int() - expected.int()).abs()
        assert difference.max() <= (1 if kind == "folder" else 8)
        assert difference.float().mean() < 1.5


def test_evaluation_of_some_images(photos: Manifest) -> None:
    batch = next(evaluation_batches(photos, "val", 40, 32, 10, indices=[5, 0, 3]))
    assert batch.index.tolist() == [5, 0, 3]
    whole = next(evaluation_batches(photos, "val", 40, 32, 10))
    assert torch.equal(batch.views[0], whole.views[0][[5, 0, 3]])


def test_evaluation_refuses_a_crop_that_does_not_fit(photos: Manifest) -> None:
    with pytest.raises(UserError, match="crop of 64"):
        evaluation_batches(photos, "val", 32, 64, 4)


def test_a_batch_larger_than_the_dataset_is_refused(photos: Manifest) -> None:
    with pytest.raises(UserError, match="25 images are more than the dataset's 24"):
        loader(photos, batch=25)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith("views")}


@pytest.mark.parametrize("kind", ["ffcv", "folder"])
def test_leaving_an_epoch_early_leaves_no_thread(kind: str, photos: Manifest) -> None:
    batches = loader(photos, kind, batch=2, workers=2)
    before = threads()
    for epoch in range(5):
        running = batches.epoch(epoch)
        next(running)
        running.close()  # type: ignore[attr-defined]
    for _ in batches.epoch(9):
        break  # the generator is closed when it is collected
    assert threads() == before
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("views")]) <= 6


def test_two_loaders_can_run_side_by_side(photos: Manifest) -> None:
    expected = digests(loader(photos).epoch(0)), digests(evaluation_batches(photos, "val", 40, 32, 2))
    views: Iterator[Batch] = loader(photos, workers=2).epoch(0)
    first = [next(views)]
    assert digests(evaluation_batches(photos, "val", 40, 32, 2, workers=2)) == expected[1]
    assert digests([*first, *views]) == expected[0]


def test_two_epochs_of_one_loader_can_run_side_by_side(photos: Manifest) -> None:
    batches = loader(photos)
    expected = digests(batches.epoch(0)), digests(batches.epoch(1))
    pairs = list(zip(batches.epoch(0), batches.epoch(1), strict=True))
    assert (digests(first for first, _ in pairs), digests(second for _, second in pairs)) == expected


def damaged(manifest: Manifest, folder: Path, index: int) -> Manifest:
    """A copy of the dataset in which one image's bytes are overwritten."""
    folder.mkdir()
    for path in manifest.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    samples = read_samples(folder / "train.beton")
    with open(folder / "train.beton", "r+b") as file:
        file.seek(int(samples.offset[index]))
        file.write(b"\0" * int(samples.size[index]))
    return read_manifest(folder)


def test_an_image_that_does_not_decode_is_named_to_the_caller(photos: Manifest, tmp_path: Path) -> None:
    manifest = damaged(photos, tmp_path / "bad", 13)
    name = manifest.file_names("train")[13]
    before = threads()
    with pytest.raises(UserError, match=f"train.beton: image 13 .{name}. does not decode"):
        digests(loader(manifest, workers=2).epoch(0))
    assert threads() == before


def test_a_file_that_does_not_decode_is_named_to_the_caller(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "source")
    manifest = write_dataset(source, tmp_path / "data")
    (source / "train" / "cat" / "004.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"cat/004.jpg: image \d+ does not decode"):
        digests(loader(manifest, "folder").epoch(0))


def test_any_exception_in_ffcvs_thread_reaches_the_caller(photos: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    import pretrain.data.loaders.ffcv as module

    def fail(*_: object) -> None:
        raise ZeroDivisionError("from the thread")

    batches = loader(photos)
    monkeypatch.setattr(module.BetonRenderer, "start", fail)
    with pytest.raises(ZeroDivisionError, match="from the thread"):
        next(batches.epoch(0))


def test_images_without_a_folder_are_reported(small: Manifest, tmp_path: Path) -> None:
    moved = replace(small, source=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"neither in .* nor in .*gone.*data.loader=ffcv"):
        loader(moved, "folder")


def test_the_device_loader_refuses_images_of_several_sizes(photos: Manifest) -> None:
    with pytest.raises(UserError, match="differ in size"):
        loader(photos, "device")


def test_ffcvs_own_settings_leave_torch_as_it_was(photos: Manifest) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in loader(photos, workers=3).epoch(0):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_betons_with_uncompressed_images_can_be_read(tmp_path: Path, small: Manifest) -> None:
    """As FFCV's own writer makes them; the manifest is made by hand."""
    writer = import_ffcv("ffcv.writer")
    fields = import_ffcv("ffcv.fields")
    images = [np.array(Image.open(Path(small.source) / "train" / name)) for name in small.file_names("train")]
    labels = read_samples(small.beton("train")).label.tolist()
    path = tmp_path / "raw.beton"
    columns = {"image": fields.RGBImageField(write_mode="raw"), "label": fields.IntField()}
    writer.DatasetWriter(str(path), columns, num_workers=1).from_indexed_dataset(list(zip(images, labels, strict=True)))
    splits = {"train": replace(small.splits["train"], beton="raw.beton")}
    manifest = replace(small, folder=tmp_path, splits=splits)
    plain = data(colour=Colour())
    raw, jpeg = (pixels(loader(m, data=plain).epoch(0)) for m in (manifest, small))
    differences = [np.abs(a - b) for i in raw for a, b in zip(raw[i], jpeg[i], strict=True)]
    assert max(difference.max() for difference in differences) <= 8


def test_make_loader_takes_everything_from_the_recipe(small: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    recipe: Any = SimpleNamespace(data=data(), seed=4, batch=6, machine=SimpleNamespace(workers=2))
    made = make_loader(recipe, small, rank=1, world_size=2)
    expected = loader(small, seed=4, rank=1, world_size=2)
    assert digests(made.epoch(0)) == digests(expected.epoch(0))


def test_kernels_are_compiled_once_and_loaded_by_other_processes(photos: Manifest) -> None:
    next(loader(photos).epoch(0))
    program = f"""
from pathlib import Path
from pretrain.data.loaders import ffcv
from pretrain.data.loaders.build import training_loader
from pretrain.data.views import random_parameters
from pretrain.data.betons.manifest import read_manifest
from pretrain.recipe_sections import Data, Views
data = Data(dataset="photos", views=(Views(size=16),))
next(training_loader(data, read_manifest(Path({str(photos.folder)!r})), seed=0, batch=2).epoch(0))
for kernel in (ffcv._render, random_parameters._fill, random_parameters._fill_keys):
    assert kernel.stats.cache_hits and not kernel.stats.cache_misses, kernel
"""
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("kind", ["ffcv", "folder"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_evaluation_view_is_resized_as_its_protocol_says(kind: Any, interpolation: Any, photos: Manifest) -> None:
    """As torchvision's Resize(56, interpolation) and CenterCrop(48) on a tensor, which does not clip between passes."""
    images = BetonImages(photos, "val", exact=kind == "folder")
    batches = evaluation_batches(photos, "val", 56, 48, 4, loader=kind, interpolation=interpolation)
    for view, index in [(v, i) for b in batches for v, i in zip(b.views[0], b.index.tolist(), strict=True)]:
        image = torch.from_numpy(images.pixels(index).copy()).permute(2, 0, 1).float()
        mode = functional.InterpolationMode(interpolation)
        resized = functional.resize(image, [56], interpolation=mode, antialias=True)
        expected = functional.center_crop(resized, [48, 48]).clamp(0, 255)
        assert (view.float() - expected).abs().max() <= 1.3
