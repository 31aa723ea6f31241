"""A backbone by torchvision's or timm's names -> Detectron2's, with a proof that every tensor arrived."""

import io
import json
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from transfer.detectron import quiet
from transfer.vit_convert import LEFT_OUT, as_tensors, convert_vit, vitdet_tensors
from transfer.vit_structure import TIMM, VitStructure, is_vit, read_structure
from whitebench.errors import UserError
from whitebench.files import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from pretrain.checkpoint import Backbone

AUTHOR, METADATA, OTHER_TENSORS = "Whitebench", "whitebench", "whitebench_other"
D2_FILE = "d2.pkl"
RENAMED = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\bbn(\d)\.", r"conv\1.norm."),
    (r"\bdownsample\.0\.", "shortcut."),
    (r"\bdownsample\.1\.", "shortcut.norm."),
)
BACKBONE_TENSOR = re.compile(r"(?:^|\.)((?:stem|res[2-5])\.(?:conv1|\d).*)$")
"""Names of a Detectron2 model's tensors that come from a backbone (res5 of a C4 model is part of its head)."""
REL_POS = ".rel_pos_"
"""In the names of Detectron2's relative positions."""
PICKLED_ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}
"""All that a pickle of numpy arrays names."""


@dataclass(frozen=True)
class Converted:
    """A backbone as Detectron2 takes it."""

    tensors: dict[str, np.ndarray]
    """float32, by Detectron2's names: stem.conv1.weight, res2.0.conv1.norm.weight, ...; of vision transformers also
    those that Detectron2's ViT has no place for (see `transfer.vit_convert`)."""
    metadata: dict[str, Any]
    """arch, mean, std (in 0..1), parent (the pretraining's id, or sha256:...), origin; where known dataset, recipe; of
    vision transformers also options (timm's), vit (the structure) and changes."""

    @property
    def arch(self) -> str:
        return str(self.metadata["arch"])

    @property
    def parent(self) -> str:
        return str(self.metadata["parent"])

    @property
    def structure(self) -> VitStructure:
        """Of a vision transformer."""
        if "vit" in self.metadata:
            return VitStructure(**self.metadata["vit"])
        return read_structure(self.arch, self.options, {})

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments with which timm builds the network; empty of torchvision's."""
        return dict(self.metadata.get("options", {}))

    @property
    def changes(self) -> list[str]:
        """What was done to the tensors, beyond their names; one line each."""
        return list(self.metadata.get("changes", ()))

    @property
    def pixel_mean(self) -> list[float]:
        """By channel, RGB, in 0..255."""
        return [round(255 * float(value), 6) for value in self.metadata["mean"]]

    @property
    def pixel_std(self) -> list[float]:
        return [round(255 * float(value), 6) for value in self.metadata["std"]]


def convert(backbone: "Backbone") -> dict[str, np.ndarray]:
    """The tensors of `backbone` by Detectron2's names.

    Raises:
        UserError: a stem that Detectron2 does not have.
    """
    if backbone.stem != "imagenet":
        raise UserError(
            f"the backbone has the 3x3 stem '{backbone.stem}'; Detectron2's ResNet has the 7x7 stem with pooling only. "
            "Pretrain with network.stem=imagenet to transfer to detection"
        )
    return {detectron2_name(name): tensor.numpy() for name, tensor in backbone.tensors.items()}


def detectron2_name(name: str) -> str:
    """E.g. layer1.0.downsample.1.weight -> res2.0.shortcut.norm.weight."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def torchvision_arch(arch: str) -> str:
    """`resnet50` of timm's plain `timm:resnet50`, which has the same tensors by the same names; others as they are."""
    name = arch.removeprefix(TIMM).partition(".")[0]
    return name if is_vit(arch) and name in ("resnet18", "resnet34", "resnet50", "resnet101") else arch


def converted(backbone: "Backbone", file: str = "") -> Converted:
    """The tensors and metadata that detection needs; ImageNet's mean and std where a checkpoint states none.

    Args:
        file: name of the checkpoint's file, which stands for a foreign one in tables.
    """
    vit: dict[str, Any] = {}
    backbone = replace(backbone, arch=torchvision_arch(backbone.arch))
    if is_vit(backbone.arch):
        options = backbone_options(backbone)
        tensors, structure, changes = convert_vit(backbone.arch, options, backbone.tensors)
        vit = {"options": options, "vit": structure.metadata, "changes": changes}
    else:
        tensors = convert(backbone)
    metadata = {
        **({} if backbone.metadata else {"recipe": file}),
        **backbone.metadata,
        "arch": backbone.arch,
        "mean": list(backbone.metadata.get("mean", IMAGENET_MEAN)),
        "std": list(backbone.metadata.get("std", IMAGENET_STD)),
        "parent": parent_of(backbone),
        "origin": backbone.origin if "mean" in backbone.metadata else f"{backbone.origin}; mean and std: ImageNet's",
        **vit,
    }
    return Converted(tensors, metadata)


def backbone_options(backbone: "Backbone") -> dict[str, Any]:
    """Keyword arguments with which timm builds the backbone, as its file states them."""
    return dict(getattr(backbone, "options", None) or backbone.metadata.get("options") or {})


def parent_of(backbone: "Backbone") -> str:
    """Id of the pretraining's record; "sha256:<hex>" of the file where it is not from this suite."""
    return str(backbone.metadata.get("id") or f"sha256:{backbone.sha256}")


def write_d2(path: Path, content: Converted) -> None:
    """The file that Detectron2 loads by MODEL.WEIGHTS. Atomic; equal content gives equal bytes."""
    write_atomically(path, pickle.dumps(_file_content(content), protocol=4))


