"""EMP-SSL: many patches of an image agree with their mean, and each patch's embeddings have a large coding rate.

Tong et al., "EMP-SSL: Towards Self-Supervised Learning in One Training Epoch" (arXiv 2304.03977); constants as in its
official code, where eps is not squared. There the loss is of each process's images; here it is of all processes', so
that several processes train as one. (lightly's EMPSSLLoss adds the coding rate where it has to be taken off.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.spectra import coding_rate
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Method, Step
from pretrain.networks import embed_by_size
from whitebench.config import strict
from whitebench.ranges import NonNegativeFloat, PositiveFloat


@strict
class Config:
    eps: PositiveFloat = 0.2
    """Of the coding rate."""
    weight: NonNegativeFloat = 200.0
    """Of the agreement of patches with their mean."""


class EMPSSL(Method[Config]):
    """Every process computes the loss of the whole batch; views are the patches."""

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(z)) for z in embed_by_size(self.encoder, batch.views)]
        loss = emp_ssl_loss(views, self.config.eps, self.config.weight)
        return Step(loss, {"spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def emp_ssl_loss(views: Sequence[Tensor], eps: float = 0.2, weight: float = 200.0) -> Tensor:
    """Mean over views of  -weight * mean cos(z_v, mean of all)  -  1/2 log det(I + D / (N eps) z_v^T z_v).

    Args:
        views: V embeddings [N, D], any floating dtype, brought to length 1; gradients flow through the mean, too.
    Returns:
        Scalar, in float32 or wider.
    """
    with float32_region(views[0]):
        rows = torch.stack([unit_rows(view) for view in views])
        images, width = rows.shape[1:]
        agreement = (rows * unit_rows(rows.mean(dim=0))).sum(dim=-1).mean()
        rates = torch.stack([coding_rate(view, width / (images * eps)) for view in rows])
        return -weight * agreement - rates.mean()
