"""MoCo v3: contrast of predictions with the momentum encoder's keys of all images in the batch, without a queue.

Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021 (arXiv 2104.02057);
constants as in its official code. Keys are those of all processes; queries are each process's own.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient, rank
from pretrain.losses.cross_view import find_partner
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Counting, Encoder, Method, Step, with_first
from pretrain.networks import MomentumCopy, mlp
from whitebench.config import strict
from whitebench.ranges import PositiveInt, Share, Temperature

VIEWS = 2


@strict
class Config:
    temperature: Temperature = 1.0
    """tau: 1.0 for ResNets (the official default), 0.2 for vision transformers."""
    momentum: Share = 0.99
    """Of the keys' encoder at the start, rising to 1 by a cosine."""
    export: Literal["online", "momentum"] = "online"
    """The encoder that is evaluated and transferred, the queries' as in the official code."""
    predictor: PositiveInt = 4096
    """Width of the predictor's hidden layer."""
    predictor_norm: bool = False
    """Whether the predictor ends in a batch norm without affine part (vision transformers)."""


class MoCoV3(Method[Config]):
    """The loss is of this process's queries."""

    maximum_views = 2
    counting: ClassVar[Counting] = "from-zero"

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.target = MomentumCopy(encoder, config.momentum)
        dim = encoder.embedding_dim
        layers = [*mlp(dim, [config.predictor], bias=False), nn.Linear(config.predictor, dim, bias=False)]
        if config.predictor_norm:
            layers.append(nn.BatchNorm1d(dim, affine=False))
        self.predictor = nn.Sequential(*layers)

    def encoders(self) -> dict[str, Encoder]:
        return with_first(self.config.export, {"online": self.encoder, "momentum": self.target.network})

    def forward(self, batch: Batch) -> Step:
        online = [self.encoder(view).z for view in batch.views]
        queries = [self.predictor(z) for z in online]
        with torch.no_grad():
            self.target.update(self.target.momentum_at(self.progress))
            keys = [gather_with_gradient(at_least_float32(self.target(view).z)) for view in batch.views]
        loss = moco_v3_loss(queries, keys, self.config.temperature, rank() * len(batch.index))
        return Step(loss, {"spread": spread(online[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def moco_v3_loss(q: Sequence[Tensor], k: Sequence[Tensor], tau: float = 1.0, first: int = 0) -> Tensor:
    """2 tau times the sum over both directions of the cross-entropy of finding query i's key among all keys.

    Args:
        q: queries of two views, [n, D] each. k: keys, [N, D] each; no gradient flows to them.
        first: the key of query 0; other than 0 where the keys are those of several processes.
    Returns:
        Scalar, in float32 or wider.
    """
    with float32_region(q[0]):
        queries, keys = [unit_rows(view) for view in q], [unit_rows(view.detach()) for view in k]
        terms = [find_partner(queries[v], keys[1 - v], tau, first) for v in range(VIEWS)]
        return 2 * tau * torch.stack(terms).sum()
