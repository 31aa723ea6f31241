"""The floor of a loss: the products and decompositions that its forward and backward pass cannot do without.

Everything else (centring, norms, softmax, what autograd stores) is left out, so that no code reaches its floor. A
symmetric product counts by half, as `losses.gram` forms it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.losses.gram import symmetric_product


class Work(NamedTuple):
    run: Callable[[], object]
    times: int


class Floor(NamedTuple):
    text: str
    """What the work is."""
    parts: Sequence[Callable[[str], Work]]
    """Each makes a part of the work on a device."""


def product(m: int, k: int, n: int, count: int = 1, wide: bool = False, batch: int = 1) -> Callable[[str], Work]:
    """`count` products [m, k] x [k, n] of `batch` matrices; in float64 where `wide`."""

    def make(device: str) -> Work:
        a, b = _random(device, wide, batch, m, k), _random(device, wide, batch, k, n)
        return Work(lambda: torch.bmm(a, b), count)

    return make


def symmetric(p: int, q: int, count: int = 1, wide: bool = False, batch: int = 1) -> Callable[[str], Work]:
    def make(device: str) -> Work:
        a = _random(device, wide, batch, p, q)
        return Work(lambda: symmetric_product(a), count)

    return make


def eigen(p: int, count: int = 1, batch: int = 1) -> Callable[[str], Work]:
    """Eigenvalues and vectors in float64."""

    def make(device: str) -> Work:
        a = _positive(device, True, batch, p)
        return Work(lambda: torch.linalg.eigh(a), count)

    return make


def inverse(p: int, count: int = 1, wide: bool = False, batch: int = 1) -> Callable[[str], Work]:
    """A Cholesky factor and the inverse from it: a log-determinant and its gradient."""

    def make(device: str) -> Work:
        a = _positive(device, wide, batch, p)
        return Work(lambda: torch.cholesky_inverse(torch.linalg.cholesky_ex(a).L), count)

    return make


def factor(p: int, count: int = 1, batch: int = 1) -> Callable[[str], Work]:
    """A Cholesky factor in float64."""

    def make(device: str) -> Work:
        a = _positive(device, True, batch, p)
        return Work(lambda: torch.linalg.cholesky_ex(a), count)

    return make


def solve(p: int, q: int, count: int = 1, wide: bool = False, batch: int = 1) -> Callable[[str], Work]:
    """Triangular solves for q right-hand sides."""

    def make(device: str) -> Work:
        factor, b = torch.linalg.cholesky(_positive(device, wide, batch, p)), _random(device, wide, batch, p, q)
        return Work(lambda: torch.linalg.solve_triangular(factor, b, upper=False), count)

    return make


def sort(rows: int, n: int, count: int = 1) -> Callable[[str], Work]:
    def make(device: str) -> Work:
        a = _random(device, False, 1, rows, n)[0]
        return Work((lambda: a.sort(dim=1)) if device != "cpu" else (lambda: np.argsort(a.numpy(), axis=1)), count)

    return make


def work_of(floor: Floor, device: str) -> Callable[[], None]:
    parts = [make(device) for make in floor.parts]

    def work() -> None:
        for run, times in parts:
            for _ in range(times):
                run()

    return work


def _random(device: str, wide: bool, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64 if wide else torch.float32, device=device)


def _positive(device: str, wide: bool, batch: int, p: int) -> Tensor:
    a = _random(device, wide, batch, p, 2 * p)
    return a @ a.mT / (2 * p)
