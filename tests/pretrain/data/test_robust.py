"""What a loader meets in the field: epochs left early, files that change or lie, machines too small for their data."""

import gc
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torchvision.transforms.v2.functional as functional

from pretrain.data.betons.format import read_samples
from pretrain.data.betons.manifest import Manifest
from pretrain.data.betons.read import BetonImages
from pretrain.data.betons.write import write_dataset
from pretrain.data.loaders import host, placement, preflight
from pretrain.data.loaders.build import training_loader
from pretrain.data.loaders.host import Host, filesystem_of
from pretrain.data.loaders.placement import placement_of
from pretrain.data.views import random_parameters as draws
from pretrain.recipe_sections import Colour, Data, Views
from tests.support.photos import image_folder
from whitebench.errors import UserError

DATA = Data(dataset="photos", views=(Views(size=160, count=2),))
BATCH, TRAIN = 8, 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    source = image_folder(tmp_path_factory.mktemp("photos"), TRAIN, side=96)
    return write_dataset(source, tmp_path_factory.mktemp("data") / "photos")


def held() -> tuple[int, int, int]:
    """Threads (but those of the pool, which stay for all loaders), open files, bytes of this process."""
    gc.collect()
    process = psutil.Process()
    own = [thread for thread in threading.enumerate() if not thread.name.startswith("views")]
    return len(own), process.num_fds(), process.memory_info().rss


@pytest.mark.parametrize("kind", ["ffcv", "folder", "device"])
def test_thirty_epochs_left_early_leak_nothing(kind: str, photos: Manifest) -> None:
    """A batch takes 1.2 MB, and 4 are ahead: what is left behind each time would add up to 150 MB."""
    views = DATA.views if kind != "device" else (Views(size=32),)  # there, nothing is ahead
    data = replace(DATA, loader=kind, views=views)  # type: ignore[arg-type]
    loader = training_loader(data, photos, seed=0, batch=BATCH, workers=2)

    def leave_early(times: int) -> None:
        for number in range(times):
            running: Any = loader.epoch(number)
            next(running)
            if number % 2:
                running.close()  # the others are closed as they are collected

    leave_early(6)
    threads, files, memory = held()
    leave_early(30)
    after = held()
    assert after[:2] == (threads, files)
    assert after[2] - memory < 25e6


def test_a_beton_cut_short_names_the_first_image_that_is_lost(photos: Manifest, tmp_path: Path) -> None:
    whole, path = photos.beton("train"), tmp_path / "train.beton"
    samples = read_samples(whole)
    content = whole.read_bytes()
    for lost in (0, 7, TRAIN - 1):
        path.write_bytes(content[: int(samples.offset[lost] + samples.size[lost]) - 1])
        with pytest.raises(UserError, match=rf"train.beton: truncated .*\(image {lost} is the first incomplete one"):
            read_samples(path)
    path.write_bytes(content[:-1])  # of the table alone
    with pytest.raises(UserError, match=r"train.beton: truncated or damaged: \d+ bytes but its header says \d+; "):
        read_samples(path)


