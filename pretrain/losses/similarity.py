"""How embeddings are compared, and how far they have collapsed; shared by the methods."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.losses.whitening import at_least_float32, float32_region


def unit_rows(x: Tensor) -> Tensor:
    """x [..., D] with rows of length 1, in float32 or wider; a row of zeros stays zero."""
    x = at_least_float32(x)
    return x * _inverse_norms(x).unsqueeze(-1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over rows of |a/|a| - b/|b||^2 = 2 - 2 cos(a, b), for [..., D] each; a row of zeros counts as cos = 0."""
    return mean_pair_distance([a, b])


def mean_pair_distance(views: Sequence[Tensor]) -> Tensor:
    """The mean of `cosine_distance` over all pairs of views, each [..., D]."""
    with float32_region(views[0]):
        # Scaling inner products instead of rows saves passes over the embeddings, which cost more than small products.
        scaled = [(view, _inverse_norms(view)) for view in map(at_least_float32, views)]
        cosines = [torch.linalg.vecdot(a, b) * p * q for (a, p), (b, q) in combinations(scaled, 2)]
        return 2 - 2 * torch.stack([cosine.mean() for cosine in cosines]).mean()


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


def _inverse_norms(x: Tensor) -> Tensor:
    """[..., D] -> [...]; finite, and without gradient, at a row of zeros."""
    return x.norm(dim=-1).clamp_min(1e-12).reciprocal()
