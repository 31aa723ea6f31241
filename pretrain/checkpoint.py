"""Backbones in files: ours (`backbone.safetensors`), torchvision's and other projects', all read into one form.

Nothing is executed on reading: pickles are loaded with `weights_only=True` unless the caller explicitly says otherwise.
"""

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whitebench.errors import UserError
from whitebench.files import BACKBONE, write_atomically
from whitebench.hashing import file_hash

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "whitebench"
"""The one metadata key of our files (several keys come out in changing order); also a key of our checkpoint.pt."""
LEGACY_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Backbone:
    """A ResNet without its head."""

    arch: str
    """resnet18, resnet34, resnet50 or resnet101."""
    stem: str
    """As `pretrain.recipe.Network.stem`."""
    tensors: "dict[str, Tensor]"
    """torchvision's names without fc and batch counters; float32, on the CPU, all finite."""
    metadata: dict[str, Any]
    """What our own files say of themselves (id, dataset, mean, std, ...); empty for others."""
    origin: str
    """Which format the file had, and which of its encoders was taken."""
    sha256: str
    """Of the file."""
    stated_arch: str | None = None
    """The network's name as the file gives it, e.g. timm's; None where it gives none."""


def read_backbone(path: Path, encoder: str | None = None, unsafe_pickle: bool = False) -> Backbone:
    """The backbone in a checkpoint file, or in the folder of a pretraining run.

    Args:
        encoder: which one to take where a file holds several, by a part of its name ("momentum", "teacher", ...); the
            default is the one its project evaluates.
        unsafe_pickle: load pickles that may run code of whoever wrote them.
    Raises:
        UserError: there is no file; it is truncated or no checkpoint; it would run code; it holds no ResNet that we
            know, not all of one, or one with values that are not finite.
    """
    from pretrain.encoders import find_encoder, recognise
    from pretrain.stated_architecture import check_stated

    path = _checkpoint_file(Path(path))
    content, metadata, form = _content(path, unsafe_pickle)
    try:
        found = find_encoder(content, encoder)
        arch, stem, tensors = recognise(found.tensors, metadata.get("stem"))
        stated = check_stated(content, path, arch)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    origin = f"{form}, {found.description}"
    if stem == "cifar" and "stem" not in metadata:
        origin += "; the weights do not tell the variants of a 3x3 stem apart: taken as padding 1 without pooling"
    return Backbone(arch, stem, tensors, metadata, origin, file_hash(path), stated)


def write_backbone(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, Any]) -> None:
    """Writes `backbone.safetensors`, atomically; equal content gives equal bytes.

    Args:
        tensors: a ResNet's state dict by torchvision's names; its head and batch counters are left out.
        metadata: arch, stem, dataset, mean, std, image_size, method, recipe, id, seed, epochs; no times, no hosts.
    Raises:
        UserError: the tensors are not all of, or not only, such a ResNet; values are not finite.
    """
    from safetensors.torch import save

    from pretrain.encoders import recognise

    arch, _, kept = recognise(dict(tensors), metadata.get("stem"))
    if metadata.get("arch", arch) != arch:
        raise UserError(f"{path}: the tensors are a {arch}'s, not a {metadata['arch']}'s")
    write_atomically(path, save(kept, metadata={METADATA: json.dumps(dict(metadata), sort_keys=True)}))


def _checkpoint_file(path: Path) -> Path:
    if path.is_dir():
        if not (path / BACKBONE).exists():
            raise UserError(f"{path}: holds no {BACKBONE}; name a finished pretraining's folder, or a checkpoint file")
        return path / BACKBONE
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint")
    return path


def _content(path: Path, unsafe_pickle: bool) -> tuple[Any, dict[str, Any], str]:
    """What the file holds (tensors in nested mappings), our metadata where there is some, and the format's name."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:9] == b"{":
        return _safetensors(path)
    if head.startswith(b"PK"):
        _check_archive(path)
        return *_pickled(path, unsafe_pickle, mmap=True), "PyTorch file"
    if head.startswith(LEGACY_PICKLE):
        return *_pickled(path, unsafe_pickle, mmap=False), "PyTorch file of the old format"
    raise UserError(f"{path}: not a checkpoint (neither safetensors nor written by torch.save), or truncated")


def _safetensors(path: Path) -> tuple[Any, dict[str, Any], str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            stated = (file.metadata() or {}).get(METADATA)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: damaged or truncated safetensors file ({_one_line(error)})") from error
    return tensors, _metadata(path, stated), "safetensors"


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
            raise UserError(f"{path}: its metadata '{METADATA}' states an impossible {key}: {_one_line(repr(value))}")
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
    **dict.fromkeys(("arch", "stem", "dataset", "method", "recipe"), _is_text),
    "seed": lambda value: isinstance(value, int) and value >= 0,
    "mean": _are_shares,
    "std": lambda value: _are_shares(value) and min(value) > 0,
}
"""What later steps build on (folders, normalisation, tables), in files that anyone may have written."""


def _check_archive(path: Path) -> None:
    """`torch.save` stores its members uncompressed: a compressed one may expand to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: truncated or damaged ({_one_line(error)})") from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(f"{path}: not written by torch.save (its members are compressed)")


def _pickled(path: Path, unsafe: bool, mmap: bool) -> tuple[Any, dict[str, Any]]:
    import pickle
    import warnings

    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of the pickle's protocol: it loads, or it is refused below
            content = torch.load(path, map_location="cpu", weights_only=not unsafe, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path}: damaged, truncated or not a checkpoint ({_one_line(error)})") from error
    stated = content.get(METADATA) if isinstance(content, Mapping) else None
    return content, _metadata(path, stated)


def _refusal(path: Path, reason: str) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)", reason) or re.search(r"Unsupported (?:class|function) ([\w.]+)", reason)
    if wanted is None:
        return f"{path}: damaged, truncated or not a checkpoint ({_one_line(reason)})"
    return (
        f"{path}: refused, loading it would run more than tensors need: it asks for {wanted[1]}. If you trust whoever "
        "wrote it, --unsafe-pickle loads it, with the right to do anything you can do"
    )


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
