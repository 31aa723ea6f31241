"""Backbones that a pretraining keeps during training (`machine.keep_every`), to be evaluated as they appear."""

import re
from pathlib import Path

from whitebench.errors import UserError

NAME = re.compile(r"backbone-epoch-(\d+)\.safetensors")


def kept_name(epoch: int) -> str:
    """Of the file that is kept after this many epochs."""
    return f"backbone-epoch-{epoch:04d}.safetensors"


def kept_epochs(epochs: int, every: int | None) -> list[int]:
    """After which of `epochs` epochs backbones are kept; not after the last, which leaves its backbone anyway."""
    return list(range(every, epochs, every)) if every else []


def kept_backbones(folder: Path, epochs: str) -> list[Path]:
    """The kept backbones in the folder of a pretraining, by epoch.

    Args:
        epochs: "all", or epochs such as "10,20".
    Raises:
        UserError: not a list of epochs, or none was kept after one of them.
    """
    paths = {int(match[1]): path for path in sorted(folder.glob("*")) if (match := NAME.fullmatch(path.name))}
    if not paths:
        raise UserError(f"{folder}: no backbones were kept during training; set machine.keep_every=10, say")
    if epochs == "all":
        return [paths[epoch] for epoch in sorted(paths)]
    parts = epochs.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--epochs: '{epochs}' is neither all nor a list of epochs such as 10,20")
    missing = [part for part in parts if int(part) not in paths]
    if missing:
        raise UserError(f"{folder}: no backbone of epoch {missing[0]}; kept: {', '.join(map(str, sorted(paths)))}")
    return [paths[epoch] for epoch in sorted(set(map(int, parts)))]
