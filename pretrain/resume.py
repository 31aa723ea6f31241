"""The state from which a stopped run continues: `checkpoint.pt`, replaced atomically, and verified before use.

`checkpoint.sha256` lists the hashes of the newest checkpoint and of the one before. It is written before the new file
takes its name, so that at every moment at least one file on disk has its hash in the list.
"""

import os
from pathlib import Path
from typing import IO, Any

from whitebench.errors import UserError
from whitebench.files import CHECKPOINT, CHECKPOINT_HASHES, PREVIOUS, write_atomically
from whitebench.hashing import file_hash


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings and containers of them only) as the folder's checkpoint.

    Raises:
        OSError: the disk is full, say; the checkpoint before stays.
    """
    fresh = folder / f".{CHECKPOINT}.{os.getpid()}.tmp"
    try:
        with open(fresh, "wb") as file:
            _write(state, file)
            file.flush()
            os.fsync(file.fileno())
        hashes = _hashes(folder)
        current = _whole(folder / CHECKPOINT, hashes)
        # A run that was killed between the two renames below has left only the previous file.
        intact = current or _whole(folder / PREVIOUS, hashes)
        write_atomically(folder / CHECKPOINT_HASHES, "\n".join([file_hash(fresh), *intact]).encode())
        if current:
            os.replace(folder / CHECKPOINT, folder / PREVIOUS)
        os.replace(fresh, folder / CHECKPOINT)
    finally:
        fresh.unlink(missing_ok=True)


def load(folder: Path) -> dict[str, Any] | None:
    """The newest intact checkpoint of the folder; None if it has no checkpoint.

    Raises:
        UserError: there are checkpoints, but none has the bytes that were written.
    """
    import torch

    existing = [path for path in (folder / CHECKPOINT, folder / PREVIOUS) if path.exists()]
    hashes = _hashes(folder)
    for path in existing:
        if _whole(path, hashes):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
    if existing:
        raise UserError(
            f"{folder}: damaged: {', '.join(p.name for p in existing)}; remove the folder to start this run afresh"
        )
    return None


def forget_previous(folder: Path) -> None:
    """Drops the older checkpoint of a run that is done."""
    (folder / PREVIOUS).unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """Drops all checkpoints, of a run whose result needs none."""
    for name in (CHECKPOINT, PREVIOUS, CHECKPOINT_HASHES):
        (folder / name).unlink(missing_ok=True)


def _write(state: dict[str, Any], file: IO[bytes]) -> None:
    import torch

    try:
        torch.save(state, file)
    except RuntimeError as error:  # its writer cannot close a file that it could not write, and hides the reason
        reason = error.__context__
        if isinstance(reason, OSError):
            raise OSError(reason.errno, reason.strerror, file.name) from error
        raise


def _whole(path: Path, hashes: list[str]) -> list[str]:
    """The file's hash if it is one of the known, else nothing."""
    digest = file_hash(path) if path.exists() else ""
    return [digest] if digest in hashes else []


def _hashes(folder: Path) -> list[str]:
    path = folder / CHECKPOINT_HASHES
    return path.read_text().split() if path.exists() else []