def _file_content(content: Converted) -> dict[str, Any]:
    tensors = {name: np.ascontiguousarray(content.tensors[name]) for name in sorted(content.tensors)}
    # of a vision transformer, Detectron2 would match the final norm with any norm of the heads
    others = {name: tensors.pop(name) for name in LEFT_OUT if name in tensors} if is_vit(content.arch) else {}
    return {
        "model": tensors,
        "__author__": AUTHOR,
        "matching_heuristics": True,
        METADATA: json.dumps(content.metadata, sort_keys=True),
        **({OTHER_TENSORS: others} if others else {}),
    }


def read_d2(path: Path) -> Converted:
    """What `write_d2` wrote. Nothing but arrays and plain values is unpickled.

    Raises:
        UserError: another file, or a damaged one.
    """
    try:
        file_content = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
        tensors = {**file_content["model"], **file_content.get(OTHER_TENSORS, {})}
        return Converted(tensors, json.loads(file_content[METADATA]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path}: not a file that --convert-only wrote, or damaged ({type(error).__name__})") from error


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED_ARRAYS:
            raise UserError(f"refused, unpickling it would call {module}.{name}")
        return super().find_class(module, name)


@dataclass(frozen=True)
class Proof:
    """Counts of the tensors of a conversion."""

    matched: int
    """In a Detectron2 model, equal bit by bit, and finite."""
    expected: int
    """Tensors that the model has for a backbone."""
    left_over: int
    """Tensors that the model has no parameter for."""
    left_out: tuple[str, ...] = ()
    """Tensors of a vision transformer that Detectron2's ViT has no place for."""
    new: int = 0
    """Parameters of Detectron2's ViT that no pretraining has: relative positions, which start at zero."""

    def __str__(self) -> str:
        rest = f"{self.left_over} left over" if self.left_over else "none left over"
        rest += f"; not used by ViTDet: {', '.join(self.left_out)}" if self.left_out else ""
        rest += f"; {self.new} tables of relative positions start at zero" if self.new else ""
        return f"{self.matched} of {self.expected} tensors in Detectron2's model, all equal and finite, {rest}"

    @property
    def metrics(self) -> dict[str, int]:
        """For a record."""
        return {"tensors": self.matched, "tensors_expected": self.expected, "tensors_left_over": self.left_over}


def load_proven(model: "nn.Module", content: Converted) -> Proof:
    """Loads `content` into a Detectron2 model as Detectron2 loads the file that holds it; compares what arrived.

    Detectron2's own reader of files is not used: the file has already been read, without running what a pickle may
    name, and a path may hold a "?", which Detectron2 takes for a query.

    Raises:
        UserError: a tensor is left over, or one of the model's got none, or they differ, or are not finite.
    """
    from detectron2.checkpoint import DetectionCheckpointer

    with quiet("detectron2", "fvcore"):  # they list every tensor of the heads, which start afresh
        if is_vit(content.arch) and (frozen := _frozen_network(model)) is not None:
            frozen.load_state_dict(as_tensors(content.tensors), strict=False)
        else:
            DetectionCheckpointer(model, save_to_disk=False)._load_model(_file_content(content))
    return prove(model, content)


def prove(model: "nn.Module", content: Converted) -> Proof:
    """Compares each tensor of the conversion with the model's tensor of that name."""
    loaded, expected, left_out, new = _sides(model, content)
    missing = sorted(loaded.keys() - expected.keys())
    left_over = sorted(expected.keys() - loaded.keys())
    if missing or left_over:
        fault = f"{left_over[0]} is not in the model" if left_over else f"{missing[0]} got no weights"
        raise UserError(
            f"Detectron2's model and the {content.arch} do not fit: {len(left_over)} tensors left over, "
            f"{len(missing)} of the model's without weights; e.g. {fault}"
        )
    for name, array in expected.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} has values that are not finite (NaN or infinite)")
        if not np.array_equal(loaded[name].cpu().numpy(), array):
            raise UserError(f"{name}: Detectron2's model does not hold what was converted")
    return Proof(len(expected), len(loaded), len(left_over), left_out, new)


def _sides(
    model: "nn.Module", content: Converted
) -> tuple[dict[str, Any], dict[str, np.ndarray], tuple[str, ...], int]:
    """The model's tensors of the backbone, the conversion's, names without a place, and the number of new tensors."""
    if not is_vit(content.arch):
        loaded = {match[1]: tensor for name, tensor in model.state_dict().items() if (match := _backbone_name(name))}
        return loaded, content.tensors, (), 0
    if (frozen := _frozen_network(model)) is not None:
        return frozen.state_dict(), content.tensors, (), 0
    expected = vitdet_tensors(content.tensors, content.structure)
    state = _transformer(model).state_dict()
    loaded = {name: tensor for name, tensor in state.items() if REL_POS not in name}
    left_out = tuple(name for name in content.tensors if name not in expected)
    return loaded, expected, left_out, len(state) - len(loaded)


def _transformer(model: Any) -> Any:
    """Detectron2's ViT in a detector, or by itself."""
    backbone = getattr(model, "backbone", model)
    return getattr(backbone, "net", backbone)


def _frozen_network(model: Any) -> Any:
    """timm's module in a frozen backbone (see `transfer.vit_backbones`); None in others."""
    return getattr(_transformer(model), "network", None)


def _backbone_name(name: str) -> re.Match[str] | None:
    return None if name.endswith("num_batches_tracked") else BACKBONE_TENSOR.search(name)
