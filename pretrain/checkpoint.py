"""Backbones in files: ours (`backbone.safetensors`), torchvision's and other projects', all read into one form.

Nothing is executed on reading: pickles are loaded with `weights_only=True` unless the caller explicitly says otherwise.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.architectures import TIMM
from pretrain.checkpoint_files import Content, checkpoint_file, one_line, read_content
from whitebench.errors import UserError
from whitebench.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.vit_layout import Recognised

METADATA = "whitebench"
"""The one metadata key of our files (several keys come out in changing order); also a key of our checkpoint.pt."""
MATCHING = "matching_heuristics"
"""A key of files for Detectron2: how it is to match names."""


@dataclass(frozen=True)
class Backbone:
    """A network without its head."""

    arch: str
    """resnet18, resnet34, resnet50 or resnet101 (torchvision's), or `timm:NAME`."""
    stem: str
    """As `pretrain.recipe_sections.Network.stem`; "imagenet" of networks of timm, which have none to choose."""
    tensors: "dict[str, Tensor]"
    """torchvision's or timm's names without head and batch counters; float32, on the CPU, all finite."""
    metadata: dict[str, Any]
    """What our own files say of themselves (id, dataset, mean, std, ...); empty for others."""
    origin: str
    """Which format the file had, and which of its encoders was taken."""
    sha256: str
    """Of the file."""
    stated_arch: str | None = None
    """The network's name as the file gives it, e.g. timm's; None where it gives none."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of a network of timm: keyword arguments of `timm.create_model` that rebuild it."""

    @property
    def is_timm(self) -> bool:
        return self.arch.startswith(TIMM)


def read_backbone(path: Path, encoder: str | None = None, unsafe_pickle: bool = False) -> Backbone:
    """The backbone in a checkpoint file, or in the folder of a pretraining run or of the Hugging Face hub.

    Args:
        encoder: which one to take where a file holds several, by a part of its name ("momentum", "teacher", ...); the
            default is the one its project evaluates.
        unsafe_pickle: load pickles that may run code of whoever wrote them.
    Raises:
        UserError: the file does not exist; it is truncated or not a checkpoint; it would run code; it holds no network
            of a known kind, not all of one, or one with values that are not finite; it states another network.
    """
    from pretrain.encoders import find_encoder, recognise
    from pretrain.stated_architecture import UNSTATED, check_stated
    from pretrain.stated_transformer import recognise_transformer_or_convnext

    path = checkpoint_file(Path(path))
    content = read_content(path, unsafe_pickle)
    metadata = _metadata(path, _stated(content))
    if str(metadata.get("arch", "")).startswith(TIMM):
        _refuse_converted(path, content, metadata)
        return _own_timm(path, content, metadata, encoder)
    try:
        match = find_encoder(content.tensors, encoder)
        recognised = recognise_transformer_or_convnext(match.tensors, match.prefix, content.tensors, path)
        if recognised is not None:
            return _of_timm(recognised, f"{content.kind}, {match.description}", metadata, content.sha256)
        arch, stem, tensors = recognise(match.tensors, metadata.get("stem"))
        stated = arch if "arch" in metadata else check_stated(content.tensors, path, arch)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    origin = f"{content.kind}, {match.description}"
    if stem == "cifar" and "stem" not in metadata:
        origin += "; the weights do not tell the variants of a 3x3 stem apart: taken as padding 1 without pooling"
    if stated is None:
        origin += f"; {UNSTATED}"
    return Backbone(arch, stem, tensors, metadata, origin, content.sha256, stated)


def _of_timm(recognised: "Recognised", origin: str, metadata: dict[str, Any], sha256: str) -> Backbone:
    return Backbone(
        recognised.architecture,
        "imagenet",
        recognised.tensors,
        metadata,
        origin + recognised.remark,
        sha256,
        recognised.architecture,
        recognised.options,
    )


def _own_timm(path: Path, content: Content, metadata: dict[str, Any], encoder: str | None) -> Backbone:
    """From our own backbone.safetensors or checkpoint.pt, whose metadata names the network and its options."""
    from pretrain.encoders import find_encoder
    from pretrain.timm_layout import check_options, complete, tensor_shapes

    arch, options = metadata["arch"], metadata.get("options", {})
    try:
        check_options(options)
        match = find_encoder(content.tensors, encoder, anchor=next(iter(tensor_shapes(arch, options))))
        tensors = complete(arch, options, match.tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    origin = f"{content.kind}, {match.description}"
    return Backbone(arch, "imagenet", tensors, metadata, origin, content.sha256, arch, options)


def _refuse_converted(path: Path, content: Content, metadata: dict[str, Any]) -> None:
    """Raises `UserError` for a transformer that `--convert-only` wrote: LayerScale and patches cannot be restored."""
    if content.metadata is None and MATCHING in content.tensors:
        pretraining, file = metadata.get("id"), metadata.get("recipe", "the file that was converted")
        raise UserError(
            f"{path}: a {one_line(metadata['arch'])} in the form for Detectron2, which is not read back; give what it "
            f"was converted from: {f'the folder of the pretraining {pretraining}' if pretraining else file}"
        )


def write_backbone(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, Any]) -> None:
    """Writes `backbone.safetensors`, atomically; equal content gives equal bytes.

    Args:
        tensors: a state dict by torchvision's or timm's names; its head and batch counters are left out.
        metadata: arch, stem (of torchvision's ResNets) or options (of timm's networks), dataset, mean, std,
            image_size, method, recipe, id, seed, epochs; no times, no hosts.
    Raises:
        UserError: the tensors are not all of, or not only, such a network; values are not finite.
    """
    from safetensors.torch import save

    backbone = complete_backbone(tensors, metadata)
    write_atomically(path, save(backbone, metadata={METADATA: json.dumps(dict(metadata), sort_keys=True)}))


def complete_backbone(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, Any]) -> "dict[str, Tensor]":
    """What `write_backbone` writes: all tensors of the network, float32, on the CPU.

    Raises:
        UserError: see `write_backbone`.
    """
    from pretrain.encoders import recognise
    from pretrain.timm_layout import complete

    arch = str(metadata.get("arch", ""))
    if arch.startswith(TIMM):
        backbone = complete(arch, metadata.get("options", {}), tensors)
    else:
        arch, _, backbone = recognise(dict(tensors), metadata.get("stem"))
    if metadata.get("arch", arch) != arch:
        raise UserError(f"the tensors are a {arch}'s, not a {metadata['arch']}'s")
    return backbone


