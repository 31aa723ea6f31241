"""VICReg: attraction between views, variance of each channel at least 1, no covariance between channels.

Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", ICLR 2022
(arXiv 2105.04906); as in its official code variance and covariance are over the images of all processes. It has two
views; for more, the loss is the mean over pairs.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient, world_size
from pretrain.losses.covariance import squared_covariances
from pretrain.losses.similarity import mean_squared_difference, spread
from pretrain.losses.whitening import at_least_float32, centred, float32_region
from pretrain.method import Counting, Method, Step
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.ranges import NonNegativeFloat


@strict
class Config:
    invariance_weight: NonNegativeFloat = 25.0
    variance_weight: NonNegativeFloat = 25.0
    covariance_weight: NonNegativeFloat = 1.0


class VICReg(Method[Config]):
    """Every process computes the loss of the whole batch."""

    counting: ClassVar[Counting] = "from-zero"

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(self.encoder(view).z)) for view in batch.views]
        terms = _terms(views)
        scalars = {name: term.detach() for name, term in terms._asdict().items()}
        config = self.config
        loss = _weighted(terms, config.invariance_weight, config.variance_weight, config.covariance_weight)
        return Step(loss, {**scalars, "spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        if batch * world_size() < 2:
            raise UserError("vicreg: a variance needs at least 2 images (batch)")


def vicreg_loss(
    views: Sequence[Tensor],
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Tensor:
    """Weighted sum of three terms, each the mean over pairs of views.

    invariance: the mean squared difference of the two views. variance: the mean over both views and all channels of
    max(0, 1 - sqrt(var + 1e-4)). covariance: the sum over both views of sum_(i != j) C_ij^2 / D, C [D, D] the
    covariance of the channels.

    Args:
        views: V >= 2 embeddings of the same N >= 2 images, each [N, D], any floating dtype; in float32 or wider.
    Returns:
        Scalar.
    """
    return _weighted(_terms(views), invariance_weight, variance_weight, covariance_weight)


class _Terms(NamedTuple):
    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def _weighted(terms: _Terms, invariance: float, variance: float, covariance: float) -> Tensor:
    return invariance * terms.invariance + variance * terms.variance + covariance * terms.covariance


def _terms(views: Sequence[Tensor]) -> _Terms:
    with float32_region(views[0]):
        views = [at_least_float32(view) for view in views]
        variance = torch.stack([_variance(view) for view in views]).mean()
        covariance = 2 * torch.stack([_covariance(view) for view in views]).mean()
        return _Terms(mean_squared_difference(views), variance, covariance)


def _variance(view: Tensor) -> Tensor:
    return F.relu(1 - (view.var(dim=0) + 1e-4).sqrt()).mean()


def _covariance(view: Tensor) -> Tensor:
    return squared_covariances(centred(view, "batch").mT) / view.shape[1]
