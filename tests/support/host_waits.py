"""Records where a computation would hold the host until an accelerator has caught up; the CPU plays the accelerator."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "item"),
    *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"),
    *("_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq"),
    *("linalg_inv", "inverse", "linalg_cholesky", "cholesky", "cholesky_inverse", "linalg_lu_factor", "linalg_solve"),
}
"""Operations whose CUDA kernels copy a value to the host and wait: results whose shape depends on values, and those of
torch.linalg that check LAPACK's status themselves (the `_ex` variants leave it on the device)."""
READING = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
"""Methods of a tensor that hand values to the host. On a CPU tensor some of them call no operation."""


class _Operations(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.waits.append(name)
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = (torch.bool, torch.uint8)
            if any(isinstance(index, Tensor) and index.dtype in masks for index in args[1]):
                self.waits.append("boolean index")
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits() -> Iterator[list[str]]:
    """The waits within the block, in order: names of operations, "boolean index", or names of READING."""
    waits: list[str] = []

    def recording(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            waits.append(name)
            with torch._C._DisableTorchDispatch():  # what the reading itself calls is not a second wait
                return original(tensor, *args, **kwargs)

        return read

    patches: dict[str, Any] = {name: recording(name) for name in READING}
    with mock.patch.multiple(Tensor, **patches), _Operations(waits):
        yield waits
