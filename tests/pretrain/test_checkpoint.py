"""Every format of a backbone is read into the same tensors, and nothing else is read, nor executed."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict
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
from tests.support.formats import FORMATS, Format, Tensors, resnet, trunk, under
from transfer.coco_det import main
from transfer.convert import converted, load_proven
from transfer.detectron import detectron2_resnet
from whitebench.errors import UserError


@pytest.fixture(scope="module")
def online() -> Tensors:
    return resnet(seed=1)


@pytest.fixture(scope="module")
def other() -> Tensors:
    return resnet(seed=2)


@pytest.fixture(scope="module")
def detectron2_resnet18() -> nn.Module:
    network: nn.Module = detectron2_resnet("resnet18")
    return network


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("arch", "count"),
    [("resnet18", 100), ("resnet18-16", 100), ("resnet34", 180), ("resnet50", 265), ("resnet101", 520)],
)
def test_torchvision_checkpoint_is_recognised_and_counted(tmp_path: Path, arch: str, count: int) -> None:
    state = resnet(arch)
    torch.save(state, tmp_path / "model.pth")
    backbone = read_backbone(tmp_path / "model.pth")
    assert (backbone.arch, backbone.stem, len(backbone.tensors)) == (arch, "imagenet", count)
    assert same(backbone.tensors, trunk(state))
    assert backbone.metadata == {}


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.project)
def test_every_projects_layout_is_read_and_arrives_whole_in_detectron2(
    tmp_path: Path, form: Format, online: Tensors, other: Tensors, detectron2_resnet18: nn.Module
) -> None:
    form.write(tmp_path / "ckpt", online, other)
    backbone = read_backbone(tmp_path / "ckpt")
    expected = trunk(online)
    if "half" in form.project:
        expected = {name: t.half().float() for name, t in expected.items()}
    assert same(backbone.tensors, expected)
    content = converted(backbone)
    proof = load_proven(detectron2_resnet18, content)
    assert (proof.matched, proof.expected, proof.left_over) == (100, 100, 0)


@pytest.mark.parametrize("form", [form for form in FORMATS if form.other], ids=lambda form: form.project)
def test_another_encoder_is_said_to_be_there_and_can_be_asked_for(
    tmp_path: Path, form: Format, online: Tensors, other: Tensors
) -> None:
    form.write(tmp_path / "ckpt", online, other)
    assert form.other in read_backbone(tmp_path / "ckpt").origin.partition("also there")[2]
    asked = read_backbone(tmp_path / "ckpt", encoder=form.other)
    assert same(asked.tensors, trunk(other))
    assert form.other in asked.origin.partition("also there")[0]


def test_an_encoder_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, online: Tensors, other: Tensors
) -> None:
    torch.save({**under("encoder_q.", online), **under("encoder_k.", other)}, tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=r"'teacher'.*encoder_q"):
        read_backbone(tmp_path / "ckpt.pth", encoder="teacher")


def test_encoders_that_nothing_tells_apart_are_not_guessed(tmp_path: Path, online: Tensors, other: Tensors) -> None:
    torch.save({**under("left.", online), **under("right.", other)}, tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=r"more than one encoder.*'left'.*'right'"):
        read_backbone(tmp_path / "ckpt.pth")


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
    with pytest.raises(UserError, match=r"absent\.pth: checkpoint not found"):
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


class Rebuilt:
    """Unpickles as a call that `weights_only` permits, with arguments of the file's choice."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def laughs(levels: int = 14, width: int = 20) -> dict[str, Any]:
    """Few mappings, each named by the one above in many places: width ** levels paths."""
    inner: dict[str, Any] = {"end": torch.ones(1)}
    for _ in range(levels):
        inner = {str(k): inner for k in range(width)}
    return inner


def ring() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["again"] = content
    return content


