"""The source files on which a pretraining's result hangs, and their hashes: a later change makes its rows stale."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
METHODS, DATA = ROOT / "pretrain" / "methods", ROOT / "pretrain" / "data"
AUGMENTATION = (
    *("views/random_parameters.py", "views/view_sets.py", "views/crop.py", "views/simd.py", "views/colour.py"),
    *("views/colour_batched.py", "views/deterministic_sums.py", "views/render.py", "loaders/device.py"),
)
"""The files of `pretrain/data` that determine a view's pixels."""


def method_hash(name: str) -> str | None:
    """sha256 (hex) of the method's file; None where there is no method of that name (any more)."""
    path = METHODS / f"{name}.py"
    return _files_hash([path]) if path.is_file() and path.parent == METHODS else None


def augmentation_hash() -> str:
    """sha256 (hex) of the files that determine a view's pixels.

    Raises:
        FileNotFoundError: one of `AUGMENTATION` has another name now.
    """
    return _files_hash([DATA / name for name in AUGMENTATION])


def _files_hash(paths: list[Path]) -> str:
    """Of one file: that of its bytes, as `content.file_hash` gives it."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
