"""k-means on the unit sphere, as DeepCluster-v2 has it: by inner products, with centroids of length 1."""

from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.losses.similarity import unit_rows
from whitebench.errors import UserError

BLOCK = 2**26
"""Inner products that are held at once."""


class Clustering(NamedTuple):
    centroids: Tensor
    """[K, D], rows of length 1."""
    assignment: Tensor
    """int64 [n]: the centroid with the largest inner product."""


@torch.no_grad()
def spherical_kmeans(rows: Tensor, start: Tensor, iterations: int = 10) -> Clustering:
    """Repeats `iterations` times: each row to its nearest centroid, each centroid to its rows' mean, to length 1.

    A centroid without rows stays. A last assignment follows.

    Args:
        rows: [n, D], of length 1. start: [K, D], the first centroids.
    Raises:
        UserError: rows that are not finite.
    """
    if not bool(rows.isfinite().all()):
        raise UserError("embeddings to be clustered are not finite: the training has diverged")
    centroids = start
    for _ in range(iterations):
        assignment = _nearest(rows, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, assignment, rows)
        counts = torch.bincount(assignment, minlength=len(centroids)).unsqueeze(1)
        centroids = unit_rows(torch.where(counts > 0, sums / counts.clamp_min(1), centroids))
    return Clustering(centroids, _nearest(rows, centroids))


def _nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    return torch.cat([(block @ centroids.mT).argmax(dim=1) for block in rows.split(max(1, BLOCK // len(centroids)))])
