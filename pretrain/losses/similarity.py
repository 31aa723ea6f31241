"""How embeddings are compared, and how far they have collapsed; shared by the methods."""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pretrain.losses.whitening import at_least_float32, float32_region

LEAST_NORM = 1e-12
"""Shorter rows are divided by it."""


def unit_rows(x: Tensor) -> Tensor:
    """x [..., D] with rows of length 1, in float32 or wider; a row of zeros stays zero."""
    unit: Tensor = _UnitRows.apply(at_least_float32(x))
    return unit


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over rows of |a/|a| - b/|b||^2 = 2 - 2 cos(a, b), for [..., D] each; a row of zeros counts as cos = 0."""
    return mean_pair_distance([a, b])


def mean_pair_distance(views: Sequence[Tensor]) -> Tensor:
    """The mean of `cosine_distance` over all pairs of views, each [..., D]."""
    with float32_region(views[0]):
        cosine: Tensor = _MeanPairCosine.apply(*map(at_least_float32, views))
        return 2 - 2 * cosine


def mean_squared_difference(views: Sequence[Tensor]) -> Tensor:
    """The mean over all pairs of views, each [..., D], of their mean squared difference; in float32 or wider."""
    with float32_region(views[0]):
        pairs = combinations(map(at_least_float32, views), 2)
        return torch.stack([F.mse_loss(a, b) for a, b in pairs]).mean()


def distance_to_centre(views: Sequence[Tensor], centred_on: int | None = None) -> Tensor:
    """Mean of (z_v - c)^2 over views [N, D], images and channels; a scalar in float32 or wider.

    c is each image's mean over the first `centred_on` views (None: all); gradients flow to it, too.
    """
    with float32_region(views[0]):
        stacked = torch.stack([at_least_float32(view) for view in views])
        return (stacked - stacked[:centred_on].mean(dim=0)).square().mean()


@torch.no_grad()
def spread(view: Tensor) -> Tensor:
    """How spread out L2-normalised embeddings [N, D] are: 1 if centred on the sphere, 0 if all are the same. Scalar.

    The root of their summed variance, sqrt(1 - |mean|^2): the first thing to fall when an encoder collapses.
    """
    with float32_region(view):
        view = at_least_float32(view)
        mean = _inverse_norms(view) @ view / len(view)
        return (1 - mean.square().sum()).clamp_min(0).sqrt()


class _UnitRows(torch.autograd.Function):
    """x / |x|, y; the gradient is (g - <g, y> y) / |x|, in fewer passes over the embeddings than its parts take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = _inverse_norms(x)
        y = x * scale.unsqueeze(-1)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, y) * (scale < 1 / LEAST_NORM)
        return torch.addcmul(gradient, y, along.unsqueeze(-1), value=-1).mul_(scale.unsqueeze(-1))


class _MeanPairCosine(torch.autograd.Function):
    """Mean over rows and pairs of views of the cosine. Scaling inner products instead of rows saves passes.

    With unit rows u_v and their sum s over views, the gradient with respect to u_v is s - u_v, and with respect to the
    row itself (s - <s, u_v> u_v) / |row|.
    """

    @staticmethod
    def forward(ctx: Any, *views: Tensor) -> Tensor:
        scales = [_inverse_norms(view) for view in views]
        along = [scale.new_ones(scale.shape) for scale in scales]  # <s, u_v>
        means = []
        for i, j in combinations(range(len(views)), 2):
            cosine = torch.linalg.vecdot(views[i], views[j]).mul_(scales[i]).mul_(scales[j])
            means.append(cosine.mean())
            along[i] += cosine
            along[j] += cosine
        ctx.save_for_backward(*views, *scales, *along)
        return torch.stack(means).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.saved_tensors) // 3
        views, scales, along = (ctx.saved_tensors[start * count : (start + 1) * count] for start in range(3))
        total = views[0] * scales[0].unsqueeze(-1)
        for view, scale in zip(views[1:], scales[1:], strict=True):
            total.addcmul_(view, scale.unsqueeze(-1))
        weight = gradient / (comb(count, 2) * scales[0].numel())
        return tuple(
            _row_gradient(total, view, scale, part, weight) if needed else None
            for view, scale, part, needed in zip(views, scales, along, ctx.needs_input_grad, strict=True)
        )


def _row_gradient(total: Tensor, view: Tensor, scale: Tensor, along: Tensor, weight: Tensor) -> Tensor:
    along = torch.where(scale < 1 / LEAST_NORM, along, 1) * scale
    return torch.addcmul(total, view, along.unsqueeze(-1), value=-1).mul_((weight * scale).unsqueeze(-1))


def _inverse_norms(x: Tensor) -> Tensor:
    """[..., D] -> [...]; finite, and without gradient, at a row of zeros."""
    return x.norm(dim=-1).clamp_min(LEAST_NORM).reciprocal()
