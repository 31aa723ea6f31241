"""SimCLR: contrast each image with all others of the global batch.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020 (arXiv 2002.05709); with
more than two views the loss is the mean over pairs of views, as W-MSE's and CW-RGP's official code has it.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.contrast import mean_log_sum_exp
from pretrain.losses.similarity import cosine_distance, spread, unit_rows
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Method, Step
from pretrain.networks import embed_jointly
from whitebench.config import strict
from whitebench.ranges import Temperature


@strict
class Config:
    temperature: Temperature = 0.5
    """tau: similarities are divided by it before the softmax."""


class SimCLR(Method[Config]):
    """Negatives are the other images of all processes; every process computes the loss of the whole batch."""

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(z)) for z in embed_jointly(self.encoder, batch.views)]
        loss = simclr_loss(views, self.config.temperature)
        with torch.no_grad():
            distance = cosine_distance(views[0], views[1])
        return Step(loss, {"distance": distance, "spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def simclr_loss(views: Sequence[Tensor], temperature: float = 0.5) -> Tensor:
    """NT-Xent, averaged over pairs of views.

    Args:
        views: V >= 2 embeddings of the same N images, each [N, D], any floating dtype; computed in float32 or wider.
    Returns:
        Scalar: the mean over the 2N rows of a pair of the cross-entropy of finding the row's other view among the
        2N - 1 other rows, by cosine similarity over temperature.
    """
    with float32_region(views[0]):
        units = [unit_rows(view) for view in views]
        return torch.stack([_nt_xent(a, b, temperature) for a, b in combinations(units, 2)]).mean()


def _nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    contrast = mean_log_sum_exp(torch.cat([a, b]), temperature, (0,))
    return contrast - torch.linalg.vecdot(a, b).mean() / temperature
