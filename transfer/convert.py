"""A backbone by torchvision's names -> Detectron2's, with a proof that every tensor arrived."""

import io
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from transfer.detectron import quiet
from whitebench.errors import UserError
from whitebench.files import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from pretrain.checkpoint import Backbone

AUTHOR, METADATA = "Whitebench", "whitebench"
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
    """float32, by Detectron2's names: stem.conv1.weight, res2.0.conv1.norm.weight, ..."""
    metadata: dict[str, Any]
    """arch, mean, std (in 0..1), parent (the pretraining's id, or sha256:...), origin; where known dataset, recipe."""

    @property
    def arch(self) -> str:
        return str(self.metadata["arch"])

    @property
    def parent(self) -> str:
        return str(self.metadata["parent"])

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


def converted(backbone: "Backbone", file: str = "") -> Converted:
    """The tensors and metadata that detection needs; ImageNet's mean and std where a checkpoint states none.

    Args:
        file: name of the checkpoint's file, which stands for a foreign one in tables.
    """
    metadata = {
        **({} if backbone.metadata else {"recipe": file}),
        **backbone.metadata,
        "arch": backbone.arch,
        "mean": list(backbone.metadata.get("mean", IMAGENET_MEAN)),
        "std": list(backbone.metadata.get("std", IMAGENET_STD)),
        "parent": parent_of(backbone),
        "origin": backbone.origin if "mean" in backbone.metadata else f"{backbone.origin}; mean and std: ImageNet's",
    }
    return Converted(convert(backbone), metadata)


def parent_of(backbone: "Backbone") -> str:
    """Id of the pretraining's record; "sha256:<hex>" of the file where it is not from this suite."""
    return str(backbone.metadata.get("id") or f"sha256:{backbone.sha256}")


def write_d2(path: Path, content: Converted) -> None:
    """The file that Detectron2 loads by MODEL.WEIGHTS. Atomic; equal content gives equal bytes."""
    write_atomically(path, pickle.dumps(_file_content(content), protocol=4))


def _file_content(content: Converted) -> dict[str, Any]:
    tensors = {name: np.ascontiguousarray(content.tensors[name]) for name in sorted(content.tensors)}
    return {
        "model": tensors,
        "__author__": AUTHOR,
        "matching_heuristics": True,
        METADATA: json.dumps(content.metadata, sort_keys=True),
    }


def read_d2(path: Path) -> Converted:
    """What `write_d2` wrote. Nothing but arrays and plain values is unpickled.

    Raises:
        UserError: another file, or a damaged one.
    """
    try:
        file_content = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
        return Converted(dict(file_content["model"]), json.loads(file_content[METADATA]))
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

    def __str__(self) -> str:
        rest = self.left_over or "none"
        return (
            f"{self.matched} of {self.expected} tensors in Detectron2's model, all equal and finite, {rest} left over"
        )

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
        DetectionCheckpointer(model, save_to_disk=False)._load_model(_file_content(content))
    return prove(model, content)


def prove(model: "nn.Module", content: Converted) -> Proof:
    """Compares each tensor of the conversion with the model's tensor of that name."""
    loaded = {match[1]: tensor for name, tensor in model.state_dict().items() if (match := _backbone_name(name))}
    missing = sorted(loaded.keys() - content.tensors.keys())
    left_over = sorted(content.tensors.keys() - loaded.keys())
    if missing or left_over:
        fault = f"{left_over[0]} is not in the model" if left_over else f"{missing[0]} got no weights"
        raise UserError(
            f"Detectron2's model and the {content.arch} do not fit: {len(left_over)} tensors left over, "
            f"{len(missing)} of the model's without weights; e.g. {fault}"
        )
    for name, array in content.tensors.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} has values that are not finite (NaN or infinite)")
        if not np.array_equal(loaded[name].cpu().numpy(), array):
            raise UserError(f"{name}: Detectron2's model does not hold what was converted")
    return Proof(len(content.tensors), len(loaded), len(left_over))


def _backbone_name(name: str) -> re.Match[str] | None:
    return None if name.endswith("num_batches_tracked") else BACKBONE_TENSOR.search(name)
