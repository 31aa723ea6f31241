"""Gram matrices: symmetric products, formed by half on a CPU, with one product in the backward pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCKS = 4
"""Of rows, into which a large symmetric product is cut: 10 of 16 blocks are multiplied, the others mirrored."""
LEAST_ROWS = 256
"""Below this, and on an accelerator, one product of all blocks is faster."""


def gram(a: Tensor, scale: float, wide: torch.dtype) -> Tensor:
    """scale * A A^T [B, P, P] of A [B, P, Q], in the dtype `wide`."""
    product: Tensor = _Gram.apply(a, scale, wide)
    return product


def gram_of(x: Tensor, scale: float = 1.0) -> Tensor:
    """scale * X X^T [P, P] of one matrix X [P, Q], in its dtype."""
    return gram(x[None], scale, x.dtype)[0]


def symmetric_product(a: Tensor) -> Tensor:
    """A A^T [B, P, P] of A [B, P, Q], without gradient."""
    rows = a.shape[-2]
    if a.device.type != "cpu" or rows < LEAST_ROWS:
        return torch.bmm(a, a.mT)
    product = a.new_empty(a.shape[0], rows, rows)
    for start, end in _row_blocks(rows):
        product[:, start:end, :end] = torch.bmm(a[:, start:end], a[:, :end].mT)
        product[:, :start, start:end] = product[:, start:end, :start].mT
    return product


def accumulated_product(c: Tensor, a: Tensor, beta: float, alpha: float) -> Tensor:
    """beta C + alpha A A^T of symmetric C [P, P] and A [P, Q], without gradient."""
    rows = len(a)
    if a.device.type != "cpu" or rows < LEAST_ROWS:
        return torch.addmm(c, a, a.mT, beta=beta, alpha=alpha)
    total = torch.empty_like(c)
    for start, end in _row_blocks(rows):
        total[start:end, :end] = torch.addmm(c[start:end, :end], a[start:end], a[:end].mT, beta=beta, alpha=alpha)
        total[:start, start:end] = total[start:end, :start].mT
    return total


def _row_blocks(rows: int) -> list[tuple[int, int]]:
    ends = [rows * (index + 1) // BLOCKS for index in range(BLOCKS)]
    return list(zip([0, *ends], ends, strict=False))


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, scale: float, wide: torch.dtype) -> Tensor:
        ctx.save_for_backward(a)
        ctx.scale = scale
        return symmetric_product(a.to(wide)).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (a,) = ctx.saved_tensors
        with torch.autocast(device_type=a.device.type, enabled=False):
            return torch.bmm((gradient + gradient.mT).mul_(ctx.scale).to(a.dtype), a), None, None
