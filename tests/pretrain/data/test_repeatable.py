"""The same pixels for any number of workers and ranks, batch size and order, and after resumption.

By hashes of whole epochs; also by the portable code, and on two processes that talk by gloo.
"""

import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from pretrain.data.batch import Batch
from pretrain.data.betons.images import WriteSettings
from pretrain.data.betons.manifest import Manifest, read_manifest
from pretrain.data.betons.write import write_dataset
from pretrain.data.loaders.build import training_loader
from pretrain.data.loaders.order import ShuffledOrder
from pretrain.data.views import crop
from pretrain.data.views import random_parameters as draws
from pretrain.data.views import simd as vectors
from pretrain.recipe_sections import Colour, Data, Views
from tests.support.photos import image_folder, photo
from whitebench.errors import UserError

TRAIN, BATCH = 26, 6
COLOUR = Colour(jitter_p=0.8, mix_p=0.2, gray_p=0.2, blur_p=[1.0, 0.1, 0.5], solarize_p=0.2, invert_p=0.1)
VIEWS = (Views(size=40, count=2), Views(size=23, scale=(0.05, 0.3), interpolation="bilinear"))
DATA = Data(dataset="photos", views=VIEWS, colour=COLOUR)
BEFORE_CROP = replace(DATA, colour=replace(COLOUR, before_crop=True))
KINDS: dict[str, Data] = {
    "ffcv": DATA,
    "ffcv-raw": DATA,
    "ffcv-windows": replace(DATA, shuffle_window=8),
    "ffcv-colour-before-crop": BEFORE_CROP,
    "folder": replace(DATA, loader="folder"),
    "device": replace(DATA, loader="device"),
    "device-colour-before-crop": replace(BEFORE_CROP, loader="device"),
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    source = image_folder(tmp_path_factory.mktemp("photos"), TRAIN)
    small = image_folder(tmp_path_factory.mktemp("small"), TRAIN, side=64)
    data = tmp_path_factory.mktemp("data")
    return {
        "jpeg": write_dataset(source, data / "jpeg"),
        "raw": write_dataset(source, data / "raw", settings=WriteSettings(raw=True)),
        "small": write_dataset(small, data / "small"),
    }


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def manifest(kind: str, manifests: dict[str, Manifest]) -> Manifest:
    return manifests["small" if "device" in kind else "raw" if "raw" in kind else "jpeg"]


def hashes(batches: Iterable[Batch]) -> dict[int, str]:
    """Of each image's views, by its index."""
    found = {}
    for batch in batches:
        for row, index in enumerate(batch.index.tolist()):
            content = b"".join(view[row].contiguous().numpy().tobytes() for view in batch.views)
            assert index not in found
            found[index] = hashlib.sha256(content).hexdigest()
    return found


def epoch(manifest: Manifest, data: Data, batch: int = BATCH, start: int = 0, **other: Any) -> dict[int, str]:
    """Of epoch 3, seed 5."""
    return hashes(training_loader(data, manifest, seed=5, batch=batch, **other).epoch(3, start))


def test_an_epoch_is_the_same_however_it_is_made(kind: str, manifest: Manifest) -> None:
    """Workers, batch sizes, ranks and places of resumption; batches of one image visit all of the set."""
    data = KINDS[kind]
    every = epoch(manifest, data, batch=1)
    assert len(set(every.values())) == TRAIN
    ways: dict[str, dict[int, str]] = {
        "workers": epoch(manifest, data, workers=3),
        "batch": epoch(manifest, data, batch=8),
        **{f"rank {rank}": epoch(manifest, data, rank=rank, world_size=2) for rank in (0, 1)},
        "whole batch": epoch(manifest, data, batch=TRAIN) if data.shuffle_window is None else {},
        "resumed": epoch(manifest, data, start=2),
    }
    for way, found in ways.items():
        assert found == {index: every[index] for index in found}, way
    assert not set(ways["rank 0"]) & set(ways["rank 1"])
    assert set(ways["rank 0"]) | set(ways["rank 1"]) == set(epoch(manifest, data))
    assert list(ways["resumed"]) == list(epoch(manifest, data))[2 * BATCH :]


def test_an_image_does_not_depend_on_the_order(kind: str, manifest: Manifest) -> None:
    data, some = KINDS[kind], np.array([20, 3, 11, 7])
    assert epoch(manifest, data, batch=2, indices=some).items() <= epoch(manifest, data, batch=1).items()


RANK = """
import json, os, sys
from pathlib import Path
import torch.distributed as dist
from pretrain.distributed import World
from tests.pretrain.data.test_repeatable import BATCH, DATA, epoch
from pretrain.data.betons.manifest import read_manifest
with World.join(2, "cpu") as world:
    own = epoch(read_manifest(Path(sys.argv[1])), DATA, rank=world.rank, world_size=2, workers=1 + world.rank)
    parts = [None, None]
    dist.all_gather_object(parts, own)
    if world.is_main:
        print(json.dumps(parts))
"""


def test_two_gloo_ranks_see_the_epoch_of_one_process(manifests: dict[str, Manifest]) -> None:
    manifest, root = manifests["jpeg"], Path(__file__).parents[3]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(manifest.folder)],
            cwd=root,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    output, _ = (rank.communicate(timeout=300)[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0]
    first, second = ({int(index): digest for index, digest in part.items()} for part in json.loads(output))
    assert not set(first) & set(second)
    assert {**first, **second} == epoch(manifest, DATA)


def test_windows_make_a_permutation_of_whole_blocks() -> None:
    for count, window in ((1000, 100), (1003, 64), (40, 16), (17, 5)):
        orders = [draws.shuffled_in_windows(seed, 0, count, window) for seed in (0, 1)]
        assert all(sorted(order) == list(range(count)) for order in orders)
        assert not np.array_equal(*orders)
        for start in range(0, count, window):
            blocks = set(orders[0][start : start + window] // draws.BLOCK)
            assert len(blocks) <= window / draws.BLOCK + 2  # whole ones, the ends of two, and the file's last
    np.testing.assert_array_equal(draws.shuffled_in_windows(0, 3, 500, 500), draws.shuffled(0, 3, 500))


def test_images_of_a_window_are_shuffled() -> None:
    order = draws.shuffled_in_windows(0, 0, 1600, 320)[:320]
    together = (np.diff(order) == 1).mean()
    assert together < 0.05


def test_a_window_is_the_same_for_any_number_of_ranks() -> None:
    whole = ShuffledOrder(0, 1000, 50, window=200).batches(4)
    parts = [ShuffledOrder(0, 1000, 50, rank, 5, window=200).batches(4) for rank in range(5)]
    for number, batch in enumerate(whole):
        np.testing.assert_array_equal(batch, np.concatenate([part[number] for part in parts]))
    with pytest.raises(UserError, match="shuffle_window: 20 images are fewer than a batch of 50"):
        ShuffledOrder(0, 1000, 50, window=20)


def test_portable_code_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is loaded anew, to be compiled without the processor's own instruction for sums of pairs."""
    usual = numba.njit(lambda *arguments: crop.resized_crop(*arguments))
    monkeypatch.setattr(vectors, "_HAS_MADD", not vectors._HAS_MADD)
    specification: Any = importlib.util.spec_from_file_location("other_crop", crop.__file__)
    other_crop = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(other_crop)
    other = numba.njit(lambda *arguments: other_crop.resized_crop(*arguments))
    draw = np.random.default_rng(0)
    for number in range(40):
        image, size = photo(number, 150, 160), int(draw.integers(1, 70))
        box = int(draw.integers(50)), int(draw.integers(60)), int(draw.integers(1, 100)), int(draw.integers(1, 100))
        views = [np.zeros((size, size, 3), np.uint8) for _ in range(2)]
        for function, view in zip((other, usual), views, strict=True):  # the portable one is compiled first
            function(image, box, (size, size), (0, 0), bool(number % 2), bool(number % 3), view)
        np.testing.assert_array_equal(*views)


OTHER_PROCESSOR = """
import json, sys
from pathlib import Path
from pretrain.data.views import jit, simd
simd._HAS_MADD = False
jit.cache_folder = lambda: Path(sys.argv[2])
from tests.pretrain.data.test_repeatable import BEFORE_CROP, DATA, epoch
from pretrain.data.betons.manifest import read_manifest
manifest = read_manifest(Path(sys.argv[1]))
print(json.dumps([epoch(manifest, DATA), epoch(manifest, BEFORE_CROP)]))
"""


@pytest.mark.long
def test_a_processor_without_vector_extensions_gives_the_same_epoch(
    manifests: dict[str, Manifest], tmp_path: Path
) -> None:
    """All kernels compiled for the plainest processor of this architecture, and without its own instruction."""
    root, manifest = Path(__file__).parents[3], manifests["jpeg"]
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESSOR, str(manifest.folder), str(tmp_path)],
        cwd=root,
        env={**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    for found, data in zip(json.loads(done.stdout), (DATA, BEFORE_CROP), strict=True):
        assert {int(index): digest for index, digest in found.items()} == epoch(manifest, data)


def test_raw_pixels_give_the_views_of_the_exactly_decoded_files(manifests: dict[str, Manifest]) -> None:
    """FFCV's decoder is a level off; raw pixels are Pillow's, and so the views are those of the folder loader."""
    assert epoch(manifests["raw"], DATA) == epoch(manifests["jpeg"], replace(DATA, loader="folder"))
    assert epoch(manifests["raw"], DATA) != epoch(manifests["jpeg"], DATA)
    assert read_manifest(manifests["raw"].folder).raw
    assert manifests["raw"].content_hash != manifests["jpeg"].content_hash
