"""A converted backbone is the same network in Detectron2, tensor by tensor and map by map."""

import argparse
import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from pretrain.checkpoint import Backbone, read_backbone
from pretrain.resnets import build_resnet
from tests.support.formats import resnet
from transfer.convert import Converted, convert, converted, detectron2_name, load_proven, prove, read_d2, write_d2
from transfer.detectron import detectron2_resnet
from transfer.feature_maps import compare_maps, photos, reference_name
from transfer.records import convert_config, convert_id
from transfer.stages import convert_stage
from whitebench.errors import UserError


@pytest.fixture(scope="module", params=["resnet18", "resnet18-32", "resnet18-16", "resnet50"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = tmp_path_factory.mktemp("ckpt") / "model.pth"
    torch.save(resnet(request.param), path)
    return read_backbone(path)


EXPECTED_NAMES = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_var": "stem.conv1.norm.running_var",
    "layer1.0.conv1.weight": "res2.0.conv1.weight",
    "layer2.1.bn2.bias": "res3.1.conv2.norm.bias",
    "layer3.0.downsample.0.weight": "res4.0.shortcut.weight",
    "layer4.0.downsample.1.running_mean": "res5.0.shortcut.norm.running_mean",
    "layer4.2.bn3.weight": "res5.2.conv3.norm.weight",
}


@pytest.mark.parametrize("name", EXPECTED_NAMES)
def test_names_are_detectron2s(name: str) -> None:
    assert detectron2_name(name) == EXPECTED_NAMES[name]


def test_every_tensor_arrives_in_detectron2s_own_network(backbone: Backbone) -> None:
    content = converted(backbone)
    proof = load_proven(detectron2_resnet(backbone.arch), content)
    assert proof.matched == proof.expected == (265 if backbone.arch == "resnet50" else 100)


def test_feature_maps_are_those_of_the_original(backbone: Backbone) -> None:
    original, content = build_resnet(backbone.arch).eval(), converted(backbone)
    original.load_state_dict(backbone.tensors, strict=False)
    theirs = detectron2_resnet(backbone.arch).eval()
    load_proven(theirs, content)
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = theirs(x)
        x = original.maxpool(original.relu(original.bn1(original.conv1(x))))
        for stage in (2, 3, 4, 5):
            x = getattr(original, f"layer{stage - 1}")(x)
            assert (found[f"res{stage}"] - x).abs().max() <= 1e-5 * x.abs().max()


def test_maps_of_photos_agree_and_the_comparison_can_fail(backbone: Backbone) -> None:
    content = converted(backbone)
    network = detectron2_resnet(backbone.arch)
    load_proven(network, content)
    found = compare_maps(backbone, network, content)
    assert list(found) == ["res2", "res3", "res4", "res5"]
    assert all(value is not None and value <= 1e-5 for value in found.values())
    block = network.res3[0]  # every tensor stays in its place, as with Detectron2's STRIDE_IN_1X1
    block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    prove(network, content)
    with pytest.raises(UserError, match=r"res3 of Detectron2's network differs from the original by"):
        compare_maps(backbone, network, content)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"arch": "resnetaa50"}, "states arch: 'resnetaa50'"),
        (
            {"args": argparse.Namespace(model="timm/resnetblur50.bt_in1k")},
            "states args.model: 'timm/resnetblur50.bt_in1k'",
        ),
        (
            {"hyper_parameters": {"backbone": {"name": "resnet50_dilated8"}}},
            "states hyper_parameters.backbone.name: 'resnet50_dilated8'",
        ),
        ({"meta": {"config": "backbone=dict(type='ResNet', depth=50, style='caffe')"}}, "style='caffe'"),
    ],
)
def test_network_of_another_name_is_refused_though_its_tensors_fit(
    backbone: Backbone, tmp_path: Path, beside: dict[str, Any], message: str
) -> None:
    torch.save({"state_dict": backbone.tensors, **beside}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=message):
        convert_stage(tmp_path / "model.pth", unsafe_pickle=True, out=tmp_path, say=lambda _: None)


