"""`coco_det.py` ends with an AP from the real Detectron2, the same one for the same seed, whatever interrupts it."""

import ast
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from pretrain.checkpoint import write_backbone
from tests.support.coco_folder import edit, write_coco
from transfer import coco_det
from transfer.coco_set import read_coco
from transfer.detection_set import annotation_hashes, find_folder
from transfer.records import Options, convert_id, detect_config, detect_id
from transfer.stages import convert_stage, detect_stage
from whitebench.errors import Interrupted, UserError
from whitebench.locks import Lock
from whitebench.records import Record, read_metrics, read_record, stage_folder

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared"
PARENT = "intl-s0-0123456789ab"
METADATA = {
    "arch": "resnet18",
    "stem": "imagenet",
    "dataset": "sample",
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
    "method": "intl",
    "recipe": "sample/intl",
    "id": PARENT,
    "seed": 0,
}
METRICS = {f"{kind}_{name}" for kind in ("box", "mask") for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("ckpt") / "backbone.safetensors"
    write_backbone(path, get_model("resnet18").state_dict(), METADATA)
    return path


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("data") / "tiny", coded=True)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WHITEBENCH_DATA", str(tmp_path / "data"))
    return tmp_path / "runs"


@pytest.fixture
def converted(ckpt: Path, runs: Path) -> Path:
    return stage_folder("convert", convert_stage(ckpt, say=lambda _: None).id)


def tiny(coco: Path, **changes: Any) -> Options:
    return replace(Options(protocol="sample", coco=coco, iterations=4, image_size=64, batch=2, device="cpu"), **changes)


def detect(converted: Path, options: Options) -> Record:
    return detect_stage(converted, options, say=lambda _: None)


def weights(record: Record) -> dict[str, torch.Tensor]:
    path = stage_folder("detect", record.id) / record.artifacts["model"]["path"]
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return state


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_record_holds_ap_proof_deviations_and_cost(converted: Path, coco: Path) -> None:
    record = detect_stage(converted, tiny(coco), cell={"sweep": "s"}, say=lambda _: None)
    assert record == read_record(stage_folder("detect", record.id))
    assert record.status == "done"
    assert record.metrics.keys() >= METRICS
    values = [record.metrics[name] for name in METRICS]
    assert all(value is None or 0 <= value <= 100 for value in values)
    assert record.metrics["box_AP"] is not None
    assert record.metrics["box_APl"] is None  # there are no large objects
    assert record.metrics["tensors"] == record.metrics["tensors_expected"] == 100
    assert any(line.startswith("SOLVER.MAX_ITER: 4, published") for line in record.metrics["deviations"])
    assert record.parents == [PARENT, convert_id(PARENT)]
    assert record.config["parent"] == PARENT
    expected = {
        "sweep": "s",
        "recipe": "sample/intl",
        "method": "intl",
        "seed": 0,
        "protocol": "sample",
        "dataset": "tiny",
    }
    assert expected.items() <= record.cell.items()
    assert record.cost["wall_s"] > 0
    assert read_metrics(stage_folder("detect", record.id))[-1]["step"] == 4


def test_same_seed_gives_the_same_model_and_ap_and_another_seed_does_not(
    converted: Path, coco: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, other = detect(converted, tiny(coco)), detect(converted, tiny(coco, seed=1))
    weights_of = {"first": weights(first), "other": weights(other)}
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "again"))
    again = detect(converted, tiny(coco, workers=1))
    assert again.id == first.id
    assert {name: again.metrics[name] for name in METRICS} == {name: first.metrics[name] for name in METRICS}
    assert equal(weights(again), weights_of["first"])
    assert not equal(weights_of["other"], weights_of["first"])


