"""What kind of file a checkpoint is, by its first bytes, and its content: tensors in nested mappings."""

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pretrain import pickles
from whitebench.errors import UserError
from whitebench.files import BACKBONE
from whitebench.hashing import file_hash, plain_hash

PICKLE = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
UNPACK = "unpack it and give the file inside"
OTHER_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", f"a gzip archive: {UNPACK}"),
    (b"BZh", f"a bzip2 archive: {UNPACK}"),
    (b"\xfd7zXZ\x00", f"an xz archive: {UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive: {UNPACK}"),
    (b"Rar!", f"a rar archive: {UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"a zstandard archive: {UNPACK}"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run 'git lfs pull' where it was cloned"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras?); only PyTorch's and safetensors' files are read"),
    (b"\x93NUMPY", "a numpy array; only PyTorch's and safetensors' files are read"),
    (b"GGUF", "a GGUF file; only PyTorch's and safetensors' files are read"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"%PDF", "a PDF"),
)
"""First bytes of files that are given by mistake, and what they are."""
INDEX = re.compile(r"\.index\.json$")
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.(safetensors|bin)$")
IN_FOLDERS = (
    BACKBONE,
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order of preference: a pretraining's folder, then those of the Hugging Face hub."""
SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".pkl", ".bin", ".safetensors")


@dataclass(frozen=True)
class Content:
    tensors: Any
    """Tensors and arrays in nested mappings, with all else that the file holds."""
    metadata: Any
    """Of safetensors: a mapping of texts; else None."""
    kind: str
    """The format, for messages."""
    sha256: str
    """Of the file; of several files, of the list of their hashes."""