def test_named_timm_network_is_the_reference_and_can_fail(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    tensors = timm.create_model("resnetaa50", pretrained=False).state_dict()
    torch.save({"arch": "resnet50", "state_dict": tensors}, tmp_path / "plain.pth")
    backbone = read_backbone(tmp_path / "plain.pth")
    network, content = detectron2_resnet("resnet50"), converted(backbone)
    load_proven(network, content)
    assert reference_name(backbone) == "timm's resnet50"
    compare_maps(backbone, network, content)
    other = dataclasses.replace(backbone, stated_arch="resnetaa50")
    assert reference_name(other) == "timm's resnetaa50"
    with pytest.raises(UserError, match=r"res2 of Detectron2's network differs"):
        compare_maps(other, network, content)


def test_maps_without_content_prove_nothing_and_are_said_to(backbone: Backbone, tmp_path: Path) -> None:
    dead = {name: torch.zeros_like(t) if name.startswith("bn1") else t for name, t in backbone.tensors.items()}
    dead = {name: torch.zeros_like(t) if name.endswith(("bias", "running_mean")) else t for name, t in dead.items()}
    torch.save(dead, tmp_path / "dead.pth")
    said: list[str] = []
    record = convert_stage(tmp_path / "dead.pth", out=tmp_path, say=said.append)
    assert record.metrics["maps"] == dict.fromkeys(["res2", "res3", "res4", "res5"])
    assert "res5 all zero" in said[-1]


def test_weights_whose_maps_overflow_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    wild = {name: t * 1e30 if name.endswith("conv1.weight") else t for name, t in backbone.tensors.items()}
    torch.save(wild, tmp_path / "wild.pth")
    with pytest.raises(UserError, match="maps of photos are not finite"):
        convert_stage(tmp_path / "wild.pth", out=tmp_path, say=lambda _: None)


def test_photos_are_photos_normalised_by_the_checkpoints_own_mean() -> None:
    plain, seen = photos([0.0] * 3, [1.0] * 3), photos([120.0, 110.0, 100.0], [60.0, 50.0, 40.0])
    assert plain.shape == seen.shape == (2, 3, 224, 320)
    assert 30 < plain.std() < 100
    assert torch.allclose(seen[:, 2], (plain[:, 2] - 100) / 40)


def detectron2s_own_names(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """As Detectron2's tools/convert-torchvision-to-d2.py renames torchvision's state dict; its wheel lacks it."""
    converted_state = {}
    for key, tensor in state.items():
        name = key if "layer" in key else f"stem.{key}"
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}", f"res{stage + 1}")
        for norm in (1, 2, 3):
            name = name.replace(f"bn{norm}", f"conv{norm}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        converted_state[name] = tensor.detach().numpy()
    return converted_state


def test_tensors_are_those_of_detectron2s_own_converter(tmp_path: Path, backbone: Backbone) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    theirs = detectron2s_own_names(backbone.tensors)
    ours = convert(backbone)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    whole = {"model": theirs, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "theirs.pkl").write_bytes(pickle.dumps(whole))
    network = detectron2_resnet(backbone.arch)
    DetectionCheckpointer(network).load(str(tmp_path / "theirs.pkl"))
    prove(network, converted(backbone))


@pytest.mark.parametrize("change", ["missing", "left over", "changed"])
def test_proof_fails_where_a_tensor_is_missing_left_over_or_changed(backbone: Backbone, change: str) -> None:
    model = detectron2_resnet(backbone.arch)
    arrived = {k: t.numpy().copy() for k, t in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    prove(model, Converted(arrived, {"arch": backbone.arch}))
    if change == "missing":
        del arrived["res3.0.conv1.weight"]
    elif change == "left over":
        arrived["res3.9.conv1.weight"] = np.zeros(1)
    else:
        arrived["res3.0.conv1.weight"][0, 0, 0, 0] += 1e-6
    with pytest.raises(UserError, match=r"res3\..\.conv1\.weight"):
        prove(model, Converted(arrived, {"arch": backbone.arch}))


@pytest.mark.parametrize("stem", ["cifar", "cifar-pad2", "small"])
def test_small_stems_are_refused_with_the_reason(stem: str) -> None:
    with pytest.raises(UserError, match="7x7 stem"):
        convert(Backbone("resnet18", stem, {}, {}, "", ""))


def test_mean_and_std_follow_the_checkpoint_and_are_said_to_be_assumed_otherwise(backbone: Backbone) -> None:
    assert converted(backbone).pixel_mean == pytest.approx([123.675, 116.28, 103.53])
    assert "ImageNet's" in converted(backbone).metadata["origin"]
    own = Backbone(backbone.arch, "imagenet", backbone.tensors, {"mean": [0.5] * 3, "std": [0.2] * 3}, "", "")
    assert converted(own).pixel_mean == [127.5] * 3
    assert converted(own).pixel_std == [51.0] * 3


def test_values_that_are_not_finite_are_not_proven(backbone: Backbone) -> None:
    content = converted(backbone)
    spoiled = content.tensors["stem.conv1.weight"].copy()
    spoiled[0, 0, 0, 0] = np.nan
    content.tensors["stem.conv1.weight"] = spoiled
    with pytest.raises(UserError, match=r"stem\.conv1\.weight has values that are not finite"):
        load_proven(detectron2_resnet(backbone.arch), content)


def test_written_file_is_loaded_alike_by_detectron2s_own_reader(backbone: Backbone, tmp_path: Path) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    content = converted(backbone)
    write_d2(tmp_path / "d2.pkl", content)
    network = detectron2_resnet(backbone.arch)
    DetectionCheckpointer(network).load(str(tmp_path / "d2.pkl"))
    prove(network, content)


def test_conversion_reads_no_file_that_it_writes_and_takes_any_path(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(backbone.tensors, tmp_path / "model.pth")
    reads: list[Path] = []
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        reads.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    record = convert_stage(tmp_path / "model.pth", out=tmp_path / "what?", say=lambda _: None)
    file = tmp_path / "what?" / "convert" / record.id / "d2.pkl"
    assert file not in reads
    assert read_d2(file).tensors.keys() == converted(backbone).tensors.keys()
    assert reads.count(file) == 1


def test_file_comes_back_as_written(backbone: Backbone, tmp_path: Path) -> None:
    content = converted(backbone)
    write_d2(tmp_path / "d2.pkl", content)
    found = read_d2(tmp_path / "d2.pkl")
    assert found.metadata == content.metadata
    assert found.tensors.keys() == content.tensors.keys()
    assert all(np.array_equal(found.tensors[name], content.tensors[name]) for name in content.tensors)


WRITE_IN_ANOTHER_PROCESS = """
import hashlib, pathlib, sys
from pretrain.checkpoint import read_backbone
from transfer.convert import converted, write_d2
write_d2(pathlib.Path(sys.argv[2]), converted(read_backbone(pathlib.Path(sys.argv[1]))))
print(hashlib.sha256(pathlib.Path(sys.argv[2]).read_bytes()).hexdigest())
"""


def test_file_has_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(get_model("resnet18").state_dict(), tmp_path / "model.pth")
    write_d2(tmp_path / "here.pkl", converted(read_backbone(tmp_path / "model.pth")))
    here = hashlib.sha256((tmp_path / "here.pkl").read_bytes()).hexdigest()
    arguments = [
        sys.executable,
        "-c",
        WRITE_IN_ANOTHER_PROCESS,
        str(tmp_path / "model.pth"),
        str(tmp_path / "there.pkl"),
    ]
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
    there = subprocess.run(arguments, capture_output=True, text=True, check=True, env=env).stdout.strip()
    assert there == here


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_hostile_file_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    (tmp_path / "d2.pkl").write_bytes(pickle.dumps({"model": Hostile(f"touch {trace}"), "whitebench": "{}"}))
    with pytest.raises(UserError, match=r"posix\.system"):
        read_d2(tmp_path / "d2.pkl")
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"nothing of the kind", pickle.dumps([1, 2])])
def test_file_of_another_kind_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d2.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"d2\.pkl"):
        read_d2(tmp_path / "d2.pkl")


def test_conversion_that_is_not_proven_leaves_no_file(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "resnet50" if backbone.arch == "resnet18" else "resnet18"
    unpatched = detectron2_resnet
    monkeypatch.setattr("transfer.detectron.detectron2_resnet", lambda arch: unpatched(other))
    torch.save(backbone.tensors, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"do not fit|does not hold"):
        convert_stage(tmp_path / "model.pth", out=tmp_path, say=lambda _: None)
    assert list(tmp_path.glob("convert/*/d2.pkl")) == []


def test_conversion_is_a_stage_whose_id_is_known_before(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path))
    torch.save(backbone.tensors, tmp_path / "model.pth")
    said: list[str] = []
    record = convert_stage(tmp_path / "model.pth", say=said.append)
    parent = f"sha256:{hashlib.sha256((tmp_path / 'model.pth').read_bytes()).hexdigest()}"
    assert record.id == convert_id(parent)
    assert record.config == convert_config(parent)
    assert record.status == "done"
    assert record.metrics["tensors"] == record.metrics["tensors_expected"] == len(backbone.tensors)
    assert record.metrics["tensors_left_over"] == 0
    assert max(record.metrics["maps"].values()) <= 1e-5
    assert f"{len(backbone.tensors)} of {len(backbone.tensors)} tensors" in said[-2]
    assert said[-1].startswith("feature maps of two photos")
    file = tmp_path / "convert" / record.id / "d2.pkl"
    before = file.stat().st_mtime_ns
    assert convert_stage(tmp_path / "model.pth", say=said.append).id == record.id
    assert file.stat().st_mtime_ns == before
