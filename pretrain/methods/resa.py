"""ReSA: embeddings of two views agree as their encodings say, by a self-assignment.

Weng et al. (the authors of INTL), "Clustering Properties of Self-Supervised Learning", ICML 2025; constants as in its
official code. View 0 is a weak one (crop and flip alone); its encodings give the assignment that all terms share. The
momentum encoder is the one to be evaluated.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient, rank
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Encoder, Method, Step, with_first
from pretrain.methods.swav import sinkhorn
from pretrain.networks import MomentumCopy, build_predictor
from whitebench.config import strict
from whitebench.ranges import NonNegativeInt, PositiveInt, Share, Temperature

TARGETS = 2
"""Views that the momentum network sees."""


@strict
class Config:
    temperature: Temperature = 0.4
    """tau of the embeddings' similarities."""
    sharpness: Temperature = 0.05
    """By which similarities of encodings are divided before they are balanced."""
    iterations: PositiveInt = 3
    """Of Sinkhorn and Knopp's algorithm."""
    predictor: NonNegativeInt = 2048
    """Width of the predictor's hidden layer; 0: no predictor (the official CIFAR code)."""
    momentum: Share = 0.996
    """Of the momentum network at the start, rising to 1 by a cosine."""
    export: Literal["online", "momentum"] = "momentum"
    """The encoder that is evaluated and transferred, the momentum one as in the official code."""


class ReSA(Method[Config]):
    """The loss is of this process's images; encodings and embeddings of the momentum network are of all."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.target = MomentumCopy(encoder, config.momentum)
        dim = encoder.embedding_dim
        self.predictor = build_predictor(dim, config.predictor) if config.predictor else nn.Identity()

    def encoders(self) -> dict[str, Encoder]:
        return with_first(self.config.export, {"online": self.encoder, "momentum": self.target.network})

    def forward(self, batch: Batch) -> Step:
        self.target.update(self.target.momentum_at(self.progress))
        online = [self.encoder(view) for view in batch.views]
        with torch.no_grad():
            targets = [self.target(view) for view in batch.views[:TARGETS]]
            h, target_h, *target_z = (
                gather_with_gradient(at_least_float32(x).detach())
                for x in (online[0].h, targets[0].h, *(target.z for target in targets))
            )
            joint = assignment(h, target_h, self.config.sharpness, self.config.iterations)
            q_rows = joint[rank() * len(batch.index) :][: len(batch.index)]
        predictions = [self.predictor(encoded.z) for encoded in online]
        loss = _loss(predictions, target_z, q_rows, self.config.temperature)
        confidence = q_rows.max(dim=1).values.mean()
        return Step(loss, {"confidence": confidence, "spread": spread(online[0].z)})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def resa_loss(
    z: Sequence[Tensor],
    target_z: Sequence[Tensor],
    h: Tensor,
    target_h: Tensor,
    temperature: float = 0.4,
    sharpness: float = 0.05,
    iterations: int = 3,
) -> Tensor:
    """Mean over views q, target views v other than q, images i of  -sum_j Q_ij log softmax_j(cos(z_q,i, t_v,j) / tau).

    Args:
        z: V online outputs [N, D]; target_z: two of the momentum network, of views 0 and 1.
        h, target_h: encodings [N, F] of view 0, online and of the momentum network: their assignment Q is that of
            `assignment`. Gradients flow to z alone.
    Returns:
        Scalar, in float32 or wider.
    """
    return _loss(z, target_z, assignment(h, target_h, sharpness, iterations), temperature)


@torch.no_grad()
def assignment(h: Tensor, target_h: Tensor, sharpness: float = 0.05, iterations: int = 3) -> Tensor:
    """Q [N, N], rows summing to 1: cosines of encodings [N, F] each, balanced by Sinkhorn and Knopp's algorithm."""
    with float32_region(h):
        return sinkhorn(unit_rows(h) @ unit_rows(target_h).mT, sharpness, iterations)


def _loss(z: Sequence[Tensor], target_z: Sequence[Tensor], q_rows: Tensor, temperature: float) -> Tensor:
    with float32_region(z[0]):
        rows, columns = [unit_rows(x) for x in z], [unit_rows(t.detach()) for t in target_z]
        terms = [
            -(q_rows * F.log_softmax(row @ column.mT / temperature, dim=1)).sum(dim=1).mean()
            for q, row in enumerate(rows)
            for v, column in enumerate(columns)
            if v != q
        ]
        return torch.stack(terms).mean()
