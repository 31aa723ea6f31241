"""SwAV: predict from each crop which prototypes another crop of the image was assigned to.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020 (arXiv
2006.09882); constants as in its official code. The first two views are assigned, all views predict.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient, rank, world_size
from pretrain.losses.momentum_contrast import Queue
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Counting, Encoder, Method, Step
from pretrain.networks import embed_by_size
from whitebench.config import strict
from whitebench.ranges import NonNegativeInt, PositiveInt, Temperature

ASSIGNED = 2
"""Views whose assignments the others predict."""


@strict
class Config:
    prototypes: PositiveInt = 3000
    temperature: Temperature = 0.1
    """tau of the predictions' softmax."""
    epsilon: Temperature = 0.05
    """Of the assignments; smaller ones are harder."""
    iterations: PositiveInt = 3
    """Of Sinkhorn and Knopp's algorithm."""
    queue: NonNegativeInt = 0
    """Past embeddings of all processes, for each assigned view, that are assigned along with the batch; 0: none."""
    queue_epoch: NonNegativeInt = 15
    """From which epoch on (counted from 0) the queue is filled and, once full, used."""
    frozen_iterations: NonNegativeInt = 313
    """Steps at the start in which the prototypes stay as they are."""


class SwAV(Method[Config]):
    """Prototypes are the rows of a linear layer; each step begins by bringing them back to length 1."""

    minimum_views = ASSIGNED
    counting: ClassVar[Counting] = "inclusive"

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.prototypes = nn.Linear(encoder.embedding_dim, config.prototypes, bias=False)
        queues = ASSIGNED if config.queue > 0 else 0
        self.queues = nn.ModuleList(Queue(config.queue, encoder.embedding_dim) for _ in range(queues))

    def forward(self, batch: Batch) -> Step:
        with torch.no_grad():
            self.prototypes.weight.copy_(unit_rows(self.prototypes.weight))
        views = [unit_rows(z) for z in embed_by_size(self.encoder, batch.views)]
        with float32_region(views[0]):
            prototypes = self.prototypes.weight.to(views[0].dtype)
            scores = [view @ prototypes.mT for view in views]
            targets = [self._assign(v, views[v].detach(), prototypes.detach()) for v in range(ASSIGNED)]
            loss = swav_loss(scores, targets, self.config.temperature)
        used = targets[0].mean(dim=0)
        entropy = -(used * used.clamp_min(1e-12).log()).sum()
        return Step(loss, {"prototypes_in_use": entropy.exp(), "spread": spread(views[0])})

    def before_update(self) -> None:
        if self.step < self.config.frozen_iterations:
            self.prototypes.weight.grad = None

    @classmethod
    def begins_after(cls, config: Config) -> dict[str, float]:
        return {"queue_epoch": config.queue_epoch} if config.queue else {}

    @classmethod
    def begins_after_steps(cls, config: Config) -> dict[str, int]:
        return {"frozen_iterations": config.frozen_iterations}

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    @torch.no_grad()
    def _assign(self, index: int, view: Tensor, prototypes: Tensor) -> Tensor:
        """Assignments [B, K] of this process's images, balanced over those of all processes and of the queue."""
        joint = gather_with_gradient(view)
        rows = joint
        if self.queues and self.epoch >= self.config.queue_epoch:
            queue = self.queues[index]
            assert isinstance(queue, Queue)
            if queue.full:
                rows = torch.cat([joint, queue.rows.to(joint.dtype)])
            queue.push(joint)
        assigned = sinkhorn(rows @ prototypes.mT, self.config.epsilon, self.config.iterations)[: len(joint)]
        return assigned.chunk(world_size())[rank()]


def swav_loss(scores: Sequence[Tensor], assignments: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """Mean over assigned views, over the other views, and over images of  -sum q log softmax(s / tau).

    Args:
        scores: V tensors [B, K], inner products with the prototypes; the assigned views come first.
        assignments: q, one tensor [B, K] for each assigned view, rows summing to 1; no gradient flows to them.
    Returns:
        Scalar, in float32 or wider.
    """
    with float32_region(scores[0]):
        logs = [F.log_softmax(at_least_float32(score) / temperature, dim=1) for score in scores]
        terms = [
            torch.stack([-(q.detach() * log).sum(dim=1).mean() for v, log in enumerate(logs) if v != assigned]).mean()
            for assigned, q in enumerate(assignments)
        ]
        return torch.stack(terms).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Assignments of images to prototypes that use all prototypes about equally (Sinkhorn and Knopp).

    Args:
        scores: [N, K].
    Returns:
        [N, K], rows summing to 1, in the dtype of `scores`.
    """
    scaled = scores / epsilon
    weights = (scaled - scaled.max()).exp()
    for _ in range(iterations):
        weights = weights / weights.sum(dim=0, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        weights = weights / weights.sum(dim=1, keepdim=True)
    return weights
