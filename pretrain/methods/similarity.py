"""How embeddings are compared, and how far they have collapsed; shared by the methods."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from pretrain.whitening import at_least_float32, float32_region


def unit_rows(x: Tensor) -> Tensor:
    """x [..., D] with rows of length 1, in float32 or wider; a row of zeros stays zero."""
    x = at_least_float32(x)
    return x * x.norm(dim=-1, keepdim=True).clamp_min(1e-12).reciprocal()


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over rows of |a/|a| - b/|b||^2 = 2 - 2 cos(a, b), for [..., D] each; a row of zeros counts as cos = 0."""
    return mean_pair_distance([a, b])


def mean_pair_distance(views: Sequence[Tensor]) -> Tensor:
    """The mean of `cosine_distance` over all pairs of views, each [..., D]."""
    with float32_region(views[0]):
        pairs = combinations([unit_rows(view) for view in views], 2)
        return 2 - 2 * torch.stack([torch.linalg.vecdot(a, b).mean() for a, b in pairs]).mean()


@torch.no_grad()
def spread(views: Sequence[Tensor]) -> Tensor:
    """How spread out L2-normalised embeddings are: 1 if uniform on the sphere, 0 if all are the same. Scalar.

    sqrt(D) times the mean standard deviation of a channel (Chen and He, CVPR 2021, section 4.1), over the first view.
    """
    unit = unit_rows(views[0])
    return unit.std(dim=0).mean() * unit.shape[-1] ** 0.5
