"""Several processes train on exactly the batches that one process would have; each test of it runs in a real group."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.support.coco_folder import write_coco
from tests.support.oracle import evaluate_oracle_in_group
from tests.support.voc_folder import write_voc
from transfer.batches import GPU_IMAGES, random_order, sample_batches, training_batches
from transfer.convert import Converted
from transfer.protocol import build_cfg, load_protocol, resolve

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 12


def batch_content(coco: Path, rank: int, processes: int, workers: int = 0) -> list[list[list[Any]]]:
    """Of each batch from iteration 2 on: file name, size and sum of pixels of its images, in order."""
    from transfer.coco_set import read_coco, register
    from transfer.trainer import dataset_images

    protocol = load_protocol("sample")
    content = Converted({}, {"arch": "resnet18", "mean": [0.5] * 3, "std": [0.2] * 3})
    cfg = build_cfg(protocol, resolve(protocol, batch=4), content).clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (48, 64, 80), "horizontal"
    images = dataset_images(register(read_coco(coco))[0], True)
    batches = islice(training_batches(cfg, images, 2, workers, rank, processes), STEPS)
    return [
        [[Path(i["file_name"]).name, list(i["image"].shape), int(i["image"].long().sum())] for i in batch]
        for batch in batches
    ]


def write_content(coco: Path, out: Path) -> None:
    from detectron2.utils import comm

    assert comm.get_world_size() == 2
    content = batch_content(coco, comm.get_rank(), comm.get_world_size(), workers=comm.get_rank())
    (out / f"{comm.get_rank()}.json").write_text(json.dumps(content))


def test_two_processes_of_a_group_share_the_batches_of_one_process(tmp_path: Path) -> None:
    from transfer.parallel import launch

    coco = write_coco(tmp_path / "coco", train=11)
    launch(write_content, 2, "cpu", (coco, tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    whole = batch_content(coco, 0, 1)
    assert [a + b for a, b in zip(first, second)] == whole
    assert {len(batch) for batch in first} == {2}
    assert len({json.dumps(batch) for batch in whole}) == STEPS


@pytest.mark.parametrize("processes", [2, 4, 8, 16])
def test_parts_of_all_processes_make_up_the_batch(processes: int) -> None:
    from types import SimpleNamespace

    from transfer.batches import _Plan

    cfg: Any = SimpleNamespace(
        SEED=3,
        SOLVER=SimpleNamespace(IMS_PER_BATCH=16),
        DATALOADER=SimpleNamespace(ASPECT_RATIO_GROUPING=True, SAMPLER_TRAIN="TrainingSampler"),
    )
    images = [{"width": 64 + k % 3, "height": 65} for k in range(50)]

    def draws(rank: int, count: int) -> list[list[tuple[int, int]]]:
        return list(islice(_Plan(cfg, images, 5, rank, count), 20))

    parts = [draws(rank, processes) for rank in range(processes)]
    joined = [[draw for part in parts for draw in part[k]] for k in range(20)]
    assert joined == draws(0, 1)


def test_an_image_is_seen_equally_often_over_a_schedule() -> None:
    ratios = [0.75 if k % 4 == 0 else 1.33 for k in range(800)]
    batches = islice(sample_batches(ratios, 16, seed=0, group=True), 600)  # 12 epochs, as COCO's 1x schedule
    seen = Counter(index for batch in batches for index in batch)
    assert len(seen) == 800
    assert set(seen.values()) <= {11, 12, 13}


def test_groups_of_a_gpu_have_one_orientation_and_batches_both() -> None:
    ratios = [0.75 if k % 3 == 0 else 1.33 for k in range(300)]
    batches = list(islice(sample_batches(ratios, 16, seed=0, group=True), 18))
    for batch in batches:
        for first in range(0, 16, GPU_IMAGES):
            assert len({ratios[index] for index in batch[first : first + GPU_IMAGES]}) == 1
    assert sum(len({ratios[index] for index in batch}) == 2 for batch in batches) > 12


@pytest.mark.parametrize("group", [True, False])
def test_every_image_comes_once_per_epoch(group: bool) -> None:
    ratios = [0.5] * 8 + [2.0] * 8
    batches = list(islice(sample_batches(ratios, 2, seed=0, group=group), 8))
    assert sorted(index for batch in batches for index in batch) == list(range(16))
    mixed = [len({ratios[index] for index in batch}) > 1 for batch in batches]
    assert any(mixed) != group
    assert batches != list(islice(sample_batches(ratios, 2, seed=1, group=group), 8))


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_images_of_one_orientation_come_in_the_random_order(batch: int) -> None:
    batches = islice(sample_batches([1.0] * 10, batch, seed=7, group=True), 9)
    assert [index for one in batches for index in one] == list(islice(random_order(10, 7), 9 * batch))


def test_random_order_is_detectron2s_in_one_process() -> None:
    from detectron2.data.samplers import TrainingSampler

    assert list(islice(random_order(37, 5), 100)) == list(islice(TrainingSampler(37, seed=5), 100))


def write_metrics(folders: dict[str, Path], out: Path) -> None:
    from detectron2.utils import comm

    assert comm.get_world_size() == 2
    metrics = {protocol: oracle_metrics(folder, protocol) for protocol, folder in folders.items()}
    (out / f"metrics-{comm.get_rank()}.json").write_text(json.dumps(metrics))


def oracle_metrics(folder: Path, protocol: str) -> Any:
    evaluation, _ = evaluate_oracle_in_group(folder, protocol, blur=1.5, lost=0.2)
    return None if evaluation is None else [evaluation.metrics, len(evaluation.detections)]


def test_two_processes_of_a_group_evaluate_as_one_process(tmp_path: Path) -> None:
    from transfer.parallel import launch

    folders = {"c4-1x": write_coco(tmp_path / "coco", val=7), "c4-24k": write_voc(tmp_path / "voc")}
    launch(write_metrics, 2, "cpu", (folders, tmp_path))
    first, second = (json.loads((tmp_path / f"metrics-{rank}.json").read_text()) for rank in range(2))
    expected = {protocol: oracle_metrics(folder, protocol) for protocol, folder in folders.items()}
    assert first == json.loads(json.dumps(expected))
    assert 10 < first["c4-1x"][0]["box_AP"] < 90
    assert second == {"c4-1x": None, "c4-24k": None}
