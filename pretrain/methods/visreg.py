"""VISReg: views are drawn to the centre of the global ones, embeddings to mean 0, variance 1 and a Gaussian's shape.

arXiv 2606.02572; constants as in its official code, whose text is not used here. The regulariser is over the images of
all processes. As there, each process draws slices of its own, so that W processes see W times as many and their losses
differ: with method.slices_per_process=false they share the slices, and two processes train as one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.checks import check_images
from pretrain.losses.similarity import distance_to_centre, spread
from pretrain.losses.sliced import random_directions, sorted_distance
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Method, Step
from pretrain.networks import embed_by_size
from whitebench.config import strict
from whitebench.ranges import PositiveFloat, PositiveInt, Share


@strict
class Config:
    weight: Share = 0.9
    """lambda, of the regulariser; the invariance has 1 - lambda."""
    slices: PositiveInt = 4096
    """K, random directions a step."""
    global_views: PositiveInt = 2
    """The first views; all are drawn to their mean."""
    eps: PositiveFloat = 1e-6
    """Added to standard deviations."""
    slices_per_process: bool = True
    """Whether each process draws slices of its own (the official code)."""


class VISReg(Method[Config]):
    def forward(self, batch: Batch) -> Step:
        config = self.config
        views = embed_by_size(self.encoder, batch.views)
        device = views[0].device
        generator = self.shared_generator(device)
        if config.slices_per_process:  # torch's own generators are seeded from (seed, step, rank)
            generator.manual_seed(int(torch.randint(2**62, ())))
        directions = random_directions(self.encoder.embedding_dim, config.slices, generator)
        invariance = distance_to_centre(views, config.global_views)
        gathered = [gather_with_gradient(at_least_float32(view)) for view in views]
        terms = _regulariser(gathered, directions, config.eps)
        loss = config.weight * terms.total + (1 - config.weight) * invariance
        scalars = {"invariance": invariance.detach(), **{k: v.detach() for k, v in terms._asdict().items()}}
        return Step(loss, {**scalars, "spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return not config.slices_per_process

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        check_images("visreg", batch, "a variance")


def visreg_loss(
    views: Sequence[Tensor],
    directions: Tensor,
    weight: float = 0.9,
    global_views: int | None = None,
    eps: float = 1e-6,
    divisor_eps: float | None = None,
) -> Tensor:
    """weight * R + (1 - weight) * inv.

    R, averaged over views, is the sum of three terms: centre, the mean of the squared column means; scale, the mean of
    (s - 1)^2, s the columns' biased standard deviation plus eps; shape, the distance of the sorted projections of
    (x - mean) / s from normal quantiles. No gradient flows through s in the shape. inv: see `distance_to_centre`.

    Args:
        views: embeddings [n, D] each, any floating dtype; computed in float32 or wider.
        directions: [D, K], columns of length 1.
        global_views: whose mean is the centre; None: all.
        divisor_eps: as eps, in the shape term alone (lightly: eps 0, divisor_eps 1e-4); None: the same eps.
    Returns:
        Scalar.
    """
    total = _regulariser(views, directions, eps, divisor_eps).total
    return weight * total + (1 - weight) * distance_to_centre(views, global_views)


class _Terms(NamedTuple):
    centre: Tensor
    scale: Tensor
    shape: Tensor

    @property
    def total(self) -> Tensor:
        return self.centre + self.scale + self.shape


def _regulariser(views: Sequence[Tensor], directions: Tensor, eps: float, divisor_eps: float | None = None) -> _Terms:
    with float32_region(views[0]):
        terms = [_terms(at_least_float32(view), directions, eps, divisor_eps) for view in views]
        return _Terms(*(torch.stack(term).mean() for term in zip(*terms, strict=True)))


def _terms(x: Tensor, directions: Tensor, eps: float, divisor_eps: float | None) -> _Terms:
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    # The root's gradient is infinite at 0: a constant channel is pushed by no scale, as it would be by its rounding.
    deviation = torch.where(variance > 0, variance.where(variance > 0, 1.0).sqrt(), 0.0)
    divisor = deviation.detach() + (eps if divisor_eps is None else divisor_eps)
    shape = sorted_distance((x - mean) / divisor, directions)
    return _Terms(mean.square().mean(), (deviation + eps - 1).square().mean(), shape)
