"""VIbCReg: VICReg with correlations in place of covariances, and a projector that ends in IterNorm.

Lee and Aune, "Computer Vision Self-supervised Learning Methods on Time Series" (arXiv 2109.00783); weights as in the
authors' code and solo-learn's. Everything is over the images of all processes. The projector's last layer is that of
`network.whitening=iternorm`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.checks import check_images
from pretrain.losses.covariance import squared_covariances
from pretrain.losses.similarity import mean_squared_difference, spread
from pretrain.losses.whitening import at_least_float32, centred, float32_region
from pretrain.method import Method, Step
from whitebench.config import strict
from whitebench.ranges import NonNegativeFloat


@strict
class Config:
    invariance_weight: NonNegativeFloat = 25.0
    variance_weight: NonNegativeFloat = 25.0
    covariance_weight: NonNegativeFloat = 200.0


class VIbCReg(Method[Config]):
    """Every process computes the loss of the whole batch."""

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(self.encoder(view).z)) for view in batch.views]
        config = self.config
        loss = vibcreg_loss(views, config.invariance_weight, config.variance_weight, config.covariance_weight)
        return Step(loss, {"spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        check_images("vibcreg", batch, "a correlation")


def vibcreg_loss(
    views: Sequence[Tensor],
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 200.0,
) -> Tensor:
    """Weighted sum of invariance, variance and correlation of channels.

    Invariance: the mean squared difference over pairs of views. Summed over views, variance: the channels' mean of
    max(0, 1 - sqrt(var + 1e-4)), and correlation: sum_(i != j) R_ij^2 / D^2, R [D, D] that of the channels.

    Args:
        views: V >= 2 embeddings of the same N >= 2 images, each [N, D], any floating dtype; in float32 or wider.
    """
    with float32_region(views[0]):
        views = [at_least_float32(view) for view in views]
        variance = torch.stack([F.relu(1 - (view.var(dim=0) + 1e-4).sqrt()).mean() for view in views]).sum()
        correlation = torch.stack([_correlation(view) for view in views]).sum()
        invariance = mean_squared_difference(views)
        return invariance_weight * invariance + variance_weight * variance + covariance_weight * correlation


def _correlation(view: Tensor) -> Tensor:
    x = centred(view, "batch")
    unit = x / x.norm(dim=0).clamp_min(1e-12)
    images, channels = view.shape
    return squared_covariances(unit.mT) * (images - 1) ** 2 / channels**2
