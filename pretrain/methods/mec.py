"""MEC: the coding length of embeddings is made large, and views agree, by a series of log det.

Liu et al., "Self-Supervised Learning via Maximum Entropy Coding", NeurIPS 2022 (arXiv 2210.11464); constants as in its
official code: a predictor on the online side, and a teacher that follows the encoder. Everything is over the images of
all processes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.spectra import trace_polynomial
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Encoder, Method, Step, with_first
from pretrain.networks import MomentumCopy, build_predictor
from whitebench.config import strict
from whitebench.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Share

VIEWS = 2


@strict
class Config:
    distortion: PositiveFloat = 64.0
    """eps: the product of embeddings is divided by N eps / D, N the global batch and D the embedding's width."""
    warmup_factor: PositiveFloat = 8.0
    """The divisor is this many times as large at the start, so that the series converges."""
    warmup_epochs: NonNegativeInt = 10
    """Epochs of its linear fall."""
    order: PositiveInt = 4
    """Terms of the series."""
    predictor: PositiveInt = 512
    """Width of the predictor's hidden layer."""
    momentum: Share = 0.996
    """Of the teacher at the start, rising to 1 by a cosine."""
    export: Literal["online", "momentum"] = "online"
    """The encoder that is evaluated and transferred."""


class MEC(Method[Config]):
    """Every process computes the loss of the whole batch."""

    maximum_views = 2

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.teacher = MomentumCopy(encoder, config.momentum)
        self.predictor = build_predictor(encoder.embedding_dim, config.predictor)

    def encoders(self) -> dict[str, Encoder]:
        return with_first(self.config.export, {"online": self.encoder, "momentum": self.teacher.network})

    def forward(self, batch: Batch) -> Step:
        online = [self.encoder(view).z for view in batch.views]
        predictions = [gather_with_gradient(at_least_float32(self.predictor(z))) for z in online]
        with torch.no_grad():
            targets = [gather_with_gradient(at_least_float32(self.teacher(view).z)) for view in batch.views]
        images, width = predictions[0].shape
        scale = self.factor * images * self.config.distortion / width
        loss = mec_loss(predictions, targets, scale, self.config.order)
        return Step(loss, {"spread": spread(online[0])})

    @property
    def factor(self) -> float:
        """Of the divisor at this step."""
        start, steps = self.config.warmup_factor, self.config.warmup_epochs * self.steps_per_epoch
        return start + (1 - start) * min(1.0, self.step / max(1, steps - 1)) if steps else 1.0

    def after_update(self) -> None:
        self.teacher.update(self.teacher.momentum_at(self.progress))

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def mec_loss(predictions: Sequence[Tensor], targets: Sequence[Tensor], scale: float, order: int = 4) -> Tensor:
    """-(scale / N) times the mean of T(t_0, p_1) and T(t_1, p_0); T is the series of log det(I + t p^T / scale).

    The trace of a power of t p^T [N, N] is that of p^T t [D, D]: the smaller of both is used.

    Args:
        predictions, targets: two views [N, D] each, brought to length 1 here; gradients flow to both as they come.
    Returns:
        Scalar, in float32 or wider.
    """
    with float32_region(predictions[0]):
        p, t = ([unit_rows(x) for x in views] for views in (predictions, targets))
        series = [_log_det_series(t[a], p[1 - a], scale, order) for a in range(VIEWS)]
        return -scale / len(p[0]) * torch.stack(series).mean()


def _log_det_series(t: Tensor, p: Tensor, scale: float, order: int) -> Tensor:
    product = (t @ p.mT if len(p) <= p.shape[1] else p.mT @ t) / scale
    return trace_polynomial(product, [(-1) ** (k + 1) / k for k in range(1, order + 1)])
