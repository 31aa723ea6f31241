"""Every format of a backbone is read into the same tensors, and nothing else is read, nor executed."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model

from pretrain.checkpoint import read_backbone, write_backbone
from pretrain.encoders import tensor_shapes
from results.command import UserError

Tensors = dict[str, Tensor]


def resnet(arch: str = "resnet18", seed: int = 0) -> Tensors:
    """A seeded state dict as torchvision makes it, with statistics that are not the trivial ones."""
    torch.manual_seed(seed)
    state = get_model(arch).state_dict()
    for name, tensor in state.items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    return state


def trunk(state: Tensors) -> Tensors:
    return {name: t for name, t in state.items() if not name.startswith("fc.") and "num_batches" not in name}


@pytest.fixture(scope="module")
def online() -> Tensors:
    return resnet(seed=1)


@pytest.fixture(scope="module")
def other() -> Tensors:
    return resnet(seed=2)


def under(prefix: str, state: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("arch", "count"), [("resnet18", 100), ("resnet34", 180), ("resnet50", 265), ("resnet101", 520)]
)
def test_torchvision_checkpoint_is_recognised_and_counted(tmp_path: Path, arch: str, count: int) -> None:
    state = resnet(arch)
    torch.save(state, tmp_path / "model.pth")
    backbone = read_backbone(tmp_path / "model.pth")
    assert (backbone.arch, backbone.stem, len(backbone.tensors)) == (arch, "imagenet", count)
    assert same(backbone.tensors, trunk(state))
    assert backbone.metadata == {}


def sequential(state: Tensors) -> Tensors:
    """As `nn.Sequential(*list(resnet.children())[:-1])` names it."""
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    renamed = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if first in places:
            renamed[f"{places[first]}.{rest}"] = tensor
    return renamed


HEAD = {"weight": torch.ones(8, 512), "bias": torch.ones(8)}
LAYOUTS: dict[str, Callable[[Tensors, Tensors], Any]] = {
    "cwrgp": lambda q, k: {"epoch": 1, "arch": "resnet18", "state_dict": {**under("module.model.", q)}},
    "cwrgp, small sets": lambda q, k: {"state_dict": {**under("model.module.", q), **under("head.", HEAD)}},
    "intl": lambda q, k: {"state_dict": {**under("module.backbone.", q), **under("module.projection.", HEAD)}},
    "intl with EMA": lambda q, k: {
        "state_dict": {**under("module.momentum_backbone.", k), **under("module.backbone.", q)}
    },
    "resa": lambda q, k: {"state_dict": {**under("module.encoder.", q), **under("module.momentum_encoder.", k)}},
    "moco, pcl": lambda q, k: {
        "state_dict": {
            **under("module.encoder_k.", k),
            **under("module.encoder_q.", q),
            "module.queue": torch.ones(4, 4),
            "module.queue_ptr": torch.zeros(1, dtype=torch.long),
        },
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.03}]},
    },
    "simsiam": lambda q, k: {"state_dict": {**under("module.encoder.", q), **under("module.predictor.", HEAD)}},
    "barlow twins, vicreg": lambda q, k: {
        "model": {**under("module.backbone.", q), **under("module.projector.", HEAD)}
    },
    "swav": lambda q, k: {"state_dict": {**under("module.", q), **under("module.prototypes.", HEAD)}},
    "dino": lambda q, k: {
        "student": {**under("module.backbone.", k), **under("module.head.", HEAD)},
        "teacher": {**under("module.backbone.", q), **under("module.head.", HEAD)},
    },
    "byol": lambda q, k: {"online_network": under("encoder.", q), "target_network": under("encoder.", k)},
    "solo-learn": lambda q, k: {"state_dict": {**under("backbone.", q), **under("momentum_backbone.", k)}},
    "lightly": lambda q, k: {
        "state_dict": {**under("backbone.", sequential(q)), **under("projection_head.layers.0.", HEAD)}
    },
    "vissl": lambda q, k: {
        "classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", q), "heads": HEAD}}}
    },
    "mmselfsup": lambda q, k: {"meta": {"epoch": 3}, "state_dict": under("backbone.", q)},
    "compiled inside DDP": lambda q, k: {"model": under("module._orig_mod.backbone.", q)},
    "DDP inside compiled": lambda q, k: under("_orig_mod.module.", q),
    "bare, no head": lambda q, k: trunk(q),
    "our checkpoint.pt": lambda q, k: {
        "step": 3,
        "method": {**under("encoder.backbone.", q), **under("target.encoder.backbone.", k)},
    },
}


@pytest.mark.parametrize("project", LAYOUTS)
def test_projects_own_layouts_are_read_into_torchvisions_names(
    tmp_path: Path, project: str, online: Tensors, other: Tensors
) -> None:
    torch.save(LAYOUTS[project](online, other), tmp_path / "ckpt.pth")
    assert same(read_backbone(tmp_path / "ckpt.pth").tensors, trunk(online))


@pytest.mark.parametrize(
    ("project", "wanted"),
    [("moco, pcl", "encoder_k"), ("intl with EMA", "momentum"), ("dino", "student"), ("byol", "target")],
)
def test_another_encoder_can_be_asked_for_and_is_named(
    tmp_path: Path, project: str, wanted: str, online: Tensors, other: Tensors
) -> None:
    torch.save(LAYOUTS[project](online, other), tmp_path / "ckpt.pth")
    backbone = read_backbone(tmp_path / "ckpt.pth", encoder=wanted)
    assert same(backbone.tensors, trunk(other))
    assert wanted in backbone.origin.partition("also there")[0]


def test_an_encoder_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, online: Tensors, other: Tensors
) -> None:
    torch.save(LAYOUTS["moco, pcl"](online, other), tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=r"'teacher'.*encoder_q"):
        read_backbone(tmp_path / "ckpt.pth", encoder="teacher")


def test_encoders_that_nothing_tells_apart_are_not_guessed(tmp_path: Path, online: Tensors, other: Tensors) -> None:
    torch.save({**under("left.", online), **under("right.", other)}, tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=r"more than one encoder.*'left'.*'right'"):
        read_backbone(tmp_path / "ckpt.pth")


def test_old_torch_format_and_half_precision_are_read(tmp_path: Path, online: Tensors) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in online.items()}
    torch.save({"state_dict": half}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    found = read_backbone(tmp_path / "old.pth").tensors
    assert same(found, {name: t.half().float() for name, t in trunk(online).items()})


def test_foreign_safetensors_file_is_read(tmp_path: Path, online: Tensors) -> None:
    save_file(under("backbone.", online), tmp_path / "model.safetensors")
    assert same(read_backbone(tmp_path / "model.safetensors").tensors, trunk(online))


METADATA = {"stem": "imagenet", "arch": "resnet18", "id": "intl-s0-0123456789ab", "mean": [0.1, 0.2, 0.3], "seed": 0}


def test_own_file_comes_back_as_written_also_by_its_folder(tmp_path: Path, online: Tensors) -> None:
    write_backbone(tmp_path / "backbone.safetensors", online, METADATA)
    for path in (tmp_path, tmp_path / "backbone.safetensors"):
        backbone = read_backbone(path)
        assert same(backbone.tensors, trunk(online))
        assert backbone.metadata == METADATA
    assert load_file(tmp_path / "backbone.safetensors").keys() == trunk(online).keys()


def test_own_file_has_the_same_bytes_whatever_the_order_of_its_content(tmp_path: Path, online: Tensors) -> None:
    write_backbone(tmp_path / "a", online, METADATA)
    write_backbone(tmp_path / "b", dict(reversed(online.items())), dict(reversed(METADATA.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    header = (tmp_path / "a").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert list(json.loads(header[8 : 8 + length])["__metadata__"]) == ["whitebench"]


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path, online: Tensors) -> None:
    spoiled = {**online, "bn1.bias": online["bn1.bias"] * float("nan")}
    missing = {name: t for name, t in online.items() if name != "bn1.bias"}
    for state, metadata in ((spoiled, METADATA), (missing, METADATA), (online, {**METADATA, "arch": "resnet50"})):
        with pytest.raises(UserError):
            write_backbone(tmp_path / "backbone.safetensors", state, metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stem", ["cifar", "cifar-pad2", "small"])
def test_stated_stem_is_kept_and_an_unstated_one_is_said_to_be_assumed(
    tmp_path: Path, stem: str, online: Tensors
) -> None:
    state = {**online, "conv1.weight": torch.ones(64, 3, 3, 3)}
    write_backbone(tmp_path / "ours", state, {**METADATA, "stem": stem})
    assert read_backbone(tmp_path / "ours").stem == stem
    torch.save(state, tmp_path / "foreign.pth")
    foreign = read_backbone(tmp_path / "foreign.pth")
    assert foreign.stem == "cifar"
    assert "3x3 stem" in foreign.origin


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_is_refused_by_name_and_does_not_run(tmp_path: Path, zipped: bool, online: Tensors) -> None:
    path, trace = tmp_path / "hostile.pth", tmp_path / "it-ran"
    content = {"state_dict": online, "extra": Hostile(f"touch {trace}")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"refused.*posix\.system.*--unsafe-pickle"):
        read_backbone(path)
    assert not trace.exists()


def test_bare_hostile_pickle_does_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "hostile.pth", tmp_path / "it-ran"
    path.write_bytes(pickle.dumps(Hostile(f"touch {trace}")))
    with pytest.raises(UserError):
        read_backbone(path)
    assert not trace.exists()


class Arguments:
    """Harmless, but no tensor: what training scripts like to save beside the weights."""


def test_flag_loads_a_pickle_that_wants_more(tmp_path: Path, online: Tensors) -> None:
    torch.save({"args": Arguments(), "state_dict": online}, tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=r"refused.*test_checkpoint\.Arguments"):
        read_backbone(tmp_path / "ckpt.pth")
    assert same(read_backbone(tmp_path / "ckpt.pth", unsafe_pickle=True).tensors, trunk(online))


def test_whole_pickled_module_is_read_with_the_flag_only(tmp_path: Path, online: Tensors) -> None:
    network = get_model("resnet18")
    network.load_state_dict(online)
    torch.save({"model": network}, tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match="refused"):
        read_backbone(tmp_path / "ckpt.pth")
    assert same(read_backbone(tmp_path / "ckpt.pth", unsafe_pickle=True).tensors, trunk(online))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_truncated_file_is_one_clear_line(tmp_path: Path, share: float, kind: str, online: Tensors) -> None:
    path = tmp_path / "ckpt"
    if kind == "safetensors":
        save_file(online, path)
    else:
        torch.save(online, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="truncated") as error:
        read_backbone(path)
    assert "\n" not in str(error.value)


def test_compressed_archive_is_refused_before_it_is_expanded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10_000_000)
    with pytest.raises(UserError, match="compressed"):
        read_backbone(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"hello, I am no checkpoint", b"\x80\x02}q\x00.", b"\x89PNG\r\n\x1a\n1234"]
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pth"):
        read_backbone(tmp_path / "x.pth")


def test_absent_file_and_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.pth: there is no such checkpoint"):
        read_backbone(tmp_path / "absent.pth")
    with pytest.raises(UserError, match=r"backbone\.safetensors"):
        read_backbone(tmp_path)


def faulty(state: Tensors, name: str, tensor: Tensor | None) -> Tensors:
    return {**state, name: tensor} if tensor is not None else {key: t for key, t in state.items() if key != name}


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("layer3.1.bn2.running_var", None, r"1 of a resnet18's 100 tensors.*layer3\.1\.bn2\.running_var"),
        ("layer2.0.conv1.weight", torch.full((128, 64, 3, 3), float("nan")), r"layer2\.0\.conv1\.weight.*not finite"),
        ("bn1.running_var", torch.full((64,), float("inf")), r"bn1\.running_var.*not finite"),
        ("bn1.weight", torch.ones(64, dtype=torch.int32), r"bn1\.weight is of type int32"),
        ("layer4.0.conv1.weight", torch.ones(512, 256, 1, 1), r"layer4\.0\.conv1\.weight is 512x256x1x1.*512x256x3x3"),
        ("layer1.0.se.weight", torch.ones(4), r"1 tensors have no place.*layer1\.0\.se\.weight"),
        ("conv1.weight", torch.ones(64, 1, 7, 7), "conv1.weight is 64x1x7x7"),
        ("conv1.weight", torch.ones(64, 3, 5, 5), "conv1.weight is 64x3x5x5"),
    ],
)
def test_faulty_tensors_are_named(
    tmp_path: Path, name: str, tensor: Tensor | None, message: str, online: Tensors
) -> None:
    torch.save(faulty(online, name, tensor), tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=message):
        read_backbone(tmp_path / "ckpt.pth")


@pytest.mark.parametrize(
    ("arch", "reason"),
    [("resnet152", "blocks is not known"), ("wide_resnet50_2", "wide"), ("resnext50_32x4d", "grouped")],
)
def test_other_resnets_are_refused_with_the_reason(tmp_path: Path, arch: str, reason: str) -> None:
    with torch.device("meta"):
        shapes = get_model(arch).state_dict()
    torch.save({name: torch.zeros(()).expand(t.shape) for name, t in shapes.items()}, tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=reason):
        read_backbone(tmp_path / "ckpt.pth")


def test_other_networks_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(UserError, match="holds no ResNet"):
        read_backbone(tmp_path / "linear.pth")
    torch.save({"blocks.0.attn.qkv.weight": torch.ones(3, 3)}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match="vision transformer"):
        read_backbone(tmp_path / "vit.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="no tensors"):
        read_backbone(tmp_path / "empty.pth")


def test_recognised_shapes_are_those_of_a_whole_torchvision_network() -> None:
    for arch in ("resnet18", "resnet50"):
        state = trunk(get_model(arch).state_dict())
        assert tensor_shapes(arch, "imagenet") == {name: tuple(tensor.shape) for name, tensor in state.items()}
