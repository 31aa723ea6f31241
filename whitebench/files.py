"""Files that are written whole or not at all."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from whitebench.hashing import canonical


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
