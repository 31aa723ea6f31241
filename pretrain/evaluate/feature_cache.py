"""Features of a frozen backbone, computed once for all evaluations that need the same ones.

Linear probe and k-NN of a backbone read the same images through the same network. Whichever runs first leaves its
features in `$WHITEBENCH_RUNS/.features`, under the hash of all that determines their bits: the backbone's file, the
data, the transform, the loader, threads, versions, processor and code. The folder may be removed at any time.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from whitebench.code_hash import code_hash, files_behind
from whitebench.environment import machine
from whitebench.errors import UserError
from whitebench.files import write_atomically
from whitebench.hashing import content_hash
from whitebench.records import runs_root

if TYPE_CHECKING:
    from pretrain.checkpoint import Backbone

FOLDER = ".features"
LIMIT = "WHITEBENCH_FEATURES_GB"
"""Environment variable: how much of the disk the folder may take; 0 turns the cache off."""
DEFAULT_GB = 2.0
LARGEST_PART = 0.5
"""Of the limit, that one file may take. ImageNet's validation split takes 0.4 GB with a ResNet-50."""
ENTRY = "pretrain/evaluate/features.py"
ANYWHERE = ("host", "submitit", "pandas")
"""Entries of a record's environment on which no feature depends."""


def cached_features(
    backbone: "Backbone", settings: dict[str, Any], compute: Callable[[], tuple[Tensor, Tensor]], device: str
) -> tuple[Tensor, Tensor]:
    """Features float32 [N, F] and labels int64 [N]: from the cache, or as `compute` returns them, which joins it.

    Args:
        settings: what determines the features besides the backbone, the code and the machine.
        device: where those from the cache are put.
    """
    path = runs_root() / FOLDER / f"{_key(backbone, settings)}.safetensors"
    limit = _limit_bytes()
    stored = _read(path) if limit else None
    if stored is not None:
        return stored[0].to(device), stored[1].to(device)
    features, labels = compute()
    if (features.nbytes + labels.nbytes) <= LARGEST_PART * limit:
        with contextlib.suppress(OSError):  # a full disk, or one that may not be written, costs only time
            _write(path, features, labels, limit)
    return features, labels


def _key(backbone: "Backbone", settings: dict[str, Any]) -> str:
    return content_hash({
        "backbone": [backbone.sha256, backbone.arch, backbone.stem, backbone.origin],
        "settings": settings,
        "machine": {name: value for name, value in machine().items() if name not in ANYWHERE},
        "code": code_hash(files_behind(ENTRY)),
    })  # fmt: skip


def _limit_bytes() -> float:
    text = os.environ.get(LIMIT, "")
    try:
        limit = float(text or DEFAULT_GB) * 1e9
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise UserError(f"{LIMIT}={text}: not a number of gigabytes (0 turns the cache of features off)")
    return limit


def _read(path: Path) -> tuple[Tensor, Tensor] | None:
    """None where there is no such file, or not a whole one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = load(path.read_bytes())
        path.touch()  # the least recently used are removed first
        return content["features"], content["labels"]
    except (OSError, SafetensorError, KeyError):
        return None


def _write(path: Path, features: Tensor, labels: Tensor, limit: float) -> None:
    from safetensors.torch import save

    content = save({"features": features.cpu().contiguous(), "labels": labels.cpu()})
    write_atomically(path, content)
    _remove_oldest(path.parent, limit)


def _remove_oldest(folder: Path, limit: float) -> None:
    files = []
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            state = path.stat()
            files.append((state.st_mtime_ns, state.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files)[:-1]:
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size
