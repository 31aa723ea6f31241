"""How far embeddings are from a standard Gaussian, seen through one-dimensional projections ("slices").

SIGReg compares characteristic functions (Epps and Pulley's statistic), VISReg sorted values with normal quantiles. Both
go through the slices in blocks: neither the projections [N, K] nor anything times the number of grid points is kept.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.distributed import sum_with_gradient, world_size
from pretrain.losses.whitening import at_least_float32, float32_region

BLOCK = {"cpu": 2**16, "cuda": 2**24}
"""Projected values that are worked on at once: on a CPU as many as its cache holds."""


class Grid(NamedTuple):
    """Where characteristic functions are compared: points at start, start + step, ..., with trapezoidal weights."""

    start: float
    step: float
    points: int
    weight: float
    """Of an inner point; half of it at both ends."""


def half_line(points: int = 17, reach: float = 3.0) -> Grid:
    """0 to `reach`; each point counts twice, since the integrand is even (LeJEPA's official code)."""
    step = reach / (points - 1)
    return Grid(0.0, step, points, 2 * step)


def whole_line(points: int = 10, reach: float = 3.0) -> Grid:
    """-reach to reach (eb_jepa)."""
    step = 2 * reach / (points - 1)
    return Grid(-reach, step, points, step)


def random_directions(width: int, slices: int, generator: torch.Generator | None = None) -> Tensor:
    """[width, slices], float32: columns of length 1 in random directions, where the generator lives."""
    device = generator.device if generator else torch.device("cpu")
    drawn = torch.randn(width, slices, generator=generator, device=device)
    return drawn / drawn.norm(dim=0, keepdim=True).clamp_min(1e-12)


def epps_pulley(x: Tensor, directions: Tensor, grid: Grid, scaled: bool = True, across_ranks: bool = False) -> Tensor:
    """Mean over slices of  n sum_j w_j phi_j |ecf(t_j) - phi_j|^2,  phi_j = exp(-t_j^2 / 2),  ecf over the n rows.

    1.05 on average for a standard Gaussian sample, whatever its size.

    Args:
        x: [n, D]. directions: [D, K], columns of length 1; no gradient flows to them.
        scaled: whether to multiply by the factor n.
        across_ranks: ecf and n are of the rows of all processes; each of them returns the same.
    Returns:
        Scalar, in float32 or wider.
    """
    with float32_region(x):
        x = at_least_float32(x)
        means = _CharacteristicFunction.apply(x, directions.to(x), grid)
        count = len(x)
        if across_ranks:
            means, count = sum_with_gradient(means) / world_size(), count * world_size()
        t = grid.start + grid.step * torch.arange(grid.points, dtype=x.dtype, device=x.device)
        phi = (-t.square() / 2).exp()
        weights = grid.weight * phi
        weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2
        cosine, sine = means.unbind(-1)
        statistic = weights @ ((cosine - phi[:, None]).square() + sine.square())
        return statistic.mean() * (count if scaled else 1)


def sorted_distance(y: Tensor, directions: Tensor) -> Tensor:
    """Mean over slices and rows of (sorted projections - normal quantiles)^2, quantiles at i / (n + 1), i = 1 ... n.

    Args:
        y: [n, D]. directions: [D, K], columns of length 1; no gradient flows to them.
    """
    with float32_region(y):
        y = at_least_float32(y)
        distance: Tensor = _SortedDistance.apply(y, directions.to(y), normal_quantiles(len(y), y.dtype).to(y.device))
        return distance


def normal_quantiles(n: int, dtype: torch.dtype) -> Tensor:
    """[n]: quantiles of the standard normal distribution at i / (n + 1)."""
    share = 2 * torch.arange(1, n + 1, dtype=torch.float64) / (n + 1) - 1
    return (2**0.5 * torch.erfinv(share)).to(dtype)


def _blocks(directions: Tensor, rows: int) -> tuple[Tensor, ...]:
    return directions.split(max(8, BLOCK.get(directions.device.type, 2**20) // max(1, rows)), dim=1)


class _CharacteristicFunction(torch.autograd.Function):
    """Means over the rows of cos(p t_j) and sin(p t_j), p = x A: [points, K, 2].

    e^(i p t_j) is a power of e^(i p step): one sine and cosine a value, then complex products, and in the backward pass
    Horner's scheme.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, directions: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(x, directions)
        ctx.grid = grid
        blocks = []
        for block in _blocks(directions, len(x)):
            projected = x @ block
            turn = _unit_circle(projected, grid.step)
            value = _unit_circle(projected, grid.start)
            means = [value.mean(dim=0)]
            for _ in range(1, grid.points):
                value *= turn
                means.append(value.mean(dim=0))
            blocks.append(torch.stack(means))
        return torch.view_as_real(torch.cat(blocks, dim=1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, directions = ctx.saved_tensors
        grid: Grid = ctx.grid
        t = grid.start + grid.step * torch.arange(grid.points, dtype=x.dtype, device=x.device)
        factors = torch.view_as_complex(gradient.contiguous()).conj().resolve_conj() * (t[:, None] / len(x))
        total = torch.zeros_like(x)
        first = 0
        for block in _blocks(directions, len(x)):
            projected = x @ block
            turn = _unit_circle(projected, grid.step)
            rows = factors[:, first : first + block.shape[1]]
            value = rows[-1].expand_as(turn).clone()
            for j in range(grid.points - 2, -1, -1):
                torch.addcmul(rows[j], value, turn, out=value)
            if grid.start:
                value *= _unit_circle(projected, grid.start)
            total.addmm_(value.imag, block.mT, alpha=-1)
            first += block.shape[1]
        return total, None, None


def _unit_circle(p: Tensor, t: float) -> Tensor:
    """e^(i p t), complex."""
    if t == 0:
        return torch.ones_like(p, dtype=p.dtype.to_complex())
    return torch.polar(torch.ones_like(p), p * t)


class _SortedDistance(torch.autograd.Function):
    """The gradient is formed along with the value: only [n, D] of it is kept."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, directions: Tensor, quantiles: Tensor) -> Tensor:
        scale = 1 / (len(y) * directions.shape[1])
        total = torch.zeros((), dtype=y.dtype, device=y.device)
        gradient = torch.zeros_like(y)
        for block in _blocks(directions, len(y)):
            values, order = _sorted_rows(block.mT @ y.mT)  # a slice's values lie together in memory
            values -= quantiles
            total += values.square().sum()
            if ctx.needs_input_grad[0]:
                gradient.addmm_(torch.empty_like(values).scatter_(1, order, values).mT, block.mT)
        ctx.save_for_backward(gradient.mul_(2 * scale))
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None


def _sorted_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """As x.sort(dim=1). On a CPU NumPy sorts short rows several times as fast, with the processor's vector units."""
    if x.device.type != "cpu":
        return x.sort(dim=1)
    order = torch.from_numpy(np.argsort(x.numpy(), axis=1))
    return x.gather(1, order), order
