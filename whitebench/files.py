"""Files that are written whole or not at all, and the names of those in a run's folder that several packages use."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from whitebench.hashing import canonical

BACKBONE = "backbone.safetensors"
"""What a pretraining leaves for others."""
CHECKPOINT, PREVIOUS, CHECKPOINT_HASHES = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.sha256"
"""The state from which a stopped run goes on; the one before it; the hashes of both."""
SPECTRA = "spectra.jsonl"
"""Spectra of the encoder's outputs during a pretraining, one line per probe."""


def write_atomically(path: Path, content: bytes) -> None:
    """Whole or not at all, also after a crash: temporary file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # unique across hosts, too
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(canonical(value), indent=1) + "\n").encode())
