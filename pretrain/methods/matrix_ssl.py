"""Matrix-SSL: views agree by the cross-entropy of covariance matrices (matrix logarithms by their series).

Zhang et al., "Matrix Information Theory for Self-Supervised Learning", ICML 2024 (arXiv 2305.17326). Scale and shift
are 1, as in the command of the official README (the code's defaults are 0.5). Networks, teacher and gathering as MEC's.
"""

from collections.abc import Sequence
from math import comb
from typing import Literal

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.gram import gram_of
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.spectra import trace_polynomial
from pretrain.losses.whitening import at_least_float32, centred, float32_region
from pretrain.method import Encoder, Method, Step, with_first
from pretrain.networks import MomentumCopy, build_predictor
from whitebench.config import strict
from whitebench.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, Share

VIEWS = 2


@strict
class Config:
    scale: PositiveFloat = 1.0
    """lambda, of the logarithm between views."""
    shift: NonNegativeFloat = 1.0
    """mu: covariances are taken with mu times the identity."""
    own_weight: NonNegativeFloat = 1.0
    """gamma, of the cross-entropy of the views' own covariances."""
    order: PositiveInt = 4
    """Terms of the logarithm's series."""
    predictor: PositiveInt = 512
    """Width of the predictor's hidden layer."""
    momentum: Share = 0.996
    """Of the teacher at the start, rising to 1 by a cosine."""
    export: Literal["online", "momentum"] = "online"
    """The encoder that is evaluated and transferred."""


class MatrixSSL(Method[Config]):
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
        config = self.config
        loss = matrix_ssl_loss(predictions, targets, config.scale, config.shift, config.own_weight, config.order)
        return Step(loss, {"spread": spread(online[0])})

    def after_update(self) -> None:
        self.teacher.update(self.teacher.momentum_at(self.progress))

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def matrix_ssl_loss(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    scale: float = 1.0,
    shift: float = 1.0,
    own_weight: float = 1.0,
    order: int = 4,
) -> Tensor:
    """Mean over both directions (t_a, p_b), b other than a, of cross(t, p) + own_weight * own(t, p).

    cross(t, p) = -tr(scale * log(C(t, p) + shift I)), own(t, p) = -tr((C(t, t) + shift I) log(C(p, p) + shift I)), with
    C(a, b) = a^T J b / N of rows of length 1, J the centring over images, and the logarithm's series to `order`.

    Args:
        predictions, targets: two views [N, D] each; gradients flow to both as they come.
    Returns:
        Scalar, in float32 or wider.
    """
    with float32_region(predictions[0]):
        p, t = ([unit_rows(x) for x in views] for views in (predictions, targets))
        p, t = ([centred(x, "batch") / len(x) ** 0.5 for x in views] for views in (p, t))
        terms = [
            cross_entropy(t[a], p[1 - a], scale, shift, order) + own_weight * own_entropy(t[a], p[1 - a], shift, order)
            for a in range(VIEWS)
        ]
        return torch.stack(terms).mean()


def cross_entropy(t: Tensor, p: Tensor, scale: float, shift: float, order: int) -> Tensor:
    """-tr(scale * log(t^T p + shift I)) of t, p [N, D], from traces of powers on the smaller side."""
    width = p.shape[1]
    product = t @ p.mT if len(p) <= width else p.mT @ t
    constant, *coefficients = _log_coefficients(shift, order)
    return -scale * (constant * width + trace_polynomial(product, coefficients))


def own_entropy(t: Tensor, p: Tensor, shift: float, order: int) -> Tensor:
    """-tr((t^T t + shift I) log(p^T p + shift I)) of t, p [N, D].

    With fewer images than channels, tr(t^T t (p^T p)^k) is the inner product of X (p p^T)^(k - 1) and X = t p^T, and no
    [D, D] matrix is formed.
    """
    width = p.shape[1]
    coefficients = _log_coefficients(shift, order)
    small = len(p) <= width
    gram = gram_of(p if small else p.mT)
    own = coefficients[0] * width + trace_polynomial(gram, coefficients[1:])
    mixed = [t.square().sum()]
    if small:
        product = cross = t @ p.mT
        for _ in range(order):
            mixed.append((product * cross).sum())
            product = product @ gram if len(mixed) <= order else product
    else:
        target_gram, power = gram_of(t.mT), gram
        for _ in range(order):
            mixed.append((target_gram * power).sum())
            power = power @ gram if len(mixed) <= order else power
    return -_combined(mixed, coefficients) - shift * own


def _log_coefficients(shift: float, order: int) -> list[float]:
    """Of C^0, ..., C^order in the series sum_k (-1)^(k+1) (C + (shift - 1) I)^k / k, k = 1 ... order."""
    a = shift - 1
    coefficients = [0.0] * (order + 1)
    for k in range(1, order + 1):
        for j in range(k + 1):
            coefficients[j] += (-1) ** (k + 1) / k * comb(k, j) * a ** (k - j)
    return coefficients


def _combined(terms: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    return torch.stack([c * term for c, term in zip(coefficients, terms, strict=True) if c]).sum()
