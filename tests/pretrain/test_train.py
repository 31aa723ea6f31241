"""Pretraining through the user's command: its result, its resumption, its errors."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretrain import resume
from pretrain.checkpoint import read_backbone
from pretrain.method import method_names
from pretrain.recipe import load
from results.recipe_list import method_table, recipe_table
from tests.conftest import REPOSITORY
from whitebench.hashing import run_id
from whitebench.records import read_metrics, read_record

Command = Callable[..., subprocess.CompletedProcess[str]]

SMALL = ["data.dataset=tiny", "batch=64", "schedule.epochs=2", "monitor.knn_every=0", "machine.checkpoint_minutes=0"]
"""Two epochs of six steps, with a checkpoint after every step."""
METHODS = {
    "cwrgp": [],
    "intl": ["network.projector=[256,256]"],
    "intl-ema": ["network.projector=[256,256]", "method.momentum=0.99"],
    "simclr": [],
    "moco": ["method.queue=256"],
    "swav": ["method.queue=64", "method.queue_epoch=0", "method.frozen_iterations=6"],
    "pcl": ["method.clusters=[5,10]", "method.warmup_epochs=1"],
    "supervised": ["method.classes=3"],
    "dino": ["method.outputs=64", "network.projector=[64,32]"],
    "intl-vit": [
        *("network.backbone=vit_tiny_patch8", "network.pooling=mean", "network.drop_path=0.1"),
        *("network.projector=[64]", "optimizer.layer_decay=0.8", "data.views.0.size=16"),
    ],
    "mae": ["data.views.0.size=16"],
    "intl-compiled": ["network.projector=[256,256]", "method.momentum=0.99", "compile=true"],
}


def only_run(runs: Path) -> Path:
    (folder,) = (runs / "pretrain").iterdir()
    return folder


def start(runs: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pretrain", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "WHITEBENCH_RUNS": str(runs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(runs: Path, process: subprocess.Popen[str], at_least: int) -> None:
    """Until the checkpoint has been replaced so many times (it is named by its hashes)."""
    seen: set[str] = set()
    end = time.monotonic() + 240
    while len(seen) < at_least:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "no checkpoint in time"
        for hashes in runs.glob("pretrain/*/checkpoint.sha256"):
            seen.add(hashes.read_text().split()[0])
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of a method's small recipe, run once and to the end."""
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            runs = tmp_path_factory.mktemp(name)
            process = subprocess.run(
                [sys.executable, "-m", "pretrain", f"sample/{name.partition('-')[0]}", *SMALL, *METHODS[name]],
                cwd=REPOSITORY,
                env={**os.environ, "WHITEBENCH_RUNS": str(runs), "WHITEBENCH_DATA": str(tiny_root)},
                capture_output=True,
                text=True,
            )
            assert process.returncode == 0, process.stderr
            done[name] = only_run(runs)
        return done[name]

    return run


LONG = pytest.mark.long
KILLS = [
    pytest.param("cwrgp", signal.SIGKILL),
    pytest.param("intl-ema", signal.SIGTERM),
    pytest.param("intl-vit", signal.SIGKILL),
    *(pytest.param(name, signal.SIGKILL, marks=LONG) for name in METHODS if name not in ("cwrgp", "intl-vit")),
]


