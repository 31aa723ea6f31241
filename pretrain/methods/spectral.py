"""Spectral transformation: the framework of which whitening losses and INTL are instances, one setting each.

Weng et al., "Modulate Your Spectrum in Self-Supervised Learning", ICLR 2024 (arXiv 2305.16789): the views' spectra are
transformed by a function of the eigenvalues of their covariance, and the outputs are drawn together; the gradient flows
back through the transform, and there is no stop-gradient. IterNorm with the trace loss and two views is INTL; ZCA on
the channel axis is CW-RGP with one group. Of the framework itself only the abstract was available: which powers the
paper tried, and the mean over pairs of more than two views, are a reconstruction.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient, world_size
from pretrain.losses.similarity import mean_pair_distance, mean_squared_difference, spread
from pretrain.losses.whitening import Axis, Transform, at_least_float32, check_whitenable, whiten
from pretrain.method import Method, Step
from pretrain.methods.intl import trace_loss, trade_off_of
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.ranges import NonNegativeFloat, PositiveInt, ShareBelowOne

Kind = Transform | Literal["none"]


@strict
class Config:
    transform: Kind = "iternorm"
    """Function of the spectrum (see `losses.whitening`); none: views are drawn together as they are, and collapse."""
    iterations: PositiveInt = 4
    """T, Newton steps of iternorm."""
    exponent: NonNegativeFloat = 0.5
    """p of power: eigenvalues are multiplied by their power -2 p; 0.5 whitens."""
    axis: Axis = "channel"
    """channel: images are decorrelated from each other, over channels [N, N]; batch: channels, over images [D, D]."""
    groups: PositiveInt = 1
    """Neighbouring channels are transformed in this many groups."""
    eps: ShareBelowOne = 0.0
    """Shrinkage of the covariance towards the identity."""
    trace_loss: bool = False
    """Whether transformed variables are also pushed to variance 1; iternorm leaves them below."""
    trade_off: NonNegativeFloat | None = None
    """beta, weight of the trace loss; None means the paper's, as in `intl`."""
    normalize: bool = True
    """Compare transformed rows by 2 - 2 cos; otherwise by the mean squared difference."""
    gather: bool = True
    """Whether the images of all processes are transformed together; otherwise each process transforms its own."""


class Spectral(Method[Config]):
    """All views have gradients."""

    def forward(self, batch: Batch) -> Step:
        views = [at_least_float32(self.encoder(view).z) for view in batch.views]
        if self.config.gather:
            views = [gather_with_gradient(z) for z in views]
        outputs = [self._transform(z) for z in views]
        loss = _distance(outputs, self.config.normalize)
        scalars = {"transformed_distance": loss.detach(), "spread": spread(views[0])}
        if self.config.trace_loss:
            trace = _pair_trace(outputs, self.config.axis)
            loss = loss + trade_off_of(self.config.trade_off, views[0], self.config.axis) * trace
            scalars["trace"] = trace.detach() / 2
        return Step(loss, scalars)

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return config.gather

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        config, channels = self.config, self.encoder.embedding_dim
        if config.trace_loss:
            _check_trace(config.transform, config.axis, config.groups)
        images = batch * world_size() if config.gather else batch
        if config.transform != "none":
            check_whitenable(images, channels, config.groups, config.transform, config.axis, config.eps)
        variables = images if config.axis == "channel" else channels
        if config.trace_loss and config.trade_off is None and variables <= 8:
            formula = "the paper's trade-off 0.01 (log2 n - 3)"
            raise UserError(f"spectral: {formula} is not positive for n = {variables}; set method.trade_off")

    def transformed(self, z: Tensor) -> Tensor | None:
        return None if self.config.transform == "none" else self._transform(z)

    def _transform(self, z: Tensor) -> Tensor:
        config = self.config
        return _transform(
            z, config.transform, config.axis, config.groups, config.eps, config.iterations, config.exponent
        )


def spectral_loss(
    views: Sequence[Tensor],
    transform: Kind = "iternorm",
    axis: Axis = "channel",
    groups: int = 1,
    eps: float = 0.0,
    iterations: int = 4,
    exponent: float = 0.5,
    with_trace_loss: bool = False,
    trade_off: float | None = None,
    normalize: bool = True,
) -> Tensor:
    """Mean over pairs of views of  d(t_i, t_j) + beta (TL(t_i) + TL(t_j)),  t the transformed views.

    Args:
        views: V >= 2 embeddings of the same N images, each [N, D], any floating dtype; computed in float32 or wider.
        with_trace_loss: without it, beta is 0.
        trade_off: beta; None means the paper's, as in `intl_loss`.
        normalize: d = 2 - 2 cos, the mean over rows; otherwise the mean squared difference.
    Returns:
        Scalar.
    Raises:
        UserError: sizes that cannot be transformed, a singular covariance (all transforms but none and iternorm).
    """
    outputs = [_transform(z, transform, axis, groups, eps, iterations, exponent) for z in views]
    distance = _distance(outputs, normalize)
    if not with_trace_loss:
        return distance
    _check_trace(transform, axis, groups)
    return distance + trade_off_of(trade_off, views[0], axis) * _pair_trace(outputs, axis)


def _distance(outputs: Sequence[Tensor], normalize: bool) -> Tensor:
    return mean_pair_distance(outputs) if normalize else mean_squared_difference(outputs)


def _pair_trace(outputs: Sequence[Tensor], axis: Axis) -> Tensor:
    """The mean over pairs of views of both trace losses together."""
    traces = [trace_loss(output, axis) for output in outputs]
    return torch.stack([a + b for a, b in combinations(traces, 2)]).mean()


def _check_trace(transform: Kind, axis: Axis, groups: int) -> None:
    if transform == "none":
        raise UserError("spectral: the trace loss is of transformed views (method.transform, method.trace_loss)")
    if axis == "channel" and groups > 1:
        raise UserError("spectral: on the channel axis the trace loss needs method.groups=1: groups are not centred")


def _transform(
    z: Tensor, transform: Kind, axis: Axis, groups: int, eps: float, iterations: int, exponent: float
) -> Tensor:
    if transform == "none":
        return z
    return whiten(z, transform, axis, groups, eps=eps, iterations=iterations, exponent=exponent)
