"""Canonical JSON of configurations, and the hashes and ids derived from it."""

import hashlib
import json
import math
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ADDED = "added"
PLAIN = {type(None), bool, int, str}


def added(default: T) -> T:
    """A dataclass field added later: at its default it is left out of ids, so that ids of older runs stay valid.

    The default must therefore never change; another behaviour needs another key.
    """
    value: T = field(default=default, metadata={ADDED: True})
    return value


def canonical(value: Any) -> Any:
    """Plain JSON of dataclasses, paths and tuples; floats that JSON cannot hold (NaN, infinities) become None."""
    if type(value) in PLAIN or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        included = (f for f in fields(value) if ADDED not in f.metadata or getattr(value, f.name) != f.default)
        return {f.name: canonical(getattr(value, f.name)) for f in included}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a scalar of numpy or torch
        return canonical(value.item())
    raise TypeError(f"{type(value).__name__} cannot be stored in a record: {value!r}")


def content_hash(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`: independent of the order of keys."""
    return plain_hash(canonical(value))


def plain_hash(plain: Any) -> str:
    """`content_hash` of a value that is canonical already, such as one read from JSON."""
    return hashlib.sha256(_ENCODER.encode(plain).encode()).hexdigest()


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_id(label: str, config: Any) -> str:
    """`<label>-<12 hex digits of the config's hash>`: the label is for readers, the hash identifies."""
    return f"{label}-{content_hash(config)[:12]}"
