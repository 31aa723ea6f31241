"""I-VNE+: attraction between views, and a large von Neumann entropy of each view's autocorrelation.

Kim et al., "VNE: An Effective Method for Improving Deep Representation by Manipulating Eigenvalue Distribution", CVPR
2023 (arXiv 2304.01434); as in its official code views 0 and 1 are paired with all later ones. Everything is over the
images of all processes. Unlike there the gradient stays finite at collapse: eigenvalues of 0 get none.
"""

from collections.abc import Sequence
from itertools import combinations
from math import log

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.checks import check_images
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.spectra import von_neumann_entropy
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Method, Step
from pretrain.networks import embed_by_size
from whitebench.config import strict
from whitebench.ranges import NonNegativeFloat

ANCHORS = 2
"""Views that are paired with all later ones."""


@strict
class Config:
    attraction: NonNegativeFloat | None = None
    """alpha_1, weight of the cosine similarity of views; None: log of the global batch (4.16 for the paper's 64)."""
    entropy_weight: NonNegativeFloat = 1.0
    """alpha_2."""


class IVNE(Method[Config]):
    """Every process computes the loss of the whole batch."""

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(z)) for z in embed_by_size(self.encoder, batch.views)]
        loss = ivne_loss(views, self.config.attraction, self.config.entropy_weight)
        with torch.no_grad():
            entropy = von_neumann_entropy(unit_rows(views[0]))
        return Step(loss, {"entropy": entropy, "spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        check_images("ivne", batch, "an entropy")


def ivne_loss(views: Sequence[Tensor], alpha: float | None = None, entropy_weight: float = 1.0) -> Tensor:
    """-alpha * mean over pairs (i, j), i in {0, 1}, j > i, of cos(z_i, z_j)  -  entropy_weight * mean entropy.

    Args:
        views: V >= 2 embeddings [N, D], any floating dtype; computed in float32 or wider.
        alpha: None means log N.
    Returns:
        Scalar.
    """
    with float32_region(views[0]):
        rows = [unit_rows(view) for view in views]
        pairs = [(rows[i], rows[j]) for i, j in combinations(range(len(rows)), 2) if i < ANCHORS]
        agreement = torch.stack([(a * b).sum(dim=1).mean() for a, b in pairs]).mean()
        entropy = torch.stack([von_neumann_entropy(row) for row in rows]).mean()
        return -(log(len(rows[0])) if alpha is None else alpha) * agreement - entropy_weight * entropy