def test_a_beton_cut_short_between_epochs_is_an_error_and_no_crash(photos: Manifest, tmp_path: Path) -> None:
    for path in photos.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    loader = training_loader(DATA, replace(photos, folder=tmp_path), seed=0, batch=BATCH)
    assert len(list(loader.epoch(0))) == TRAIN // BATCH
    os.truncate(tmp_path / "train.beton", 3 << 20)
    with pytest.raises(UserError, match=r"train.beton: truncated"):
        next(loader.epoch(1))


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with several file systems; one is mounted over another."""
    table = {"/": "ext4", "/dev/shm": "tmpfs", "/my data": "lustre", "/home/fast": "xfs"}
    rows = [SimpleNamespace(mountpoint="/home", fstype="ext3"), SimpleNamespace(mountpoint="/home", fstype="nfs4")]
    rows += [SimpleNamespace(mountpoint=folder, fstype=kind) for folder, kind in table.items()]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: rows)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/train.beton", "ext4"),
        ("/dev/shm/train.beton", "tmpfs"),
        ("/home/me/train.beton", "nfs4"),
        ("/homestead/train.beton", "ext4"),
        ("/home/fast/train.beton", "xfs"),
        ("/my data/train.beton", "lustre"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str, mounts: None) -> None:
    assert filesystem_of(Path(path)) == kind


def test_a_host_that_lists_no_mounts_has_an_unknown_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [])
    assert filesystem_of(Path("/x")) == "unknown"


def test_memory_limits_of_control_groups_count(tmp_path: Path, mounts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    (tmp_path / "slurm" / "job").mkdir(parents=True)
    (tmp_path / "slurm" / "memory.max").write_text("3000000\n")
    (tmp_path / "slurm" / "job" / "memory.max").write_text("max\n")
    texts = {"/proc/self/cgroup": "0::/slurm/job\n"}
    real = host._text
    monkeypatch.setattr(host, "_text", lambda path: texts.get(str(path)) or real(path))
    seen = Host.of(Path("/home/me/x"))
    assert (seen.memory, seen.filesystem) == (3000000, "nfs4")
    assert 1 <= seen.cores <= (os.cpu_count() or 1)
    texts["/proc/self/cgroup"] = "4:memory:/job\n5:cpu,cpuacct:/job\n"
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text("2000000\n")
    assert Host.of(Path("/x")).memory == 2000000


GB = 10**9


@pytest.mark.parametrize(
    ("size", "kind", "window", "expected"),
    [
        (10, "ext4", None, "memory keeps it after the first epoch has read it once"),
        (10, "nfs4", None, "read it over the network once"),
        (150, "nfs4", None, "larger than memory: each epoch reads it again, image by image"),
        (150, "nfs4", 50_000, "in blocks, shuffled among 50,000 images"),
        (150, "tmpfs", None, "in memory already"),
    ],
)
def test_how_a_file_is_read_depends_on_its_size_and_place(
    size: int, kind: str, window: int | None, expected: str
) -> None:
    assert expected in preflight.reading("ffcv", size * GB, Host(8, 100 * GB, kind), window)


def test_a_set_larger_than_memory_is_told_which_window_fits() -> None:
    small, count = Host(8, 100 * GB, "nfs4"), 1_281_167

    def advice(size: int, window: int | None, batch: int = 256) -> list[str]:
        return preflight._advice_on_order(size, small, count, window, batch)

    assert advice(70 * GB, None) == []
    (told,) = advice(150 * GB, None)
    window = int(told.partition("shuffle_window=")[2].split()[0])
    assert 0 < window * 150 * GB / count <= 0.5 * 100 * GB
    assert advice(150 * GB, window) == []
    assert "shuffle_window=600000 reads more than memory holds" in advice(150 * GB, 600_000)[0]
    assert "not even a batch" in advice(150 * GB, None, batch=1_000_000)[0]


def test_workers_are_compared_with_cores() -> None:
    assert "more than the 4 cores" in preflight._advice_on_workers(8, 4, on_accelerator=True)[0]
    assert "machine.workers=4 would use all" in preflight._advice_on_workers(1, 4, on_accelerator=True)[0]
    assert preflight._advice_on_workers(1, 4, on_accelerator=False) == []
    assert preflight._advice_on_workers(4, 4, on_accelerator=True) == []


@pytest.fixture
def recipe(photos: Manifest, monkeypatch: pytest.MonkeyPatch) -> Any:
    from pretrain.recipe import load

    monkeypatch.setenv("WHITEBENCH_DATA", str(photos.folder.parent))
    return load("sample/simclr", ["data.dataset=photos", "batch=8", "device=cpu", "machine.workers=2"])


@pytest.mark.parametrize("kind", ["ffcv", "folder", "device"])
def test_a_run_preflight_predicts_the_rate_and_fits_into_a_record(kind: str, recipe: Any) -> None:
    from whitebench.hashing import canonical

    seen = preflight.run_preflight(replace(recipe, data=replace(recipe.data, loader=kind)))
    assert seen.images_per_s > 0
    assert "images/s from the loader" in seen.text
    assert canonical(seen.record)["host"]["cores"] == seen.host.cores
    assert (seen.file_bytes > 0) == (kind != "folder")


def test_commands_run_preflight_and_refuse_to_measure_where_there_is_no_choice(
    recipe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from pretrain.data.__main__ import main

    main(["preflight", "sample/simclr", "data.dataset=photos", "device=cpu", "batch=8"])
    assert capsys.readouterr().out.startswith("data: 0.00 GB on ")
    with pytest.raises(
        UserError, match="nothing to measure: with these settings colour augmentation runs in the loader"
    ):
        main(["measure", "sample/simclr", "data.dataset=photos", "device=cpu"])


def test_the_quicker_placement_is_kept_for_the_views_that_were_measured(
    recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain.measure_placement import measure
    from pretrain.speed import Speed

    rates = {"loader": 100.0, "accelerator": 150.0}
    asked: list[str] = []

    def speed(recipe: Any, steps: int) -> Speed:
        asked.append(recipe.data.placement)
        return Speed(rates[recipe.data.placement], 0.1, 1.0, 1.0, 0)

    monkeypatch.setattr("pretrain.measure_placement.resolve_device", lambda device: "cuda")
    assert placement_of(recipe.data, "cuda") == "loader"
    assert "colour augmentation runs in the accelerator (100 images/s" in measure(recipe, 20, False, speed)
    assert asked == ["loader", "accelerator"]
    assert placement_of(recipe.data, "cuda") == "accelerator"
    assert placement_of(recipe.data, "cpu") == "loader"
    assert placement_of(replace(recipe.data, placement="loader"), "cuda") == "loader"
    assert placement_of(replace(recipe.data, views=(Views(size=32),)), "cuda") == "loader"  # was not measured
    rates["loader"] = 200.0
    assert "measured before" in measure(recipe, 20, False, speed)
    assert placement_of(recipe.data, "cuda") == "accelerator"
    measure(recipe, 20, True, speed)
    assert placement_of(recipe.data, "cuda") == "loader"
    path = placement.measurements_path("photos")
    path.write_text('{"x": {}}')
    with pytest.raises(UserError, match=r"placement.json: not readable"):
        placement_of(recipe.data, "cuda")
    path.unlink()


@pytest.mark.parametrize("kind", ["ffcv", "device"])
def test_colour_before_the_crop_is_that_of_the_whole_image(kind: Any, photos: Manifest) -> None:
    """Contrast then turns about the image's mean, and not about the mean of the small crop."""
    jitter = Colour(jitter=(0.0, 0.9, 0.0, 0.0), jitter_p=1.0, before_crop=True)
    data = Data(dataset="photos", views=(Views(size=48, scale=(0.05, 0.2), flip_p=0.0),), colour=jitter, loader=kind)
    images, settings = BetonImages(photos, "train"), draws.settings_of(data.views, jitter)
    batch = next(training_loader(data, photos, seed=0, batch=BATCH).epoch(0))
    for view, index in zip(batch.views[0], batch.index.tolist(), strict=True):
        sides = (np.array([side]) for side in images.sides(index))
        row = draws.draw(0, 0, np.array([index]), *sides, settings)[0, 0]
        image, factor = images.pixels(index), row[draws.FACTOR + draws.CONTRAST]
        mean = np.floor(image @ [0.2989, 0.587, 0.114]).mean()
        coloured = torch.from_numpy(np.floor((factor * image + (1 - factor) * mean).clip(0, 255))).permute(2, 0, 1)
        box = [int(row[column]) for column in (draws.TOP, draws.LEFT, draws.HEIGHT, draws.WIDTH)]
        expected = functional.resized_crop(coloured, *box, [48, 48], interpolation=3, antialias=True)
        assert (view - expected.clamp(0, 255)).abs().max() <= 2
    after = replace(data, colour=replace(jitter, before_crop=False))
    other = next(training_loader(after, photos, seed=0, batch=BATCH).epoch(0))
    assert (batch.views[0].int() - other.views[0].int()).abs().max() > 5


def test_colour_before_the_crop_needs_a_place_that_has_the_image() -> None:
    data = Data(dataset="photos", views=(Views(size=48),), colour=Colour(before_crop=True))
    assert placement_of(data, "cuda") == "loader"
    assert placement_of(replace(data, loader="device"), "cuda") == "accelerator"
    with pytest.raises(UserError, match="before_crop needs placement=loader"):
        placement_of(replace(data, placement="accelerator"), "cuda")


@pytest.mark.parametrize("synthetic", [False, True])
def test_the_training_step_is_timed_on_real_and_on_synthetic_input(
    synthetic: bool, recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain.speed import training_speed

    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path))
    small = replace(recipe, data=replace(recipe.data, views=(Views(size=16, count=2),)))
    speed = training_speed(small, steps=2, warm_up=1, synthetic=synthetic)
    assert speed.images_per_s > 0
    assert 0 <= speed.data_wait < 1
    assert speed.cpu_ms > 0
    assert speed.memory > 1e6
    assert not list(tmp_path.iterdir())
