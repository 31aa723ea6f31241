"""NNCLR: a prediction from one view finds the nearest neighbour of the other view among those of all images.

Dwibedi et al., "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual Representations",
ICCV 2021 (arXiv 2104.14548), as solo-learn has it: the queue of candidates takes up view 0 alone, after the loss.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.cross_view import find_partner, nearest_rows
from pretrain.losses.momentum_contrast import Queue
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Encoder, Method, Step
from pretrain.networks import build_predictor
from whitebench.config import strict
from whitebench.ranges import PositiveInt, Temperature

VIEWS = 2


@strict
class Config:
    temperature: Temperature = 0.2
    """tau: similarities are divided by it before the softmax."""
    queue: PositiveInt = 65536
    """Past embeddings of all processes, among which neighbours are sought."""
    predictor: PositiveInt = 4096
    """Width of the predictor's hidden layer."""


class NNCLR(Method[Config]):
    """Every process computes the loss of the whole batch."""

    maximum_views = 2

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.predictor = build_predictor(encoder.embedding_dim, config.predictor)
        self.queue = Queue(config.queue, encoder.embedding_dim)

    def forward(self, batch: Batch) -> Step:
        views = [self.encoder(view).z for view in batch.views]
        predictions = [gather_with_gradient(at_least_float32(self.predictor(z))) for z in views]
        with torch.no_grad():
            z = [gather_with_gradient(at_least_float32(view)) for view in views]
        loss = nnclr_loss(predictions, z, self.queue.rows, self.config.temperature)
        self.queue.push(unit_rows(z[0]))
        return Step(loss, {"spread": spread(z[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def nnclr_loss(p: Sequence[Tensor], z: Sequence[Tensor], queue: Tensor, tau: float = 0.2) -> Tensor:
    """Cross-entropy of finding an image among the predictions of one view; mean over both directions.

    The image is given by the nearest neighbour, in the queue, of its other view.

    Args:
        p: predictions of two views, [N, D] each. z: their embeddings; no gradient flows to them.
        queue: [K, D], rows of length 1.
    Returns:
        Scalar, in float32 or wider.
    """
    with float32_region(p[0]):
        neighbours = [nearest_rows(view, queue)[:, 0] for view in z]
        unit = [unit_rows(view) for view in p]
        return torch.stack([find_partner(neighbours[v], unit[1 - v], tau) for v in range(VIEWS)]).mean()
