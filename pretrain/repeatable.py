"""What makes a run repeatable: seeds derived from what they are for, deterministic kernels, a known device."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal


def derive_seed(*parts: int | str) -> int:
    """A seed (63 bits) that depends on all `parts` and on nothing else, e.g. on (seed, step, rank)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


_planning = ContextVar("planning", default=False)


@contextmanager
def planning_for_elsewhere() -> Iterator[None]:
    """Meanwhile a device need not be on this machine: a sweep is planned on a login node, which has no GPU."""
    token = _planning.set(True)
    try:
        yield
    finally:
        _planning.reset(token)


def resolve_device(device: str) -> Literal["cpu", "cuda"]:
    """The device that `device` (auto, cpu or cuda) stands for: auto is CUDA if there is any.

    Raises:
        UserError: cuda is asked for, and there is none.
    """
    if device == "cuda" and _planning.get():
        return "cuda"
    import torch

    from whitebench.errors import UserError

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("device=cuda, but torch sees no CUDA device here ('make doctor' says why); use device=cpu")
    return "cuda" if available and device != "cpu" else "cpu"


def make_repeatable(threads: int) -> None:
    """Deterministic kernels, full float32 products (no TF32), and a fixed number of intra-op threads."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # filling costs 5 %
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False  # of convolutions; the next line is of products alone
    torch.set_float32_matmul_precision("highest")