def _stated(content: Content) -> Any:
    """The JSON in one of our own files: backbone.safetensors, checkpoint.pt, or one converted to Detectron2."""
    holder = content.tensors if content.metadata is None else content.metadata
    return holder.get(METADATA) if isinstance(holder, Mapping) else None


def _metadata(path: Path, stated: Any) -> dict[str, Any]:
    if stated is None:
        return {}
    try:
        metadata = json.loads(stated)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: its metadata '{METADATA}' is not JSON") from error
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: its metadata '{METADATA}' is not a mapping")
    for key, value in metadata.items():
        if key in STATED and not STATED[key](value):
            raise UserError(f"{path}: its metadata '{METADATA}' states an impossible {key}: {one_line(repr(value))}")
    return metadata


def _is_name(value: Any) -> bool:
    """A word that can be part of a folder's name, whoever wrote it."""
    return isinstance(value, str) and value.isprintable() and re.fullmatch(r"[^/\\.][^/\\]{0,199}", value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _are_shares(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_share, value))


STATED: dict[str, Callable[[Any], bool]] = {
    "id": _is_name,
    **dict.fromkeys(("arch", "architecture", "stem", "dataset", "eval_dataset", "method", "recipe"), _is_text),
    **dict.fromkeys(("image_size", "eval_resize"), lambda value: isinstance(value, int) and 0 < value <= 8192),
    **dict.fromkeys(("seed", "kept_epoch"), lambda value: isinstance(value, int) and value >= 0),
    "mean": _are_shares,
    "std": lambda value: _are_shares(value) and min(value) > 0,
}
"""What later steps build on (folders, normalisation, tables), in files that anyone may have written."""
