"""INTL: IterNorm with trace loss.

Weng et al., "Modulate Your Spectrum in Self-Supervised Learning", ICLR 2024 (arXiv 2305.16789); constants as in its
official code. The images of all processes are whitened together.
"""

from collections.abc import Sequence
from math import log2

import torch
from torch import Tensor

from pretrain.distributed import gather_with_gradient, world_size
from pretrain.methods import Batch, Encoder, Method, Step
from pretrain.methods.similarity import cosine_distance, spread
from pretrain.networks import MomentumCopy
from pretrain.recipe import strict
from pretrain.whitening import Axis, at_least_float32, float32_region, whiten
from results.command import UserError


@strict
class Config:
    iterations: int = 4
    """T, Newton steps of IterNorm; more steps whiten harder."""
    trade_off: float | None = None
    """beta, weight of the trace loss; None means the paper's 0.01 (log2 n - 3), n the number of variables: the global
    batch on the channel axis, the embedding's width on the batch axis."""
    axis: Axis = "channel"
    """channel: images are decorrelated from each other, over channels [N, N]; batch: channels, over images [D, D]."""
    momentum: float | None = None
    """EMA momentum at the start, rising to 1 by a cosine; None trains without a target network."""


class INTL(Method[Config]):
    """View 0 is the target: of the online network itself, or of its EMA copy (then view 0 gets no gradient)."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.target = MomentumCopy(encoder, config.momentum) if config.momentum is not None else None

    def forward(self, batch: Batch) -> Step:
        if self.target is None:
            views = [self._embed(self.encoder, view) for view in batch.views]
            outputs = [self._whiten(z) for z in views]
            distance, trace = _plain_terms(outputs, self.config.axis)
        else:
            self.target.update(self.progress)
            with torch.no_grad():
                target = self._whiten(self._embed(self.target, batch.views[0]))
            views = [self._embed(self.encoder, view) for view in batch.views[1:]]
            outputs = [self._whiten(z) for z in views]
            distance, trace = _ema_terms(outputs, target, self.config.axis)
        beta = _trade_off(self.config.trade_off, views[0], self.config.axis)
        return Step(distance + beta * trace, self._scalars(views, outputs, distance))

    def check(self, batch: int, views: int) -> None:
        if views < 2:
            raise UserError(f"intl: needs at least 2 views, not {views} (data.views)")
        variables = batch * world_size() if self.config.axis == "channel" else self.encoder.embedding_dim
        if self.config.trade_off is None and variables <= 8:
            formula = "the paper's trade-off 0.01 (log2 n - 3)"
            raise UserError(f"intl: {formula} is not positive for n = {variables}; set method.trade_off")
        if self.config.iterations < 1:
            raise UserError(f"intl: iterations is at least 1, not {self.config.iterations} (method.iterations)")
        if self.config.momentum is not None and not 0 <= self.config.momentum <= 1:
            raise UserError(f"intl: momentum lies between 0 and 1, not {self.config.momentum} (method.momentum)")

    def _embed(self, network: torch.nn.Module, view: Tensor) -> Tensor:
        """The embeddings of all processes, [N, D], float32 before they are gathered, so that gradients add up in it."""
        return gather_with_gradient(at_least_float32(network(view).z))

    def _whiten(self, z: Tensor) -> Tensor:
        return whiten(z, "iternorm", axis=self.config.axis, iterations=self.config.iterations)

    @torch.no_grad()
    def _scalars(self, views: Sequence[Tensor], outputs: Sequence[Tensor], distance: Tensor) -> dict[str, Tensor]:
        images, channels = outputs[0].shape
        floor = trace_floor(images, channels, self.config.iterations, self.config.axis)
        excess = torch.stack([trace_loss(output, self.config.axis) for output in outputs]).mean() - floor
        return {"whitened_distance": distance.detach(), "trace_excess": excess, "spread": spread(views)}


def intl_loss(
    views: Sequence[Tensor], iterations: int = 4, trade_off: float | None = None, axis: Axis = "channel"
) -> Tensor:
    """Mean over views i > 0 of  d(t_i, t_0) + beta (TL(t_i) + TL(t_0)),  t = IterNorm(z), d = 2 - 2 cos.

    Args:
        views: V >= 2 embeddings of the same N images, each [N, D], any floating dtype; computed in float32 or wider.
        trade_off: beta; None means the paper's 0.01 (log2 n - 3), n = N on the channel axis, D on the batch axis.
    Returns:
        Scalar. It contains a constant: at an equal spectrum TL does not reach 0 (209.6 for N = 256, T = 4).
    Raises:
        UserError: embeddings that are constant or not finite.
    """
    distance, trace = _plain_terms([whiten(z, "iternorm", axis=axis, iterations=iterations) for z in views], axis)
    return distance + _trade_off(trade_off, views[0], axis) * trace


def intl_ema_loss(
    online: Sequence[Tensor], target: Tensor, iterations: int = 4, trade_off: float | None = None
) -> Tensor:
    """As `intl_loss` on the channel axis, with a target [N, D] that gets neither gradient nor trace loss."""
    whitened_target = whiten(target.detach(), "iternorm", iterations=iterations)
    outputs = [whiten(z, "iternorm", iterations=iterations) for z in online]
    distance, trace = _ema_terms(outputs, whitened_target, "channel")
    return distance + _trade_off(trade_off, target, "channel") * trace


def trace_loss(output: Tensor, axis: Axis) -> Tensor:
    """Sum over the whitened variables of (variance - 1)^2: IterNorm alone leaves them below 1.

    The output [N, D] is centred, as `whiten` leaves it.
    """
    variables = output if axis == "channel" else output.mT
    with float32_region(output):
        variance = torch.linalg.vecdot(variables, variables) / (variables.shape[1] - 1)
        return variance.sub(1).square().sum()


def trace_floor(images: int, channels: int, iterations: int, axis: Axis = "channel") -> float:
    """The trace loss of IterNorm's output at an equal spectrum: what no encoder gets below.

    With r equal eigenvalues x = 1/r (in units of the trace), each of the n variables is left with the variance
    r x f(x)^2 / n, f Newton's iterate.
    """
    variables, observations = (images, channels) if axis == "channel" else (channels, images)
    rank = min(variables, observations - 1)
    root = 1.0
    for _ in range(iterations):
        root = 1.5 * root - 0.5 * root**3 / rank
    return variables * (root**2 / variables - 1) ** 2


def _plain_terms(outputs: Sequence[Tensor], axis: Axis) -> tuple[Tensor, Tensor]:
    """Over views i > 0, the means of d(t_i, t_0) and of TL(t_i) + TL(t_0)."""
    traces = torch.stack([trace_loss(output, axis) for output in outputs])
    distances = [cosine_distance(output, outputs[0]) for output in outputs[1:]]
    return torch.stack(distances).mean(), traces[1:].mean() + traces[0]


def _ema_terms(outputs: Sequence[Tensor], target: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """Over the online views, the means of d(t_i, target) and of TL(t_i)."""
    traces = [trace_loss(output, axis) for output in outputs]
    return torch.stack([cosine_distance(t, target) for t in outputs]).mean(), torch.stack(traces).mean()


def _trade_off(given: float | None, embedding: Tensor, axis: Axis) -> float:
    n, d = embedding.shape
    return 0.01 * (log2(n if axis == "channel" else d) - 3) if given is None else given
