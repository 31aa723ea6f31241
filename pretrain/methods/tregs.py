"""T-REGS: the minimum spanning tree of the embeddings is made long, on a sphere that they are drawn to.

Mordacq et al., "T-REGS: Minimum Spanning Tree Regularization for Self-Supervised Learning", NeurIPS 2025 (arXiv
2510.23484), by the paper's formulas: its code could not be obtained. The tree is that of the images of all processes
(the paper says nothing of gathering), so that several processes train as one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.checks import check_images
from pretrain.losses.gram import gram_of
from pretrain.losses.similarity import mean_squared_difference, spread
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Method, Step
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.ranges import NonNegativeFloat


@strict
class Config:
    invariance_weight: NonNegativeFloat = 10.0
    """beta. The paper asks for beta >= gamma >= lambda."""
    length_weight: NonNegativeFloat = 0.2
    """gamma, of the tree's length."""
    sphere_weight: NonNegativeFloat = 8e-4
    """lambda, of the squared distance of the embeddings' lengths from 1."""


class TREGS(Method[Config]):
    """Every process computes the loss of the whole batch."""

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(self.encoder(view).z)) for view in batch.views]
        config = self.config
        loss = tregs_loss(views, config.invariance_weight, config.length_weight, config.sphere_weight)
        length = views[0].detach().norm(dim=1).mean()
        return Step(loss, {"embedding_norm": length, "spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        check_images("tregs", batch, "a tree")


def tregs_loss(
    views: Sequence[Tensor],
    invariance_weight: float = 10.0,
    length_weight: float = 0.2,
    sphere_weight: float = 8e-4,
) -> Tensor:
    """Distance of views, less the length of each view's minimum spanning tree, near the unit sphere.

    invariance_weight * mean |z_a - z_b|^2 over pairs of views and images  +  sum over views of
    sphere_weight * mean (|z| - 1)^2  -  length_weight * length of the minimum spanning tree / N.

    Args:
        views: V >= 2 embeddings [N, D], N >= 2, any floating dtype, not brought to length 1; in float32 or wider.
    """
    with float32_region(views[0]):
        views = [at_least_float32(view) for view in views]
        invariance = mean_squared_difference(views) * views[0].shape[1]
        length = torch.stack([tree_length(view) / len(view) for view in views]).sum()
        sphere = torch.stack([(_lengths(view) - 1).square().mean() for view in views]).sum()
        return invariance_weight * invariance - length_weight * length + sphere_weight * sphere


def tree_length(x: Tensor) -> Tensor:
    """Length of the Euclidean minimum spanning tree of the rows of x [N, D]; the tree is chosen without gradient.

    Raises:
        UserError: the embeddings are not finite.
    """
    edges = minimum_spanning_tree(x.detach())
    return _lengths(x[edges[0]] - x[edges[1]]).sum()


def minimum_spanning_tree(x: Tensor) -> Tensor:
    """int64 [2, N - 1], the ends of its edges, for points x [N, D]; by Prim's algorithm in O(N^2), on the CPU.

    Edges are chosen by squared distances from the Gram matrix of the centred points, in float64: the differences of
    embeddings that nearly coincide survive in it.
    """
    points = (x - x.mean(dim=0)).double()
    lengths = points.square().sum(dim=1)
    distances = gram_of(points, -2.0).add_(lengths).add_(lengths[:, None]).cpu().numpy()
    if not np.isfinite(distances).all():
        raise UserError("tregs: the embeddings are not finite: the training has diverged")
    count, new = len(distances), 0
    nearest, parent = np.full(count, np.inf), np.zeros(count, dtype=np.int64)
    edges = np.empty((2, count - 1), dtype=np.int64)
    for k in range(count - 1):
        # A point in the tree is infinitely far from all others, and so never chosen again.
        distances[:, new], nearest[new] = np.inf, np.inf
        closer = distances[new] < nearest
        np.copyto(nearest, distances[new], where=closer)
        parent[closer] = new
        new = int(nearest.argmin())
        edges[:, k] = new, parent[new]
    return torch.from_numpy(edges).to(x.device)


def _lengths(x: Tensor) -> Tensor:
    """Of rows [N, D]; without gradient where a row is 0."""
    squared = x.square().sum(dim=1)
    return torch.where(squared > 0, squared.where(squared > 0, 1.0).sqrt(), 0.0)
