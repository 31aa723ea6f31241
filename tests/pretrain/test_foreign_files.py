"""Files as people have them: harmless pickled values, other pickle protocols, other libraries' names, wrong files."""

import argparse
import collections
import gzip
import json
import pathlib
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pretrain import pickles
from pretrain.checkpoint import read_backbone, write_backbone
from tests.support.formats import Tensors, resnet, trunk, under
from whitebench.errors import UserError


@pytest.fixture(scope="module")
def state() -> Tensors:
    return resnet(seed=1)


def is_read(path: Path, state: Tensors) -> bool:
    tensors = read_backbone(path).tensors
    expected = trunk(state)
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)


def small(state: Tensors) -> Tensors:
    """The names alone matter for whether a pickle is read: one value in each tensor."""
    return {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}


HARMLESS: dict[str, Any] = {
    "args": argparse.Namespace(arch="resnet18", lr=0.1, nested=argparse.Namespace(x=[1, 2])),
    "best_acc": np.float64(71.3),
    "count": np.int64(3),
    "history": np.arange(4, dtype=np.float32),
    "rng": ("MT19937", np.arange(624, dtype=np.uint32), 3, 0, 0.0),
    "path": pathlib.PosixPath("/data/imagenet"),
    "meters": collections.defaultdict(list, {"loss": [1.0]}),
    "counter": collections.Counter({"a": 1}),
    "seen": {1, 2},
    "dtype": np.dtype("float32"),
    "torch_dtype": torch.float16,
    "device": torch.device("cpu"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_values_beside_the_weights_are_read(
    tmp_path: Path, protocol: int, zipped: bool, state: Tensors
) -> None:
    path = tmp_path / "ckpt.pth"
    content = {"state_dict": small(state), **HARMLESS}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert len(read_backbone(path).tensors) == 100


def test_configurations_of_packages_are_read(tmp_path: Path, state: Tensors) -> None:
    omegaconf, yacs = pytest.importorskip("omegaconf"), pytest.importorskip("yacs.config")
    config = omegaconf.OmegaConf.create({"model": {"widths": [1, 2], "name": "x", "rate": 0.1, "on": True}})
    for name, value in (("omegaconf", config), ("yacs", yacs.CfgNode({"SOLVER": {"STEPS": [1, 2]}}))):
        torch.save({"state_dict": small(state), "cfg": value}, tmp_path / f"{name}.pth")
        assert len(read_backbone(tmp_path / f"{name}.pth").tensors) == 100


class Call:
    """Unpickles as a call, or as a change of the state, of something that the list permits or not."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.reduced = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("form", ["torch", "plain"])
@pytest.mark.parametrize("kind", ["eval", "getattr", "import", "open", "exec through numpy"])
def test_code_is_refused_in_every_protocol(tmp_path: Path, protocol: int, form: str, kind: str, state: Tensors) -> None:
    trace = tmp_path / "it-ran"
    command = f"open({str(trace)!r}, 'w')"
    hostile = {
        "eval": Call(eval, (command,)),
        "getattr": Call(getattr, (argparse.Namespace, "mro")),
        "import": Call(__import__, ("os",)),
        "open": Call(open, (str(trace), "w")),
        "exec through numpy": Call(np.load, (str(trace),)),
    }[kind]
    content = {"state_dict": {}, "x": hostile}
    path = tmp_path / "hostile.pth"
    if form == "torch":
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match=r"refused.*it asks for .*--unsafe-pickle") as error:
        read_backbone(path)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def test_a_pickle_cannot_change_classes_of_this_process(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    # argparse.Namespace, then BUILD with (None, {"marked": 1}): sets an attribute of the class itself
    path.write_bytes(b"\x80\x02cargparse\nNamespace\nN}X\x06\x00\x00\x00markedK\x01s\x86b.")
    with pytest.raises(UserError, match=r"refused.*a change of Namespace"):
        read_backbone(path)
    assert not hasattr(argparse.Namespace, "marked")


def detectron2_names(state: Tensors) -> dict[str, np.ndarray]:
    from transfer.convert import detectron2_name

    return {detectron2_name(name): tensor.numpy() for name, tensor in trunk(state).items()}


def test_converted_pickles_are_read(tmp_path: Path, state: Tensors) -> None:
    from transfer.convert import converted, write_d2

    content = {"model": detectron2_names(state), "__author__": "MOCO", "matching_heuristics": True}
    for protocol in (2, 4, 5):
        (tmp_path / "moco.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        assert is_read(tmp_path / "moco.pkl", state)
    metadata = {"stem": "imagenet", "arch": "resnet18", "mean": [0.1, 0.2, 0.3], "std": [0.1, 0.1, 0.1], "dataset": "x"}
    write_backbone(tmp_path / "ours", state, metadata)
    write_d2(tmp_path / "d2.pkl", converted(read_backbone(tmp_path / "ours")))
    assert is_read(tmp_path / "d2.pkl", state)
    assert read_backbone(tmp_path / "d2.pkl").metadata["mean"] == [0.1, 0.2, 0.3]
    torch.save({name: tensor.numpy() for name, tensor in state.items()}, tmp_path / "arrays.pth")
    assert is_read(tmp_path / "arrays.pth", state)


def test_detectron2s_own_checkpoints_are_read(tmp_path: Path, state: Tensors) -> None:
    names = {name: torch.from_numpy(array) for name, array in detectron2_names(state).items()}
    fpn = {
        **under("backbone.bottom_up.", names),
        "backbone.fpn_lateral2.weight": torch.ones(2),
        "pixel_mean": torch.ones(3),
    }
    head = {f"roi_heads.{name}": t for name, t in names.items() if name.startswith("res5.")}
    c4 = {**{f"backbone.{name}": t for name, t in names.items() if not name.startswith("res5.")}, **head}
    for model in (fpn, c4):
        torch.save({"model": model, "optimizer": {}, "iteration": 89999}, tmp_path / "model_final.pth")
        assert is_read(tmp_path / "model_final.pth", state)


def transformers_names(state: Tensors) -> Tensors:
    def name(plain: str) -> str:
        first, _, rest = plain.partition(".")
        if first in ("conv1", "bn1"):
            return f"resnet.embedder.embedder.{'convolution' if first == 'conv1' else 'normalization'}.{rest}"
        block, part, rest = rest.split(".", 2)
        stage = f"resnet.encoder.stages.{int(first[-1]) - 1}.layers.{block}"
        if part == "downsample":
            kind, rest = rest.split(".", 1)
            return f"{stage}.shortcut.{'convolution' if kind == '0' else 'normalization'}.{rest}"
        kind = "convolution" if part.startswith("conv") else "normalization"
        return f"{stage}.layer.{int(part[-1]) - 1}.{kind}.{rest}"

    return {name(plain): tensor.contiguous() for plain, tensor in trunk(state).items()}


def test_folders_and_parts_of_the_hugging_face_hub_are_read(tmp_path: Path, state: Tensors) -> None:
    tensors = transformers_names(state)
    whole, parts, binary = tmp_path / "whole", tmp_path / "parts", tmp_path / "binary"
    for folder in (whole, parts, binary):
        folder.mkdir()
    save_file(tensors, whole / "model.safetensors")
    torch.save(tensors, binary / "pytorch_model.bin")
    names = list(tensors)
    index = {}
    for number, some in enumerate((names[:50], names[50:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in some}, parts / file)
        index |= dict.fromkeys(some, file)
    with pytest.raises(UserError, match=r"one of 2 parts; their list model\.safetensors\.index\.json is missing"):
        read_backbone(parts / "model-00001-of-00002.safetensors")
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    given = [parts, parts / "model-00001-of-00002.safetensors", parts / "model.safetensors.index.json"]
    for path in (whole, binary, *given):
        assert is_read(path, state)
    (parts / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="1 of 2 parts are missing"):
        read_backbone(parts)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    with pytest.raises(UserError, match="parts are missing"):
        read_backbone(parts)


def archive(write: Callable[[Path, Path], None]) -> Callable[[Path, Tensors], None]:
    def make(path: Path, state: Tensors) -> None:
        inner = path.with_name("inner.pth")
        torch.save({"x": torch.ones(1)}, inner)
        write(path, inner)

    return make


def _zip(path: Path, inner: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.write(inner, "resnet50.pth")


def _gzip(path: Path, inner: Path) -> None:
    path.write_bytes(gzip.compress(inner.read_bytes()))


def _tar(path: Path, inner: Path) -> None:
    with tarfile.open(path, "w") as file:
        file.add(inner, "resnet50.pth")


def _script(path: Path, state: Tensors) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))


WRONG: dict[str, tuple[Callable[[Path, Tensors], Any], str]] = {
    "gzip": (archive(_gzip), "a gzip archive"),
    "zip": (archive(_zip), r"a zip archive \(it holds resnet50.pth\)"),
    "tar": (archive(_tar), "a tar archive"),
    "torchscript": (_script, "a TorchScript archive"),
    "numpy": (lambda path, state: np.savez(path.open("wb"), a=np.ones(2)), "an archive of numpy arrays"),
    "lfs": (
        lambda path, state: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS"),
    "html": (lambda path, state: path.write_text("\n<!DOCTYPE html><html>Sign in"), "a web page"),
    "empty": (lambda path, state: path.write_bytes(b""), "an empty file"),
    "json": (lambda path, state: path.write_text('{"a": 1}'), "a JSON text"),
    "hdf5": (lambda path, state: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, kind: str, state: Tensors) -> None:
    make, message = WRONG[kind]
    make(tmp_path / "model.pth", state)
    with pytest.raises(UserError, match=message) as error:
        read_backbone(tmp_path / "model.pth")
    assert "damaged" not in str(error.value)
    assert "\n" not in str(error.value)


STATED: list[tuple[dict[str, Any], str]] = [
    ({"arch": "resnetaa18"}, "states arch: 'resnetaa18'"),
    ({"arch": "resnetblur18"}, "states arch: 'resnetblur18'"),
    ({"args": argparse.Namespace(model="resnet18d")}, "states args.model: 'resnet18d'"),
    ({"args": {"arch": "seresnet18"}}, "states args.arch: 'seresnet18'"),
    ({"arch": "resnet50"}, "its tensors are a resnet18's, but it states arch: 'resnet50'"),
    ({"arch": "resnet18_caffe"}, "states arch: 'resnet18_caffe'"),
    ({"hyper_parameters": {"backbone": {"name": "resnext18_32x4d"}}}, "hyper_parameters.backbone.name"),
    ({"meta": {"cfg": "backbone=dict(type='ResNet', depth=18, style='caffe')"}}, "style='caffe'"),
    ({"meta": {"config": "strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)"}}, "dilated"),
    ({"args": argparse.Namespace(arch="resnet18", replace_stride_with_dilation=[False, True, True])}, "dilated"),
    ({"args": argparse.Namespace(model="resnet18", model_kwargs={"act_layer": "silu"})}, "act_layer"),
    ({"opt": {"output_stride": 8}}, "output_stride=8"),
]


@pytest.mark.parametrize(("extra", "message"), STATED)
def test_another_network_with_a_plain_resnets_tensors_is_refused(
    tmp_path: Path, extra: dict[str, Any], message: str, state: Tensors
) -> None:
    torch.save({"state_dict": small(state), **extra}, tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=message):
        read_backbone(tmp_path / "ckpt.pth")


@pytest.mark.parametrize(
    "extra",
    [
        {"arch": "resnet18"},
        {"arch": "moco_resnet18"},
        {"args": argparse.Namespace(arch="ResNet-18", model="simsiam", dilation=1, output_stride=32)},
        {"hyper_parameters": {"backbone": {"name": "resnet18"}}},
    ],
)
def test_a_plain_network_is_read_and_one_that_says_nothing_is_remarked_on(
    tmp_path: Path, extra: dict[str, Any], state: Tensors
) -> None:
    torch.save({"state_dict": small(state), **extra}, tmp_path / "stated.pth")
    assert "not stated" not in read_backbone(tmp_path / "stated.pth").origin
    torch.save({"state_dict": small(state), "model": "vit_small"}, tmp_path / "unstated.pth")
    assert "not stated, so taken as torchvision's: strides" in read_backbone(tmp_path / "unstated.pth").origin


def test_the_config_beside_the_weights_is_read(tmp_path: Path, state: Tensors) -> None:
    save_file(trunk(state), tmp_path / "model.safetensors")
    for config, message in (
        ({"architecture": "resnetaa18"}, "config.json architecture: 'resnetaa18'"),
        ({"architecture": "resnet18", "model_args": {"output_stride": 8}}, "output_stride"),
        ({"model_type": "resnet", "hidden_act": "silu"}, "hidden_act=silu"),
        ({"model_type": "resnet", "downsample_in_bottleneck": True}, "strides in the 1x1"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=message):
            read_backbone(tmp_path)
    for text in (json.dumps({"architecture": "resnet18.a1_in1k", "num_classes": 1000}), "[" * 100_000, "not JSON"):
        (tmp_path / "config.json").write_text(text)
        assert is_read(tmp_path, state)


def test_a_resnet_without_pooling_cut_into_a_sequential_is_read(tmp_path: Path, state: Tensors) -> None:
    children = {"conv1": "0", "bn1": "1", "layer1": "3", "layer2": "4", "layer3": "5", "layer4": "6"}
    cifar = {**state, "conv1.weight": torch.ones(64, 3, 3, 3)}
    renamed = {f"{children[n.partition('.')[0]]}.{n.partition('.')[2]}": t for n, t in trunk(cifar).items()}
    torch.save({"state_dict": under("backbone.", renamed)}, tmp_path / "lightly.ckpt")
    assert is_read(tmp_path / "lightly.ckpt", cifar)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["stages.0.blocks.0.conv_dw.weight", "stem.0.weight"], "ConvNeXt of 1 stages"),
        (["stages.0.blocks.0.token_mixer.dwconv_hw.weight", "stem.0.weight"], "depthwise"),
        (["stem.0.conv.weight", "stages.0.blocks.0.attn.fc.weight"], "holds no ResNet"),  # VoVNet
        (["layers.0.blocks.0.attn.qkv.weight"], "vision transformer"),
        (["stem.0.0.weight", "features.0.conv1.0.weight"], "holds no ResNet"),  # SelecSLS
    ],
)
def test_other_networks_are_not_called_what_they_are_not(tmp_path: Path, names: list[str], message: str) -> None:
    torch.save({name: torch.ones(2, 2) for name in names}, tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=message):
        read_backbone(tmp_path / "ckpt.pth")


def test_every_name_on_the_list_can_be_looked_up() -> None:
    assert pickles.allowed()[("argparse", "Namespace")] is argparse.Namespace
    assert ("builtins", "eval") not in pickles.allowed()
    assert ("builtins", "getattr") not in pickles.allowed()
    assert all(
        not getattr(value, "__module__", "").startswith(("os", "posix", "subprocess")) for value in pickles.harmless()
    )