@pytest.mark.parametrize("at", [1, 3])
def test_interrupted_run_goes_on_and_ends_with_the_same_model(
    converted: Path, coco: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at: int
) -> None:
    undisturbed = weights(detect(converted, tiny(coco)))
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "again"))
    from transfer.trainer import FineTuning

    step = FineTuning._step

    def interrupted(self: FineTuning, batch: list[Any], iteration: int) -> dict[str, float]:
        if iteration == at:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, iteration)

    with monkeypatch.context() as patched:
        patched.setattr(FineTuning, "_step", interrupted)
        with pytest.raises(Interrupted, match=f"iteration {at + 1}"):
            detect(converted, tiny(coco))
    folder = stage_folder("detect", detect_id(PARENT, tiny(coco)))
    before = read_record(folder)
    assert before is not None
    assert before.status == "interrupted"
    resumed = detect(converted, tiny(coco))
    assert resumed.cost["restarts"] == 1
    assert equal(weights(resumed), undisturbed)


KILL_ITSELF = """
import os, signal, sys
from pathlib import Path
from pretrain.progress import StopRequest
from transfer.records import Options
from transfer.stages import detect_stage
from transfer.trainer import FineTuning

step = FineTuning._step

def killed(self, batch, iteration):
    if iteration == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, iteration)

FineTuning._step = killed
StopRequest.checkpoint_due = lambda self, minutes: True
options = Options(protocol="sample", coco=sys.argv[2], iterations=4, image_size=64, batch=2, device="cpu")
detect_stage(Path(sys.argv[1]), options)
"""


def test_killed_run_goes_on_and_ends_with_the_same_model_and_ap(
    command: Callable[..., subprocess.CompletedProcess[str]],
    converted: Path,
    coco: Path,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    done = command("-c", KILL_ITSELF, str(converted), str(coco), PYTHONPATH=str(REPOSITORY), WHITEBENCH_RUNS=str(runs))
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = read_record(stage_folder("detect", detect_id(PARENT, tiny(coco))))
    assert before is not None
    assert before.status == "running"
    said: list[str] = []
    resumed = detect_stage(converted, tiny(coco), say=said.append)
    assert "continuing after iteration 3" in said
    after = weights(resumed)
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "again"))
    undisturbed = detect(converted, tiny(coco))
    assert equal(after, weights(undisturbed))
    assert {name: resumed.metrics[name] for name in METRICS} == {name: undisturbed.metrics[name] for name in METRICS}


@pytest.mark.parametrize(
    ("processes", "device", "norm"),
    [(1, "cpu", "BN"), (1, "cuda", "BN"), (2, "cpu", "naiveSyncBN"), (8, "cuda", "SyncBN")],
)
def test_norms_are_synchronised_where_there_are_several_processes(processes: int, device: str, norm: str) -> None:
    from transfer.convert import Converted
    from transfer.protocol import build_cfg, load_protocol, resolve

    protocol = load_protocol("c4-1x")
    content = Converted({}, {"arch": "resnet50", "mean": [0.5] * 3, "std": [0.2] * 3})
    cfg = build_cfg(protocol, resolve(protocol), content, device=device, processes=processes)
    assert norm == cfg.MODEL.RESNETS.NORM