def checkpoint_file(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the one in a folder.

    Raises:
        UserError: no checkpoint, or several of which none is preferred by its name.
    """
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path}: checkpoint not found")
        return path
    named = next((path / name for name in IN_FOLDERS if (path / name).is_file()), None)
    if named:
        return named
    others = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES) and file.is_file())
    if len(others) == 1:
        return others[0]
    if others:
        raise UserError(f"{path}: holds several checkpoints ({', '.join(file.name for file in others[:5])}); give one")
    raise UserError(f"{path}: holds no {BACKBONE}; give a finished pretraining's folder, or a checkpoint file")


def read_content(path: Path, unsafe_pickle: bool = False) -> Content:
    """The content of a checkpoint file, or of all files of one that is split.

    Raises:
        UserError: not a checkpoint (and what it is, where that can be determined), damaged, or it would run code.
    """
    shard = SHARD.search(path.name)
    if INDEX.search(path.name):
        return _shards(path, unsafe_pickle)
    if shard:
        index = path.with_name(f"{path.name[: shard.start()]}.{shard[2]}.index.json")
        if not index.exists():
            raise UserError(f"{path}: one of {int(shard[1])} parts; their list {index.name} is missing next to it")
        return _shards(index, unsafe_pickle)
    with open(path, "rb") as file:
        head = file.read(512)
    if head[8:9] == b"{":
        return _safetensors(path)
    if head.startswith(b"PK"):
        _check_archive(path)
        return _pickled(path, unsafe_pickle, "PyTorch file", lambda: _read_zip(path))
    if head.startswith(PICKLE):
        if pickles.TORCH_MAGIC in head[:32]:
            kind, read = "PyTorch file of the old format", lambda: pickles.read_torch(path, head[1], mmap=False)
        else:
            kind, read = "pickle of arrays", lambda: pickles.read_plain(path)
        return _pickled(path, unsafe_pickle, kind, read)
    raise UserError(f"{path}: {_what_else(head)}")


def one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


def _what_else(head: bytes) -> str:
    for start, kind in OTHER_KINDS:
        if head.startswith(start):
            return f"not a checkpoint but {kind}"
    text = head.lstrip().lower()
    if not head:
        return "an empty file, or truncated to nothing; download it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "not a checkpoint but a web page (an error, or a sign-in): open the address in a browser to download it"
    if head[257:262] == b"ustar":
        return f"not a checkpoint but a tar archive: {UNPACK}"
    if text.startswith((b"{", b"[")):
        return "not a checkpoint but a JSON text"
    return "not a checkpoint (neither safetensors nor written by torch.save), or truncated"


def _safetensors(path: Path) -> Content:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return Content(tensors, file.metadata() or {}, "safetensors", file_hash(path))
    except Exception as error:  # a damaged header can raise anything
        raise UserError(f"{path}: damaged or truncated safetensors file ({one_line(error)})") from error


def _shards(index: Path, unsafe_pickle: bool) -> Content:
    """Of a checkpoint in several files, which `index` lists as the Hugging Face hub has it."""
    try:
        files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        names_only = all(isinstance(name, str) and Path(name).name == name for name in files)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index}: not a list of a checkpoint's parts ({one_line(error)})") from error
    missing = [name for name in files if not names_only or not (index.parent / name).is_file()]
    if missing or not files:
        raise UserError(f"{index}: {len(missing)} of {len(files)} parts are missing next to it, e.g. {missing[:1]}")
    tensors: dict[str, Any] = {}
    parts = []
    for name in files:
        path = index.parent / name
        with open(path, "rb") as file:
            is_safetensors = file.read(9)[8:9] == b"{"
        read = partial(_read_zip, path)
        part = _safetensors(path) if is_safetensors else _pickled(path, unsafe_pickle, "PyTorch file", read)
        tensors |= part.tensors
        parts.append(part.sha256)
    return Content(tensors, {}, f"{len(files)} parts", plain_hash(parts))


def _read_zip(path: Path) -> Any:
    return pickles.read_torch(path, pickles.protocol_of_zip(path), mmap=True)


def _check_archive(path: Path) -> None:
    """`torch.save` stores its members uncompressed: a compressed one may expand to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # a damaged archive can raise anything
        raise UserError(f"{path}: truncated or damaged ({one_line(error)})") from error
    names = [member.filename for member in members]
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise UserError(
            f"{path}: a TorchScript archive (a program); save its weights alone: "
            "torch.save(torch.jit.load(PATH).state_dict(), 'weights.pth')"
        )
    if any(name.endswith(".npy") for name in names):
        raise UserError(f"{path}: an archive of numpy arrays; only PyTorch's and safetensors' files are read")
    if not any(name.endswith("/data.pkl") for name in names):
        inside = ", ".join(names[:3]) or "nothing"
        raise UserError(f"{path}: a zip archive (it holds {one_line(inside)}), not written by torch.save: {UNPACK}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(f"{path}: not written by torch.save (its members are compressed)")


def _pickled(path: Path, unsafe: bool, kind: str, read: Callable[[], Any]) -> Content:
    import pickle

    try:
        content = _unsafely(path) if unsafe else read()
    except pickles.RefusedError as error:
        raise UserError(_refusal(path, str(error))) from error
    except pickle.UnpicklingError as error:
        reason = str(error)
        match = re.search(r"GLOBAL ([\w.]+)", reason) or re.search(r"Unsupported (?:class|function) ([\w.]+)", reason)
        refusal = _refusal(path, match[1]) if match else f"{path}: damaged, truncated or not a checkpoint"
        raise UserError(refusal if match else f"{refusal} ({one_line(reason)})") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path}: damaged, truncated or not a checkpoint ({one_line(error)})") from error
    return Content(content, None, kind, file_hash(path))


def _unsafely(path: Path) -> Any:
    import pickle
    import warnings

    import torch

    with warnings.catch_warnings(action="ignore"):
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except pickle.UnpicklingError:
            with open(path, "rb") as file:
                return pickle.load(file)


def _refusal(path: Path, name: str) -> str:
    return (
        f"{path}: refused, loading it would run more than tensors need: it asks for {name}. If you trust whoever "
        "wrote it, --unsafe-pickle loads it, with the right to do anything you can do"
    )
