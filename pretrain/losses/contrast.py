"""The log-partition of a batch's similarities, in which SimCLR and DCL contrast each row with all others."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.losses.gram import symmetric_product

BLOCK = 2**19
"""Entries of the similarities that are worked on together on a CPU, so that they stay in its cache."""


def mean_log_sum_exp(x: Tensor, temperature: float, excluded: Sequence[int]) -> Tensor:
    """Mean over rows i of x [M, D] of log sum_j exp(<x_i, x_j> / temperature); scalar.

    Args:
        x: float32 or wider, outside autocast.
        excluded: pairs of rows with j - i among these do not count. Symmetric: -k is in it where k is.
    """
    mean: Tensor = _MeanLogSumExp.apply(x, temperature, tuple(excluded))
    return mean


class _MeanLogSumExp(torch.autograd.Function):
    """The gradient is (P + P^T) x / (M temperature), P_ij = exp(s_ij - lse_i) of the similarities s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, temperature: float, excluded: tuple[int, ...]) -> Tensor:
        similarities = symmetric_product(x[None])[0]
        for offset in excluded:
            similarities.diagonal(offset).fill_(float("-inf"))
        # A positive factor, so that what is excluded stays -inf.
        log_sums = [block.mul_(1 / temperature).logsumexp(dim=1) for block, _ in _blocks(similarities)]
        log_sum = torch.cat(log_sums)
        ctx.save_for_backward(x, similarities, log_sum)
        ctx.temperature = temperature
        return log_sum.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, similarities, log_sum = ctx.saved_tensors
        result = torch.empty_like(x)
        with torch.autocast(device_type=x.device.type, enabled=False):
            for block, rows in _blocks(similarities):
                shares = (block - log_sum[rows, None]).exp_() + (block - log_sum).exp_()
                torch.mm(shares, x, out=result[rows])
        return result.mul_(gradient / (len(x) * ctx.temperature)), None, None


def _blocks(similarities: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Neighbouring rows and where they are; all of them on an accelerator."""
    count = len(similarities)
    step = max(1, BLOCK // count) if similarities.device.type == "cpu" else count
    for start in range(0, count, step):
        rows = slice(start, start + step)
        yield similarities[rows], rows