def test_batch_that_cannot_be_shared_is_refused(converted: Path, coco: Path) -> None:
    with pytest.raises(UserError, match=r"--gpus 3: a batch of 2 images is not divisible"):
        detect(converted, tiny(coco, processes=3))
    with pytest.raises(UserError, match="processes: at least 1"):
        detect(converted, tiny(coco, processes=0))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_processes_end_with_ap_and_go_on_where_they_were_stopped(ckpt: Path, coco: Path, tmp_path: Path) -> None:
    arguments = ["--ckpt", str(ckpt), "--coco", str(coco), "--out", str(tmp_path), "--image-size", "64", "--batch", "2"]
    arguments += ["--device", "cpu", "--gpus", "2", "--iterations", "60"]
    whole = [sys.executable, "transfer/coco_det.py", *arguments]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        whole, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("iteration"):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    (path,) = tmp_path.glob("detect/*/run.json")
    assert json.loads(path.read_text())["status"] == "interrupted"
    done = subprocess.run(whole, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "continuing after iteration" in done.stdout
    record = json.loads(path.read_text())
    assert record["status"] == "done"
    assert record["config"]["world_size"] == 2
    assert 0 <= record["metrics"]["box_AP"] <= 100


def test_frozen_backbone_ends_as_it_was_pretrained(converted: Path, coco: Path) -> None:
    """Weights and statistics, bit by bit; what is new is trained."""
    from transfer.convert import read_d2

    trained = weights(detect(converted, tiny(coco, protocol="sample-frozen")))
    pretrained = read_d2(converted / "d2.pkl").tensors
    assert len(pretrained) == 100
    for name, array in pretrained.items():
        assert torch.equal(trained[f"backbone.bottom_up.{name}"], torch.from_numpy(array)), name
    assert float(trained["backbone.fpn_output2.norm.bias"].abs().max()) > 0  # starts at zero


@pytest.mark.parametrize("name", ["c4-1x-frozen", "fpn-1x-frozen", "r18-fpn-1x-frozen"])
def test_no_gradient_and_no_statistic_reaches_a_frozen_resnet(name: str) -> None:
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances, PolygonMasks
    from detectron2.utils.events import EventStorage

    from transfer.convert import Converted
    from transfer.protocol import build_cfg, load_protocol, resolve

    protocol = load_protocol(name)
    content = Converted({}, {**METADATA, "arch": protocol.backbones[0], "parent": "x"})
    model = build_model(build_cfg(protocol, resolve(protocol, image_size=64), content, classes=2)).train()
    parts = [model.backbone, model.roi_heads.res5] if name.startswith("c4") else [model.backbone.bottom_up]
    before = [{key: tensor.clone() for key, tensor in part.state_dict().items()} for part in parts]
    truth = Instances((64, 64))
    truth.gt_boxes, truth.gt_classes = Boxes(torch.tensor([[4.0, 4.0, 40.0, 40.0]])), torch.tensor([1])
    truth.gt_masks = PolygonMasks([[np.array([4.0, 4, 40, 4, 40, 40])]])
    with EventStorage():
        losses = model([{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), "instances": truth}])
    sum(losses.values()).backward()
    for part, state in zip(parts, before):
        new = {key for key in state if name.startswith("c4") and key.startswith("norm.")}  # trained, after res5
        assert all(torch.equal(part.state_dict()[key], state[key]) for key in state.keys() - new)
        named = dict(part.named_parameters())
        assert all(named[key].grad is None for key in named.keys() - new)
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_finished_run_is_not_repeated(converted: Path, coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = detect(converted, tiny(coco, iterations=1))
    monkeypatch.setattr("transfer.detect.detect", lambda *_: pytest.fail("was run again"))
    assert detect(converted, tiny(coco, iterations=1)) == done


def test_model_that_finds_nothing_has_ap_zero(converted: Path, coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transfer.trainer import FineTuning

    def forget(self: FineTuning, run: Any) -> None:
        self.model.roi_heads.box_predictor.cls_score.bias.data[-1] = 1e4  # background, always
        self.trained = True
        self._save(run, self.cfg.SOLVER.MAX_ITER)

    monkeypatch.setattr(FineTuning, "fit", forget)
    metrics = detect(converted, tiny(coco)).metrics
    assert metrics["box_AP"] == metrics["mask_AP50"] == 0.0
    assert metrics["box_APl"] is None


def test_id_follows_from_plain_values_and_from_nothing_else(coco: Path, tmp_path: Path) -> None:
    options = tiny(coco)
    assert detect_id(PARENT, options) == detect_id(PARENT, replace(options, workers=3))
    changes = [{"seed": 1}, {"iterations": 5}, {"batch": 4}, {"lr": 0.5}, {"threads": 2}, {"image_size": 80}]
    ids = {detect_id(PARENT, replace(options, **change)) for change in changes}
    ids |= {
        detect_id(PARENT, options),
        detect_id(PARENT, options, encoder="momentum"),
        detect_id("other-s0-1", options),
    }
    ids.add(detect_id(PARENT, replace(options, coco=write_coco(tmp_path / "other", train=5))))
    assert len(ids) == len(changes) + 4
    assert detect_config(PARENT, options)["data"] == annotation_hashes(coco)


def test_learning_rate_follows_the_batch(coco: Path) -> None:
    rates = [detect_config(PARENT, tiny(coco, batch=batch))["lr"] for batch in (2, 4)]
    assert rates[1] == pytest.approx(2 * rates[0])


def polygon_set(folder: Path) -> Iterator[tuple[Path, str]]:
    coco = write_coco(folder)
    yield coco, "polygon"
    yield write_coco(folder.with_name("coded"), coded=True), "bitmask"


def test_form_of_the_masks_is_recognised(tmp_path: Path) -> None:
    for folder, expected in polygon_set(tmp_path / "polygons"):
        found = read_coco(folder)
        assert found.mask_format == expected
        assert found.categories == ("red", "blue")
        assert (len(found.train.content.names), found.val.content.objects) == (6, 6)


TRAIN = "annotations/instances_train2017.json"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no annotations": (lambda f: (f / TRAIN).unlink(), r"annotations/instances_train2017\.json is missing"),
    "truncated": (lambda f: (f / TRAIN).write_text((f / TRAIN).read_text()[:500]), "not JSON, or truncated"),
    "a list": (lambda f: (f / TRAIN).write_text("[]"), "no list 'images'"),
    "no images key": (lambda f: edit(f / TRAIN, lambda raw: raw.pop("images")), "no list 'images'"),
    "an image gone": (
        lambda f: (f / "train2017" / "000000000002.jpg").unlink(),
        r"train2017: 1 of 6 images are missing, e\.g\. 000000000002\.jpg",
    ),
    "no images folder": (lambda f: (f / "val2017").rename(f / "elsewhere"), r"val2017: 3 of 3 images are missing"),
    "no objects": (lambda f: edit(f / TRAIN, lambda raw: raw["annotations"].clear()), "holds no objects"),
    "unknown category": (
        lambda f: edit(f / TRAIN, lambda raw: raw["annotations"][0].update(category_id=99)),
        "1 annotations name an unknown category_id",
    ),
    "no box": (lambda f: edit(f / TRAIN, lambda raw: raw["annotations"][0].pop("bbox")), "has no 'bbox'"),
    "other categories": (
        lambda f: edit(f / TRAIN, lambda raw: raw["categories"].append({"id": 9, "name": "green"})),
        "categories of train2017 and val2017 are not the same",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_coco_folders_are_one_clear_line(tmp_path: Path, fault: str) -> None:
    folder = write_coco(tmp_path / "coco")
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        read_coco(folder)
    assert "\n" not in str(error.value)


def test_absent_folder_names_the_nearest_of_the_data(runs: Path, tmp_path: Path) -> None:
    write_coco(tmp_path / "data" / "coco-small")
    assert find_folder("coco-small") == tmp_path / "data" / "coco-small"
    with pytest.raises(UserError, match="did you mean 'coco-small'"):
        find_folder("coco-smal")
    with pytest.raises(UserError, match=r"python -m pretrain\.data sample"):
        find_folder("sample-det")


def test_image_that_does_not_decode_is_named(converted: Path, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", train=2)
    for name in ("000000000001.jpg", "000000000002.jpg"):
        (folder / "train2017" / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"train2017/00000000000\d\.jpg: does not decode"):
        detect(converted, tiny(folder))


def test_loss_that_explodes_stops_the_run_with_a_hint(converted: Path, coco: Path) -> None:
    with pytest.raises(UserError, match=r"not finite in iteration \d.*--lr"):
        detect(converted, tiny(coco, lr=1e12))


def test_command_prints_the_proof_and_ends_with_ap(
    command: Callable[..., subprocess.CompletedProcess[str]], ckpt: Path, coco: Path, tmp_path: Path
) -> None:
    arguments = ["transfer/coco_det.py", "--ckpt", str(ckpt.parent), "--coco", str(coco), "--out", str(tmp_path)]
    arguments += ["--iterations", "2", "--image-size", "64", "--batch", "1", "--device", "cpu"]
    done = command(*arguments, "--seeds", "0,1")
    assert done.returncode == 0, done.stderr
    assert "100 of 100 tensors" in done.stdout
    assert "deviates: SOLVER.MAX_ITER: 2" in done.stdout
    assert "box_AP: " in done.stdout
    assert len(list((tmp_path / "detect").iterdir())) == 2


def test_command_converts_only_on_request(
    command: Callable[..., subprocess.CompletedProcess[str]], ckpt: Path, tmp_path: Path
) -> None:
    done = command("transfer/coco_det.py", "--ckpt", str(ckpt), "--convert-only", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).name == "d2.pkl"
    assert Path(done.stdout.splitlines()[-1]).exists()
    assert not (tmp_path / "detect").exists()


def test_detector_waits_where_another_converts_the_same_checkpoint(ckpt: Path, converted: Path) -> None:
    other, said = Lock(converted / ".lock"), list[str]()
    other.acquire()

    def end_other(text: str) -> None:
        said.append(text)
        if "waiting for another process" in text:
            other.release()

    assert convert_stage(ckpt, say=end_other).id == converted.name
    assert sum("waiting for another process" in text for text in said) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt", "absent.pth"], "absent.pth: checkpoint not found"),
        (["--ckpt", "{ckpt}", "--protocol", "c4-1"], "did you mean 'c4-1x'"),
        (["--ckpt", "{ckpt}", "--protocol", "c4-1x", "--coco", "{coco}"], "not for resnet18"),
        (["--ckpt", "{ckpt}", "--coco", "nowhere"], "no COCO folder 'nowhere'"),
        (["--ckpt", "{ckpt}", "--coco", "{coco}", "--batch", "0"], "batch: must be positive"),
        (["--ckpt", "{ckpt}", "--threads", "0"], "--threads is at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_left(
    arguments: list[str], message: str, ckpt: Path, coco: Path, runs: Path
) -> None:
    given = [argument.format(ckpt=ckpt, coco=coco) for argument in arguments]
    with pytest.raises(UserError, match=message):
        coco_det.main(given)
    assert not (runs / "detect").exists()


def test_absent_detectron2_is_one_line_that_says_how_to_get_it(
    converted: Path, coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfer import detectron

    detectron.require_detectron2.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="make env"):
        detect(converted, tiny(coco, seed=9))
    monkeypatch.undo()
    detectron.require_detectron2.cache_clear()


def test_detectron2_is_imported_where_it_is_used_and_nowhere_else() -> None:
    """So that every other command works without it."""
    for path in REPOSITORY.glob("*/**/*.py"):
        room = path.relative_to(REPOSITORY).parts[0]
        if room in ("pretrain", "transfer", "slurm", "results"):
            tree = ast.parse(path.read_text())
            everywhere = {name for node in ast.walk(tree) for name in _imported(node)}
            at_top = {name for node in tree.body for name in _imported(node)}
            assert "detectron2" not in at_top, path
            assert room == "transfer" or "detectron2" not in everywhere, path


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [(node.module or "").partition(".")[0]] if isinstance(node, ast.ImportFrom) else []


def test_terminated_command_saves_its_place_and_says_so(ckpt: Path, coco: Path, tmp_path: Path) -> None:
    arguments = [
        sys.executable,
        "transfer/coco_det.py",
        "--ckpt",
        str(ckpt),
        "--coco",
        str(coco),
        "--out",
        str(tmp_path),
    ]
    arguments += ["--iterations", "100000", "--image-size", "64", "--batch", "1", "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        arguments, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("iteration"):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command continues" in errors
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("detect/*/run.json"))
    assert record["status"] == "interrupted"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_c4_protocol_scaled_down_ends_with_ap_on_real_photos(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    archive = SHARED / "data" / "coco128.tar"
    if not archive.exists():
        pytest.skip(f"{archive} is not here")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    torch.manual_seed(0)
    torch.save(get_model("resnet50").state_dict(), tmp_path / "r50.pth")
    arguments = ["--ckpt", str(tmp_path / "r50.pth"), "--protocol", "c4-1x", "--coco", str(tmp_path / "coco128")]
    scale = ["--iterations", "4", "--image-size", "160", "--batch", "1"]
    began = time.monotonic()
    done = command("transfer/coco_det.py", *arguments, *scale, "--out", str(tmp_path), timeout=3600)
    assert done.returncode == 0, done.stderr
    assert "265 of 265 tensors" in done.stdout
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("detect/*/run.json"))
    assert 0 <= record["metrics"]["box_AP"] <= 100
    assert record["cost"]["wall_s"] <= time.monotonic() - began
