"""MMCR: the centroids of images' views have the largest nuclear norm.

Yerxa et al., "Learning Efficient Coding of Natural Images with Maximum Manifold Capacity Representations", NeurIPS 2023
(arXiv 2303.03307); constants as in its official code. Centroids are those of all processes, gathered with the full
gradient, so that several processes train as one. (In the official code only a process's own rows carry gradient: after
averaging it is 1 / world of this one, which layer-wise scaling hides but for biases, norms and decay.)
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.spectra import nuclear_norm
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Counting, Encoder, Method, Step, with_first
from pretrain.networks import MomentumCopy, embed_by_size
from whitebench.config import strict
from whitebench.ranges import NonNegativeFloat, Share


@strict
class Config:
    local_weight: NonNegativeFloat = 0.0
    """lambda, of the nuclear norm of each image's views, which is made small; 0 does not compute it."""
    momentum: Share | None = 0.99
    """Of the copy whose views enter the centroids, too, constant; None: plain MMCR, without a copy."""
    export: Literal["online", "momentum"] = "online"
    """The encoder that is evaluated and transferred."""


class MMCR(Method[Config]):
    """Every process computes the loss of the whole batch."""

    counting: ClassVar[Counting] = "from-zero"

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.target = MomentumCopy(encoder, config.momentum) if config.momentum is not None else None

    def encoders(self) -> dict[str, Encoder]:
        if self.target is None:
            return super().encoders()
        return with_first(self.config.export, {"online": self.encoder, "momentum": self.target.network})

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(z)) for z in embed_by_size(self.encoder, batch.views)]
        targets = None
        if self.target is not None:
            with torch.no_grad():
                copies = embed_by_size(self.target.network, batch.views)
                targets = [gather_with_gradient(at_least_float32(z)) for z in copies]
        loss = mmcr_loss(views, targets, self.config.local_weight)
        return Step(loss, {"spread": spread(views[0])})

    def after_update(self) -> None:
        if self.target is not None:
            self.target.update(self.target.momentum)

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def mmcr_loss(views: Sequence[Tensor], targets: Sequence[Tensor] | None = None, local_weight: float = 0.0) -> Tensor:
    """local_weight * mean over images of |Z_i|_*  -  |C|_*,  |.|_* the nuclear norm (sum of singular values).

    C [N, D] holds the centroids of each image's views, Z_i [D, V] its views, all brought to length 1.

    Args:
        views: V embeddings [N, D], any floating dtype; computed in float32 or wider.
        targets: V of a momentum network, without gradient: centroids are the mean of both networks' (Z_i is not).
    Returns:
        Scalar, no less than -N where D >= N, else no less than -sqrt(N D).
    """
    with float32_region(views[0]):
        rows = torch.stack([unit_rows(view) for view in views])
        centroids = rows.mean(dim=0)
        if targets is not None:
            centroids = (centroids + torch.stack([unit_rows(t.detach()) for t in targets]).mean(dim=0)) / 2
        loss = -nuclear_norm(centroids)
        if local_weight:
            loss = loss + local_weight * nuclear_norm(rows.transpose(0, 1)).mean()
        return loss
