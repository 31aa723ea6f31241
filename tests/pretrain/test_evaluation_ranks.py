"""Evaluations on two processes, by torchrun, give what one process gives."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain import resume
from pretrain.data.loaders.order import ShuffledPart
from pretrain.evaluate import ranks
from pretrain.evaluate.linear import load_probe
from tests.conftest import REPOSITORY
from tests.support.evaluation_sets import encoder, image_folder, shifted_folder
from tests.support.evaluations_by_rank import EVALUATIONS
from whitebench.errors import UserError
from whitebench.records import Record, read_metrics, read_record

SCRIPT = ["-m", "tests.support.evaluations_by_rank"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*arguments: str, runs: Path, data: Path) -> None:
    places = {"WHITEBENCH_RUNS": str(runs), "WHITEBENCH_DATA": str(data), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env={**os.environ, **places}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of the same evaluations, on one and on two processes."""
    root = tmp_path_factory.mktemp("ranks")
    classes = ("apple", "banana", "cherry")
    image_folder(root / "data" / "shapes", classes, train=8, val=5)
    shifted_folder(root / "data" / "pictures", classes, count=3)
    ckpt = str(encoder(root / "encoder.safetensors"))
    run(*SCRIPT, ckpt, runs=root / "1", data=root / "data")
    run(*TORCHRUN, *SCRIPT, ckpt, runs=root / "2", data=root / "data")
    return {1: root / "1", 2: root / "2"}


def folder_of(runs: Path, stage: str, protocol: str) -> tuple[Path, Record]:
    records = {path: read_record(path) for path in (runs / stage).iterdir()}
    return next((path, record) for path, record in records.items() if record and record.cell["protocol"] == protocol)


def tensors(state: object) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list):
        for value in state.values() if isinstance(state, dict) else state:
            yield from tensors(value)


@pytest.mark.parametrize(("stage", "protocol"), EVALUATIONS)
def test_two_processes_give_the_result_of_one(runs: dict[int, Path], stage: str, protocol: str) -> None:
    (alone, one), (joint, two) = (folder_of(runs[n], stage, protocol) for n in (1, 2))
    assert (one.status, two.status) == ("done", "done")
    assert "world_size" not in one.config
    linked = {"probe_run"}  # the run of the probe has its own number of processes
    assert {k: v for k, v in two.config.items() if k not in linked} == {
        **{k: v for k, v in one.config.items() if k not in linked},
        "world_size": 2,
    }
    assert set(two.metrics) == set(one.metrics)
    for name in ("top1", "top5", "shot1_draws", "held_out", "held_out_top1", "labelled"):
        assert two.metrics.get(name) == one.metrics.get(name), name
    assert two.metrics.get("mAP") == pytest.approx(one.metrics.get("mAP"))
    losses = [[line["loss"] for line in read_metrics(folder)] for folder in (alone, joint)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    loaded = [resume.load(folder) or {} for folder in (alone, joint)]
    states = [list(tensors(state)) for state in loaded]
    assert len(states[0]) == len(states[1])
    assert bool(states[0]) == (stage in ("semi", "finetune") or protocol == "short-crops")
    # In float64, weights and momentum (the sum of gradients) differ by the order of sums alone. In float32 batch norms
    # of few images enlarge rounding errors of gradients; the weights still agree.
    share = 1e-8 if stage == "finetune" else 1e-3
    compared = states if stage == "finetune" else [list(tensors(whole.get("network", whole))) for whole in loaded]
    for a, b in zip(*compared, strict=True):
        assert (a - b).double().norm() <= share * (a.double().norm() + 1)
    probes = [folder / "probe.safetensors" for folder in (alone, joint)]
    if probes[0].exists():
        for a, b in zip(load_probe(alone), load_probe(joint), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_shares_cover_all_rows_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: 3)
    rows: list[int] = []
    for number in range(3):
        monkeypatch.setattr(ranks, "rank", lambda number=number: number)
        rows += list(range(count))[ranks.own_share(count)]
    assert rows == list(range(count))


@pytest.mark.parametrize(("count", "batch"), [(43, 20), (10, 4), (7, 3), (5, 8)])
def test_parts_of_a_joint_batch_are_those_of_one_process(count: int, batch: int) -> None:
    index = np.arange(count) * 2
    whole = ShuffledPart(0, index, batch)
    parts = [ShuffledPart(0, index, batch, number, 3) for number in range(3)]
    assert {part.batches_per_epoch for part in parts} == {whole.batches_per_epoch}
    for number, joint in enumerate(whole.batches(1)):
        own = [part.batches(1)[number] for part in parts if number < len(part.batches(1))]
        assert np.concatenate(own).tolist() == joint.tolist()


def test_another_number_of_processes_than_started_is_refused() -> None:
    with pytest.raises(UserError, match="world_size=2, but 1 process"):
        ranks.started_world(2, "cpu")
