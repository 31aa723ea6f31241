"""Barlow Twins: the correlation between the channels of two views is drawn towards the identity.

Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021 (arXiv 2103.03230); as in
its official code the correlation is over the images of all processes. It has two views; for more, the loss is the mean
over pairs.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient, world_size
from pretrain.losses.similarity import cosine_distance, spread
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Counting, Encoder, Method, Step
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.hashing import added
from whitebench.ranges import NonNegativeFloat


@strict
class Config:
    trade_off: NonNegativeFloat = 0.0051
    """lambda, weight of the squared correlations between different channels."""
    affine: bool = added(False)
    """Whether the batch norm that standardises embeddings has a learned scale and shift, which the official code has
    not, and solo-learn's and CW-RGP's have. They are the same for both views."""


class BarlowTwins(Method[Config]):
    """Every process computes the loss of the whole batch."""

    counting: ClassVar[Counting] = "from-zero"

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        width = encoder.embedding_dim
        self.scale = nn.Parameter(torch.ones(width)) if config.affine else None
        self.shift = nn.Parameter(torch.zeros(width)) if config.affine else None

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(self.encoder(view).z)) for view in batch.views]
        loss = barlow_twins_loss(views, self.config.trade_off, self.scale, self.shift)
        with torch.no_grad():
            distance = cosine_distance(views[0], views[1])
        return Step(loss, {"distance": distance, "spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        if batch * world_size() < 2:
            raise UserError("barlow_twins: a correlation needs at least 2 images (batch)")


def barlow_twins_loss(
    views: Sequence[Tensor], trade_off: float = 0.0051, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Mean over pairs of views of  sum_i (1 - C_ii)^2 + lambda sum_(i != j) C_ij^2,  C the correlation of channels.

    Args:
        views: V >= 2 embeddings of the same N >= 2 images, each [N, D], any floating dtype; in float32 or wider.
            Channels are standardised by batch norm without affine part: its eps of 1e-5 keeps constant ones finite.
        trade_off: lambda.
        scale, shift: [D], of that batch norm; with them C is no longer a correlation.
    Returns:
        Scalar.
    """
    with float32_region(views[0]):
        rows = [at_least_float32(view) for view in views]
        weight, bias = (None if part is None else part.to(rows[0].dtype) for part in (scale, shift))
        standardised = [F.batch_norm(x, None, None, weight, bias, training=True) for x in rows]
        return torch.stack([_pair_loss(a, b, trade_off) for a, b in combinations(standardised, 2)]).mean()


def _pair_loss(a: Tensor, b: Tensor, trade_off: float) -> Tensor:
    diagonal = (a * b).mean(dim=0)
    return (1 - diagonal).square().sum() + trade_off * _off_diagonal(a, b, diagonal)


def _off_diagonal(a: Tensor, b: Tensor, diagonal: Tensor) -> Tensor:
    """Sum over i != j of C_ij^2, C = a^T b / N [D, D]; with its `diagonal`.

    The sum of all C_ij^2 is trace(a a^T b b^T) / N^2: two Gram matrices [N, N], the cheaper side where 2 N < D.
    """
    images, channels = a.shape
    if 2 * images < channels:
        return ((a @ a.mT) * (b @ b.mT)).sum() / images**2 - diagonal.square().sum()
    correlation = a.mT @ b / images
    return (correlation - correlation.diagonal().diag()).square().sum()
