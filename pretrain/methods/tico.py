"""TiCo: attraction to a momentum network, and contrast with a running covariance of the embeddings.

Zhu et al., "TiCo: Transformation Invariance and Covariance Contrast for Self-Supervised Visual Representation
Learning" (arXiv 2206.10698). One direction: view 0 online, view 1 momentum. Whether gradients flow through the present
batch's part of the covariance is disputed: the paper's pseudo-code lets them, lightly (since its PR 1484) does not;
gradients differ by half. The default is lightly's. The covariance is over the images of all processes.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.gram import accumulated_product, gram_of
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Encoder, Method, Step, with_first
from pretrain.networks import MomentumCopy
from whitebench.config import strict
from whitebench.ranges import NonNegativeFloat, Share

VIEWS = 2


@strict
class Config:
    beta: Share = 0.9
    """Share of the old covariance that stays at each step."""
    rho: NonNegativeFloat = 8.0
    """Weight of the covariance contrast."""
    attached: bool = False
    """Whether gradients flow through the covariance as well (the paper's pseudo-code)."""
    momentum: Share = 0.99
    """Of the momentum network at the start, rising to 1 by a cosine."""
    export: Literal["online", "momentum"] = "online"
    """The encoder that is evaluated and transferred."""


class Outcome(NamedTuple):
    loss: Tensor
    covariance: Tensor
    """[D, D], updated, without gradient."""


class TiCo(Method[Config]):
    """Every process computes the loss of the whole batch."""

    maximum_views = 2

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.target = MomentumCopy(encoder, config.momentum)
        self.covariance: Tensor
        self.register_buffer("covariance", torch.zeros(encoder.embedding_dim, encoder.embedding_dim))

    def encoders(self) -> dict[str, Encoder]:
        return with_first(self.config.export, {"online": self.encoder, "momentum": self.target.network})

    def forward(self, batch: Batch) -> Step:
        config = self.config
        self.target.update(self.target.momentum_at(self.progress))
        online = gather_with_gradient(at_least_float32(self.encoder(batch.views[0]).z))
        with torch.no_grad():
            target = gather_with_gradient(at_least_float32(self.target(batch.views[1]).z))
        # The copy: the buffer takes up the new covariance before the backward pass needs the old one.
        outcome = tico_loss(online, target, self.covariance.clone(), config.beta, config.rho, config.attached)
        self.covariance.copy_(outcome.covariance)
        return Step(outcome.loss, {"spread": spread(online)})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def tico_loss(
    online: Tensor,
    target: Tensor,
    covariance: Tensor,
    beta: float = 0.9,
    rho: float = 8.0,
    attached: bool = False,
) -> Outcome:
    """1 - mean <a, b> + rho mean a^T C a,  C <- beta C + (1 - beta) a^T a / N,  rows a, b brought to length 1.

    Args:
        online: a, [N, D]. target: b, [N, D]; no gradient flows to it. covariance: C before, symmetric [D, D].
        attached: whether gradients flow through C.
    """
    with float32_region(online):
        a, b = unit_rows(online), unit_rows(target.detach())
        before, share = covariance.to(a), (1 - beta) / len(a)
        if attached:
            updated = torch.add(gram_of(a.mT, share), before, alpha=beta)
            contrast = ((a @ updated) * a).sum(dim=1).mean()
        else:
            updated = accumulated_product(before, a.detach().mT, beta, share)
            contrast = _QuadraticForm.apply(a, updated)
        loss = 1 - (a * b).sum(dim=1).mean() + rho * contrast
        return Outcome(loss, updated.detach())


class _QuadraticForm(torch.autograd.Function):
    """Mean of a_i^T C a_i over rows of a [N, D], C symmetric; the gradient, to a alone, is 2 / N of the product a C."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor) -> Tensor:
        product = a @ c
        ctx.save_for_backward(product)
        return torch.linalg.vecdot(product, a).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (product,) = ctx.saved_tensors
        return product * (gradient * 2 / len(product)), None
