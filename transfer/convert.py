"""A backbone by torchvision's names -> Detectron2's, with a proof that every tensor arrived."""

import io
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.detectron import quiet
from whitebench.errors import UserError
from whitebench.files import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from pretrain.checkpoint import Backbone

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUTHOR, METADATA = "Whitebench", "whitebench"
D2_FILE = "d2.pkl"
RENAMED = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}."),
    (r"\bbn(\d)\.", r"conv\1.norm."),
    (r"\bdownsample\.0\.", "shortcut."),
    (r"\bdownsample\.1\.", "shortcut.norm."),
)
OF_A_BACKBONE = re.compile(r"(?:^|\.)((?:stem|res[2-5])\.(?:conv1|\d).*)$")
"""Where a Detectron2 model keeps the tensors that come from a backbone (res5 of a C4 model stands in its head)."""
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
    """layer1.0.downsample.1.weight -> res2.0.shortcut.norm.weight"""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def converted(backbone: "Backbone", file: str = "") -> Converted:
    """Tensors and what detection needs to know besides; ImageNet's mean and std where a checkpoint states none.

    Args:
        file: name of the checkpoint's file, by which a foreign one goes in tables.
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
    """Id of the pretraining's record; "sha256:<hex>" of the file where it is not one of ours."""
    return str(backbone.metadata.get("id") or f"sha256:{backbone.sha256}")


def write_d2(path: Path, content: Converted) -> None:
    """The file that Detectron2 loads by MODEL.WEIGHTS. Atomic; equal content gives equal bytes."""
    tensors = {name: np.ascontiguousarray(content.tensors[name]) for name in sorted(content.tensors)}
    whole = {
        "model": tensors,
        "__author__": AUTHOR,
        "matching_heuristics": True,
        METADATA: json.dumps(content.metadata, sort_keys=True),
    }
    write_atomically(path, pickle.dumps(whole, protocol=4))


def read_d2(path: Path) -> Converted:
    """What `write_d2` wrote. Nothing but arrays and plain values is unpickled.

    Raises:
        UserError: another file, or a damaged one.
    """
    try:
        whole = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
        return Converted(dict(whole["model"]), json.loads(whole[METADATA]))
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
    """Counts of a conversion's tensors: in a Detectron2 model, bit by bit and finite; its places; without a place."""

    matched: int
    expected: int
    left_over: int

    def __str__(self) -> str:
        left = self.left_over or "none"
        return (
            f"{self.matched} of {self.expected} tensors in Detectron2's model, all equal and finite, {left} left over"
        )

    @property
    def metrics(self) -> dict[str, int]:
        """For a record."""
        return {"tensors": self.matched, "tensors_expected": self.expected, "tensors_left_over": self.left_over}


def load_proven(model: "nn.Module", path: Path, content: Converted) -> Proof:
    """Loads `path`, which holds `content`, into a Detectron2 model by Detectron2's own loader; compares what arrived.

    Raises:
        UserError: a tensor found no place, or a place of the backbone no tensor, or they differ, or are not finite.
    """
    from detectron2.checkpoint import DetectionCheckpointer

    with quiet("detectron2", "fvcore"):  # they list every tensor of the heads, which start afresh
        DetectionCheckpointer(model, save_to_disk=False).load(str(path))
    return prove(model, content)


def prove(model: "nn.Module", content: Converted) -> Proof:
    """Compares each tensor of the conversion with the one place it has in `model`."""
    places = {found[1]: tensor for name, tensor in model.state_dict().items() if (found := _place(name))}
    unfilled = sorted(places.keys() - content.tensors.keys())
    left_over = sorted(content.tensors.keys() - places.keys())
    if unfilled or left_over:
        fault = f"{left_over[0]} found no place" if left_over else f"{unfilled[0]} got no weights"
        raise UserError(
            f"Detectron2's model and the {content.arch} do not fit: {len(left_over)} tensors left over, "
            f"{len(unfilled)} places unfilled; e.g. {fault}"
        )
    for name, array in content.tensors.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} has values that are not finite (NaN or infinite)")
        if not np.array_equal(places[name].cpu().numpy(), array):
            raise UserError(f"{name}: Detectron2's model does not hold what was converted")
    return Proof(len(content.tensors), len(places), len(left_over))


def _place(name: str) -> re.Match[str] | None:
    return None if name.endswith("num_batches_tracked") else OF_A_BACKBONE.search(name)
