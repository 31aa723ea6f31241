"""DCL: SimCLR's contrast with the positive left out of the denominator; DCLW weighs positives by their distance.

Yeh et al., "Decoupled Contrastive Learning", ECCV 2022 (arXiv 2110.06848), as a third party's repository has it (the
authors' own code is not at hand): the sum over both directions. In lightly it is half of that, and no gradient flows
through the weights. Negatives are the other images of all processes. The loss is negative in normal training.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.checks import check_images
from pretrain.losses.contrast import mean_log_sum_exp
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Method, Step
from whitebench.config import strict
from whitebench.ranges import Temperature

VIEWS = 2


@strict
class Config:
    temperature: Temperature = 0.1
    """tau: similarities are divided by it before the softmax."""
    sigma: Temperature | None = None
    """Of DCLW's weights, 0.5 in the paper; None: DCL."""
    attached: bool = True
    """Whether gradients flow through the weights (lightly: not)."""


class DCL(Method[Config]):
    """Every process computes the loss of the whole batch."""

    maximum_views = 2

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(self.encoder(view).z)) for view in batch.views]
        loss = dcl_loss(views, self.config.temperature, self.config.sigma, self.config.attached)
        return Step(loss, {"spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        check_images("dcl", batch, "negatives")


def dcl_loss(views: Sequence[Tensor], tau: float = 0.1, sigma: float | None = None, attached: bool = True) -> Tensor:
    """l(z_0, z_1) + l(z_1, z_0), contrasts without the positive pair in the denominator.

    l(a, b) is the mean over i of  -w_i <a_i, b_i> / tau + log sum over j other than i of
    exp(<a_i, a_j> / tau) + exp(<a_i, b_j> / tau).
    w = 1 (DCL), or 2 - N softmax_i(<a_i, b_i> / sigma) where sigma is given (DCLW).

    Args:
        views: two embeddings [N, D], N >= 2, any floating dtype, brought to length 1; in float32 or wider.
        attached: whether gradients flow through w.
    Returns:
        Scalar.
    """
    with float32_region(views[0]):
        a, b = (unit_rows(view) for view in views)
        images = len(a)
        # Neither an image itself nor its other view is a negative.
        contrast = mean_log_sum_exp(torch.cat([a, b]), tau, (-images, 0, images))
        positive = (a * b).sum(dim=1)
        weights: Tensor | float = 1.0
        if sigma is not None:
            weights = 2 - images * ((positive if attached else positive.detach()) / sigma).softmax(dim=0)
        return 2 * (contrast - (weights * positive).mean() / tau)
