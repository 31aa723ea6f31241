"""INTL: IterNorm with trace loss.

Weng et al., "Modulate Your Spectrum in Self-Supervised Learning", ICLR 2024 (arXiv 2305.16789); constants as in its
official code. The images of all processes are whitened together.
"""

from collections.abc import Sequence
from math import log2
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient, world_size
from pretrain.losses.similarity import cosine_distance, spread
from pretrain.losses.whitening import Axis, at_least_float32, whiten
from pretrain.method import Encoder, Method, Step, with_first
from pretrain.networks import MomentumCopy
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.hashing import added
from whitebench.ranges import NonNegativeFloat, PositiveInt, Share


@strict
class Config:
    iterations: PositiveInt = 4
    """T, Newton steps of IterNorm; more steps whiten harder."""
    trade_off: NonNegativeFloat | None = None
    """beta, weight of the trace loss; None means the paper's 0.01 (log2 n - 3), n the number of variables: the global
    batch on the channel axis, the embedding's width on the batch axis."""
    axis: Axis = "channel"
    """channel: images are decorrelated from each other, over channels [N, N]; batch: channels, over images [D, D]."""
    momentum: Share | None = None
    """EMA momentum at the start, rising to 1 by a cosine; None trains without a target network."""
    export: Literal["online", "momentum"] = added("online")
    """With a target network, the encoder that is evaluated and transferred; the online one in the official code."""


class INTL(Method[Config]):
    """View 0 is the target: of the online network itself, or of its EMA copy (then view 0 gets no gradient)."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.target = MomentumCopy(encoder, config.momentum) if config.momentum is not None else None

    def forward(self, batch: Batch) -> Step:
        if self.target is None:
            views = [self._embed(self.encoder, view) for view in batch.views]
            outputs = [self._whiten(z) for z in views]
            terms = _plain_terms(outputs, self.config.axis)
        else:
            self.target.update(self.target.momentum_at(self.progress))
            with torch.no_grad():
                target = self._whiten(self._embed(self.target, batch.views[0]))
            views = [self._embed(self.encoder, view) for view in batch.views[1:]]
            outputs = [self._whiten(z) for z in views]
            terms = _ema_terms(outputs, target, self.config.axis)
        loss = terms.distance + trade_off_of(self.config.trade_off, views[0], self.config.axis) * terms.trace
        images, channels = views[0].shape
        floor = trace_floor(images, channels, self.config.iterations, self.config.axis)
        scalars = {"whitened_distance": terms.distance.detach(), "trace_excess": terms.mean_trace.detach() - floor}
        return Step(loss, {**scalars, "spread": spread(views[0])})

    def encoders(self) -> dict[str, Encoder]:
        if self.target is None:
            return super().encoders()
        return with_first(self.config.export, {"online": self.encoder, "momentum": self.target.network})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        variables = batch * world_size() if self.config.axis == "channel" else self.encoder.embedding_dim
        if self.config.trade_off is None and variables <= 8:
            formula = "the paper's trade-off 0.01 (log2 n - 3)"
            raise UserError(f"intl: {formula} is not positive for n = {variables}; set method.trade_off")

    def transformed(self, z: Tensor) -> Tensor:
        return self._whiten(z)

    def _embed(self, network: torch.nn.Module, view: Tensor) -> Tensor:
        """The embeddings of all processes, [N, D], float32 before they are gathered, so that gradients add up in it."""
        return gather_with_gradient(at_least_float32(network(view).z))

    def _whiten(self, z: Tensor) -> Tensor:
        return whiten(z, "iternorm", axis=self.config.axis, iterations=self.config.iterations)


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
    terms = _plain_terms([whiten(z, "iternorm", axis=axis, iterations=iterations) for z in views], axis)
    return terms.distance + trade_off_of(trade_off, views[0], axis) * terms.trace


def intl_ema_loss(
    online: Sequence[Tensor], target: Tensor, iterations: int = 4, trade_off: float | None = None
) -> Tensor:
    """As `intl_loss` on the channel axis, with a target [N, D] that gets neither gradient nor trace loss."""
    whitened_target = whiten(target.detach(), "iternorm", iterations=iterations)
    terms = _ema_terms([whiten(z, "iternorm", iterations=iterations) for z in online], whitened_target, "channel")
    return terms.distance + trade_off_of(trade_off, target, "channel") * terms.trace


def trace_loss(output: Tensor, axis: Axis) -> Tensor:
    """Sum over the whitened variables of (variance - 1)^2: IterNorm alone leaves them below 1.

    The output [N, D] is centred, as `whiten` leaves it.
    """
    dim = 1 if axis == "channel" else 0
    variance = output.norm(dim=dim).square() / (output.shape[dim] - 1)
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


def trade_off_of(trade_off: float | None, embedding: Tensor, axis: Axis) -> float:
    """beta for embeddings [N, D]: `trade_off`, or the paper's 0.01 (log2 n - 3), n = N or D (see `Config`)."""
    n, d = embedding.shape
    return 0.01 * (log2(n if axis == "channel" else d) - 3) if trade_off is None else trade_off


class _Terms(NamedTuple):
    distance: Tensor
    trace: Tensor
    """What beta weighs."""
    mean_trace: Tensor
    """Over the views with gradients; to watch."""


def _plain_terms(outputs: Sequence[Tensor], axis: Axis) -> _Terms:
    """Over views i > 0, the means of d(t_i, t_0) and of TL(t_i) + TL(t_0)."""
    traces = torch.stack([trace_loss(output, axis) for output in outputs])
    return _Terms(_mean_distance(outputs[1:], outputs[0]), traces[1:].mean() + traces[0], traces.mean())


def _ema_terms(outputs: Sequence[Tensor], target: Tensor, axis: Axis) -> _Terms:
    """Over the online views, the means of d(t_i, target) and of TL(t_i)."""
    trace = torch.stack([trace_loss(output, axis) for output in outputs]).mean()
    return _Terms(_mean_distance(outputs, target), trace, trace)


def _mean_distance(outputs: Sequence[Tensor], target: Tensor) -> Tensor:
    return torch.stack([cosine_distance(output, target) for output in outputs]).mean()
