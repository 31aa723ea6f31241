"""SupCon: contrast in which all images of a class are positives. Uses labels.

Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020 (arXiv 2004.11362). Two losses go by this name: the
official one averages log-probabilities over positives; solo-learn's takes the log of their sum (`inside`), the worse
one in the paper. Positives and negatives are those of all processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Method, Step
from pretrain.networks import embed_by_size
from whitebench.config import strict
from whitebench.ranges import Temperature


@strict
class Config:
    temperature: Temperature = 0.1
    """tau: similarities are divided by it before the softmax."""
    base_temperature: Temperature | None = 0.07
    """The loss is multiplied by temperature / base_temperature; None: not."""
    inside: bool = False
    """Whether positives are summed inside the logarithm (solo-learn)."""


class SupCon(Method[Config]):
    """Every process computes the loss of the whole batch."""

    uses_labels = True

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(z)) for z in embed_by_size(self.encoder, batch.views)]
        labels = gather_with_gradient(batch.label)
        config = self.config
        loss = supcon_loss(views, labels, config.temperature, config.inside, config.base_temperature)
        return Step(loss, {"spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def supcon_loss(
    views: Sequence[Tensor], labels: Tensor, tau: float = 0.1, inside: bool = False, base: float | None = None
) -> Tensor:
    """Mean over the V N rows i of  -mean over positives p of log P(p | i),  times tau / base.

    With `inside`, -log of the sum over positives of P(p | i) takes its place.
    P(p | i) is the softmax over all rows but i of the cosine similarities over tau. Positives are the other rows of the
    same label; a row without any contributes 0.

    Args:
        views: V embeddings [N, D], any floating dtype; computed in float32 or wider. labels: int64 [N].
        base: None means tau.
    Returns:
        Scalar.
    """
    with float32_region(views[0]):
        rows = torch.cat([unit_rows(view) for view in views])
        labels = labels.repeat(len(views))
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        positive = (labels[:, None] == labels) & ~itself
        logits = (rows @ rows.mT / tau).masked_fill(itself, float("-inf"))
        logs = logits.log_softmax(dim=1)
        if inside:
            alone = ~positive.any(dim=1, keepdim=True)
            terms = logs.masked_fill(~(positive | alone), float("-inf")).logsumexp(dim=1)
            loss = -terms.masked_fill(alone.squeeze(1), 0).sum() / len(rows)
        else:
            means = logs.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1).clamp_min(1)
            loss = -means.mean()
        return loss if base is None else loss * tau / base