GIANT = 2**40
OF_BN1 = "bn1.weight"
HOSTILE: dict[str, tuple[Callable[[Tensors, Path], Any], str]] = {
    "code on load": (lambda q, trace: {"state_dict": q, "x": Hostile(f"touch {trace}")}, r"refused.*posix\.system"),
    "shape beyond its storage": (
        lambda q, trace: q | {OF_BN1: Rebuilt(
            torch._utils._rebuild_tensor_v2, torch.ones(3)._typed_storage(), 0, (GIANT,), (1,), False, OrderedDict())},
        r"damaged.*(resize|out of bounds)",
    ),
    "giant view of one number": (
        lambda q, trace: q | {OF_BN1: torch.zeros(1).expand(GIANT)}, r"bn1\.weight is 1099511627776, in a resnet18"),
    "giant twins": (
        lambda q, trace: {f"{side}.{name}": t for side in "ab" for name, t in (
            q | {"layer1.0.bn1.bias": torch.zeros(1).expand(GIANT)}).items()}, "more than one encoder"),
    "no values": (lambda q, trace: q | {OF_BN1: torch.ones(64, device="meta")}, r"bn1\.weight holds no plain.*meta"),
    "sparse": (lambda q, trace: q | {OF_BN1: torch.ones(64).to_sparse()}, r"bn1\.weight holds no plain values.*sparse"),
    "complex": (lambda q, trace: q | {OF_BN1: torch.ones(64, dtype=torch.complex64)}, "of type complex64"),
    "quantised": (
        lambda q, trace: q | {OF_BN1: torch.quantize_per_tensor(torch.ones(64), 0.1, 0, torch.qint8)}, "bn1.weight"),
    "NaN": (lambda q, trace: q | {OF_BN1: torch.full((64,), float("nan"))}, r"bn1\.weight has values .*not finite"),
    "too large for float32": (
        lambda q, trace: q | {OF_BN1: torch.full((64,), 1e300, dtype=torch.float64)}, r"bn1\.weight.*not finite"),
    "endless mappings": (lambda q, trace: laughs(), "more than 1,000,000 entries"),
    "ring of mappings": (lambda q, trace: ring(), "no tensors"),
    "names with control characters": (
        lambda q, trace: {f"{side}\n\x1b[2J.{name}": t + ord(side) for side in "ab" for name, t in q.items()},
        "more than one encoder"),
    "a list": (lambda q, trace: [torch.ones(3)], "no tensors"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_checkpoint_is_one_line_runs_nothing_and_leaves_nothing(
    tmp_path: Path, kind: str, online: Tensors
) -> None:
    make, message = HOSTILE[kind]
    trace, out = tmp_path / "it-ran", tmp_path / "out"
    torch.save(make(online, trace), tmp_path / "hostile.pth")
    with pytest.raises(UserError, match=message) as error:
        main(["--ckpt", str(tmp_path / "hostile.pth"), "--convert-only", "--out", str(out)])
    assert "\n" not in str(error.value)
    assert "hostile.pth" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.pth"]


def test_names_that_climb_stay_names(tmp_path: Path, online: Tensors) -> None:
    out = tmp_path / "a" / "b" / "out"
    torch.save(under("../../../etc/", online), tmp_path / "..climbing..pth")
    main(["--ckpt", str(tmp_path / "..climbing..pth"), "--convert-only", "--out", str(out)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["..climbing..pth", "a"]
    assert [path.name for path in out.iterdir()] == ["convert"]
    assert len(list((out / "convert").iterdir())) == 1


IMPOSSIBLE = {
    "id": "../../../escaped-0123456789ab",
    "arch": 18,
    "recipe": "sample/intl\nforged line",
    "seed": "0",
    "mean": [0.4, 0.5],
    "std": [0.2, 0.0, 0.2],
}


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_metadata_that_would_lead_astray_is_refused(tmp_path: Path, key: str, online: Tensors) -> None:
    path = tmp_path / "forged.safetensors"
    stated = json.dumps({**METADATA, key: IMPOSSIBLE[key]})
    save_file(trunk(online), path, metadata={"whitebench": stated})
    with pytest.raises(UserError, match=rf"states an impossible {key}: ") as error:
        main(["--ckpt", str(path), "--convert-only", "--out", str(tmp_path / "out" / "runs")])
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["forged.safetensors"]


def test_safetensors_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "giant.safetensors"
    for shape, end in (([2**60], 2**62), ([64], 2**40)):
        header = json.dumps({"conv1.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 256)
        with pytest.raises(UserError, match=r"giant\.safetensors: damaged or truncated"):
            read_backbone(path)
    path.write_bytes((2**62).to_bytes(8, "little") + b"{")
    with pytest.raises(UserError, match=r"giant\.safetensors: damaged or truncated"):
        read_backbone(path)


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("resnet152", "blocks is not known"),
        ("wide_resnet50_2", "wide"),
        ("resnext50_32x4d", "grouped"),
        ("resnet50 of twice the width", "wide"),
        ("resnet50-D", "several convolutions"),
    ],
)
def test_other_resnets_are_refused_with_the_reason(tmp_path: Path, arch: str, reason: str) -> None:
    with torch.device("meta"):
        shapes = {
            name: list(t.shape) for name, t in get_model(arch.partition(" ")[0].removesuffix("-D")).state_dict().items()
        }
    if arch.endswith("width"):  # SimCLR's and SwAV's wide ones
        shapes["conv1.weight"] = [128, 3, 7, 7]
    if arch.endswith("-D"):  # timm's resnet50d
        del shapes["conv1.weight"]
        shapes |= {"conv1.0.weight": [32, 3, 3, 3], "conv1.3.weight": [32, 32, 3, 3], "conv1.6.weight": [64, 32, 3, 3]}
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, tmp_path / "ckpt.pth")
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


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU; copied to the CPU it is a plain one."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        moved = func is torch.Tensor.to and args[1:2] == ("cpu",)
        return result.as_subclass(torch.Tensor) if moved else result


REAL_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    "moved", [lambda t: t.as_subclass(OnGpu), pytest.param(Tensor.cuda, marks=REAL_GPU)], ids=["stand-in", "real"]
)
def test_a_network_on_a_gpu_is_written_as_from_the_cpu(moved: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    tensors = {name: tensor.detach() for name, tensor in get_model("resnet18").state_dict().items()}
    on_gpu = {name: moved(tensor) for name, tensor in tensors.items()}
    assert {tensor.device.type for tensor in on_gpu.values()} == {"cuda"}
    for name, content in (("cpu", tensors), ("gpu", on_gpu)):
        write_backbone(tmp_path / name, content, {"arch": "resnet18", "stem": "imagenet"})
    assert (tmp_path / "gpu").read_bytes() == (tmp_path / "cpu").read_bytes()
