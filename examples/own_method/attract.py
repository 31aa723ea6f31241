"""A method of one's own: views of an image attract each other, and a variance term keeps embeddings apart.

The suite finds this file because $WHITEBENCH_METHODS names its folder; `attract.yaml` is a recipe that uses it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.losses.similarity import mean_squared_difference
from pretrain.method import Method, Step
from whitebench.config import strict


@strict
class Config:
    """The recipe's `method` section: unknown keys and wrong types are refused."""

    variance_weight: float = 1.0


class Attract(Method[Config]):
    """The training loop calls `forward` with a batch of normalised views and descends the loss that it returns."""

    def forward(self, batch: Batch) -> Step:
        views = [self.encoder(view).z for view in batch.views]  # V tensors [B, D]
        return Step(attract_loss(views, variance_weight=self.config.variance_weight))


def attract_loss(views: Sequence[Tensor], *, variance_weight: float) -> Tensor:
    """Mean squared difference of views plus a hinge on each channel's standard deviation.

    Args:
        views: V >= 2 tensors [B, D].
    Returns:
        Scalar.
    """
    deviations = torch.stack([view.float().std(dim=0) for view in views])  # [V, D]
    return mean_squared_difference(views) + variance_weight * (1 - deviations).clamp_min(0).mean()