@pytest.mark.parametrize(("name", "how"), KILLS)
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    name: str, how: signal.Signals, places: Path, undisturbed: Callable[[str], Path]
) -> None:
    arguments = [f"sample/{name.partition('-')[0]}", *SMALL, *METHODS[name]]
    for replaced in (3, 2):  # in the first epoch, and again a little later
        process = start(places, *arguments)
        wait_for_checkpoint(places, process, replaced)
        process.send_signal(how)
        output = process.communicate()[0]
        assert process.returncode in ({-signal.SIGKILL} if how == signal.SIGKILL else {130}), output
        assert not (only_run(places) / "backbone.safetensors").exists()
    process = start(places, *arguments)
    assert process.wait() == 0, process.communicate()[0]

    resumed, whole = only_run(places), undisturbed(name)
    assert resumed.name == whole.name
    assert (resumed / "backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()
    timeless = [
        [{k: v for k, v in line.items() if k in ("step", "epoch", "loss", "lr")} for line in read_metrics(folder)]
        for folder in (resumed, whole)
    ]
    assert timeless[0] == timeless[1]
    record = read_record(resumed)
    assert record is not None
    assert record.status == "done"
    assert record.cost["restarts"] == 2


@pytest.mark.long
def test_a_compiled_backbone_trains_as_a_plain_one_and_is_another_run(undisturbed: Callable[[str], Path]) -> None:
    plain, compiled = undisturbed("intl-ema"), undisturbed("intl-compiled")
    assert plain.name != compiled.name
    losses = [[line["loss"] for line in read_metrics(folder) if "loss" in line] for folder in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for file in ("backbone.safetensors", "backbone-momentum.safetensors"):
        expected, tensors = (read_backbone(folder / file).tensors for folder in (plain, compiled))
        assert {name: tensor.shape for name, tensor in tensors.items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }
        assert (plain / file).read_bytes() != (compiled / file).read_bytes()  # nothing compiled would be equal


def test_a_run_leaves_a_record_that_repeats_it(undisturbed: Callable[[str], Path]) -> None:
    folder = undisturbed("simclr")
    record = read_record(folder)
    assert record is not None
    assert record.status == "done"
    assert record.cell["method"] == "simclr"
    assert record.command == f"python -m pretrain sample/simclr {' '.join(SMALL)} seed=0"
    assert record.metrics["loss"] < read_metrics(folder)[0]["loss"]
    assert record.hashes["method"]
    assert record.config["data_hash"] == record.data["manifest"]["content_hash"]
    assert record.data["reading"]["images_per_s"] > 0
    assert record.artifacts["backbone"]["path"] == "backbone.safetensors"


def test_the_encoder_that_the_source_evaluates_is_exported_and_the_other_one_lies_next_to_it(
    undisturbed: Callable[[str], Path],
) -> None:
    folder = undisturbed("dino")
    state = resume.load(folder)
    assert state is not None
    for name, file, prefix in (
        ("teacher", "backbone.safetensors", "teacher.network.backbone."),
        ("student", "backbone-student.safetensors", "encoder.backbone."),
    ):
        backbone = read_backbone(folder / file)
        assert backbone.metadata["encoder"] == name
        for key, tensor in backbone.tensors.items():
            assert tensor.equal(state["method"][f"{prefix}{key}"]), key
    assert read_backbone(folder).sha256 == read_backbone(folder / "backbone.safetensors").sha256
    record = read_record(folder)
    assert record is not None
    assert set(record.artifacts) == {"backbone", "backbone-student"}


def test_a_done_run_is_not_run_again(undisturbed: Callable[[str], Path], command: Command, tiny_root: Path) -> None:
    folder = undisturbed("simclr")
    before = (folder / "run.json").read_bytes()
    env = {"WHITEBENCH_RUNS": str(folder.parents[1]), "WHITEBENCH_DATA": str(tiny_root)}
    done = command("-m", "pretrain", "sample/simclr", *SMALL, **env)
    assert done.returncode == 0, done.stderr
    assert (folder / "run.json").read_bytes() == before


def test_another_seed_gives_another_backbone(
    undisturbed: Callable[[str], Path], places: Path, command: Command
) -> None:
    done = command("-m", "pretrain", "sample/simclr", *SMALL, "seed=1")
    assert done.returncode == 0, done.stderr
    ours, theirs = only_run(places), undisturbed("simclr")
    assert ours.name != theirs.name
    assert (ours / "backbone.safetensors").read_bytes() != (theirs / "backbone.safetensors").read_bytes()


def test_two_processes_do_not_run_the_same_cell(places: Path, command: Command) -> None:
    arguments = ["sample/simclr", *(key for key in SMALL if "epochs" not in key), "schedule.epochs=1000"]
    first = start(places, *arguments)
    wait_for_checkpoint(places, first, 1)
    second = command("-m", "pretrain", *arguments)
    assert second.returncode == 2
    assert "another process is running this" in second.stderr
    first.kill()
    first.communicate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample/simclrr"], "unknown recipe 'sample/simclrr'; did you mean 'sample/simclr'"),
        (["sample/simclr", "method.temprature=1"], "did you mean 'temperature'?"),
        (["sample/simclr", "data.dataset=nowhere"], "nowhere"),
        (["sample/supervised", "method.classes=7"], "method.classes=7, but the dataset has 10 classes"),
        (["sample/cwrgp", "method.window=48"], "windows of 48"),
        (["sample/simclr", "world_size=2"], "torchrun --nproc-per-node 2"),
        (["sample/simclr", "device=cuda"], "no CUDA device"),
        (["sample/simclr", "network.backbone=resnet19"], "did you mean 'resnet18'"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    arguments: list[str], message: str, places: Path, command: Command
) -> None:
    done = command("-m", "pretrain", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not places.exists()


def test_two_processes_train_as_one(places: Path, command: Command) -> None:
    """Batch norm and whitening over both ranks: the loss of one process with the joint batch.

    Up to rounding: in float64 the first gradients of this very setting agree to 1e-13, as those of small networks do in
    test_distributed.py, but in float32 a ResNet-18 at 32 pixels turns rounding errors into 1 % of its gradient.
    """
    import torch

    # Plain SGD: Adam's first steps would blow rounding errors of small gradients up to its full rate.
    sgd = ["optimizer.name=sgd", "optimizer.lr=0.01", "optimizer.weight_decay=0"]
    arguments = ["sample/intl", *SMALL, "schedule.epochs=1", "network.projector=[64,64]", *sgd]
    alone = command("-m", "pretrain", *arguments)
    assert alone.returncode == 0, alone.stderr
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pretrain"]
    together = command(*torchrun, *arguments, "world_size=2")
    assert together.returncode == 0, together.stderr
    records = [read_record(folder) for folder in (places / "pretrain").iterdir()]
    losses = [record.metrics["loss"] for record in records if record is not None]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert torch.isfinite(torch.tensor(losses)).all()


@LONG
def test_an_unfinished_run_goes_on_with_another_number_of_processes(places: Path, command: Command) -> None:
    """The same global batch: the loss of one process that was never stopped, up to rounding; the record says so."""
    sgd = ["optimizer.name=sgd", "optimizer.lr=0.01", "optimizer.weight_decay=0", "network.projector=[64,64]"]
    arguments = ["sample/intl", *SMALL, *sgd, "batch=128", "data.views.0.size=16", "monitor.spectra_every=0"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pretrain"]
    process = subprocess.Popen(
        [sys.executable, *torchrun, *arguments, "world_size=2"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WHITEBENCH_RUNS": str(places)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_checkpoint(places, process, 2)
    process.terminate()  # torchrun passes it on: rank 0 saves
    process.communicate()
    alone = command("-m", "pretrain", *arguments, timeout=600)
    assert "unfinished run of this recipe with world_size=2; to continue it here: world_size=2 machine.processes=1" in (
        alone.stderr
    )
    resumed = command("-m", "pretrain", *arguments, "world_size=2", "machine.processes=1", timeout=600)
    assert resumed.returncode == 0, resumed.stderr
    read = [read_record(folder) for folder in (places / "pretrain").iterdir()]
    records = {record.config["world_size"]: record for record in read if record is not None}
    assert records[2].status == "done"
    assert records[2].metrics["loss"] == pytest.approx(records[1].metrics["loss"], rel=1e-2)
    (start,) = records[2].data["processes"]
    assert start["processes"] == 1
    assert start["step"] >= 1
    assert records[2].metrics["deviations"] == [f"processes: 1 from step {start['step']}, planned 2"]


def test_the_random_bound_is_the_network_as_initialised(places: Path, command: Command) -> None:
    done = command("-m", "pretrain", "sample/random")
    assert done.returncode == 0, done.stderr
    record = read_record(only_run(places))
    assert record is not None
    assert record.status == "done"
    metadata = json.loads(_header(only_run(places) / "backbone.safetensors")["__metadata__"]["whitebench"])
    assert metadata["epochs"] == 0
    assert metadata["id"] == record.id


def test_the_record_of_a_recipe_of_ones_own_repeats_it_by_its_path(
    places: Path, command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "my own" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("extends: sample/random\n")
    done = command("-m", "pretrain", str(path), "data.colour.jitter_p=[0.5]", "evaluation.dataset=null")
    assert done.returncode == 0, done.stderr
    record = read_record(only_run(places))
    assert record is not None
    assert record.cell["recipe"] == "mine"
    again = command(*shlex.split(record.command)[1:])
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"{record.id}: done; ")
    assert only_run(places).name == record.id


def _header(path: Path) -> dict[str, dict[str, str]]:
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def test_show_prints_the_resolved_recipe(command: Command, places: Path) -> None:
    done = command("-m", "pretrain", "sample/intl", "--show", "seed=3")
    assert done.returncode == 0, done.stderr
    assert "seed: 3" in done.stdout
    assert f"# run id: {load('sample/intl', ['seed=3']).label}-" in done.stdout
    assert not places.exists()


def test_list_shows_every_recipe(command: Command) -> None:
    done = command("-m", "pretrain", "--list")
    assert done.returncode == 0, done.stderr
    assert "imagenet1k/intl-100ep" in done.stdout
    assert "linear 73.5" in done.stdout


def test_list_shows_what_was_measured_with_a_recipes_own_settings(tmp_path: Path) -> None:
    def put(stage: str, label: str, config: dict[str, Any], **metrics: float) -> str:
        record = {"schema": 1, "id": run_id(label, config), "stage": stage, "config": config, "status": "done"}
        record |= {"metrics": metrics, "cell": {}, "hashes": {}, "parents": [], "cost": {}, "environment": {}}
        folder = tmp_path / stage / str(record["id"])
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({**record, "started": "", "ended": ""}))
        return str(record["id"])

    protocol = {"name": load("sample/intl").evaluation.linear}
    for overrides, tops in (([], (60, 62)), (["seed=1"], (71,)), (["data.views.0.scale=[0.1,1.0]"], (99,))):
        recipe = load("sample/intl", overrides)
        parent = put("pretrain", recipe.label, {**recipe.identity(), "device": "cpu", "data_hash": "1" * 64})
        for seed, top1 in enumerate(tops):
            put("linear", recipe.label, {"parent": parent, "protocol": protocol, "seed": seed}, top1=float(top1))
    (line,) = [line for line in recipe_table([tmp_path]).splitlines() if line.startswith("sample/intl ")]
    assert line.endswith("linear 66.0 (n=2)")


def test_the_methods_are_listed_with_their_papers() -> None:
    lines = {line.split()[0]: line for line in method_table().splitlines()[1:]}
    assert set(lines) == set(method_names())
    without = {name for name, line in lines.items() if not re.search(r"arXiv \d|, [A-Z][\w-]+ \d{4}", line)}
    assert without == {"random", "supervised"}
    assert "An Investigation into Whitening Loss for Self-supervised Learning, NeurIPS 2022" in lines["cwrgp"]
