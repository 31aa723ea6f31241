"""CorInfoMax: attraction between views while the log-determinant of each view's running covariance is kept large.

Ozsoy et al., "Self-Supervised Learning with an Information Maximization Criterion", NeurIPS 2022; constants as in its
official code. Everything is over the images of all processes. Means, covariances and log-determinants are in float64,
as there, also in a training of lower precision.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.deferred import is_deferred, require
from pretrain.losses.gram import accumulated_product
from pretrain.losses.similarity import mean_squared_difference, spread, unit_rows
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Encoder, Method, Step
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.ranges import NonNegativeFloat, PositiveFloat, Share

VIEWS = 2


@strict
class Config:
    attraction: NonNegativeFloat = 250.0
    """alpha, weight of the mean squared difference between views."""
    memory: Share = 0.01
    """Share of the old mean and covariance that stays at each step (0.01: almost none)."""
    eps: NonNegativeFloat = 1e-8
    """Added to the covariances' diagonals."""
    initial: PositiveFloat = 1.0
    """The covariances at the start, times the identity."""


class State(NamedTuple):
    """Of each view, in float64 and without gradient."""

    mean: Tensor
    """[2, D]."""
    covariance: Tensor
    """[2, D, D]."""


class Outcome(NamedTuple):
    loss: Tensor
    state: State
    log_determinants: Tensor
    """Sum over views, divided by D."""


class CorInfoMax(Method[Config]):
    """Every process computes the loss of the whole batch."""

    maximum_views = 2

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        state = initial_state(encoder.embedding_dim, config.initial)
        self.mean: Tensor
        self.covariance: Tensor
        self.register_buffer("mean", state.mean)
        self.register_buffer("covariance", state.covariance)

    def forward(self, batch: Batch) -> Step:
        config = self.config
        views = [gather_with_gradient(at_least_float32(self.encoder(view).z)) for view in batch.views]
        # Copies: the buffers take up the new state before the backward pass needs the old one.
        state = State(self.mean.double().clone(), self.covariance.double().clone())
        outcome = corinfomax_loss(views, state, config.attraction, config.memory, config.eps)
        self.mean.copy_(outcome.state.mean)
        self.covariance.copy_(outcome.state.covariance)
        return Step(outcome.loss, {"log_determinants": outcome.log_determinants.detach(), "spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def initial_state(width: int, initial: float = 1.0) -> State:
    """For embeddings of `width` channels: means 0, covariances `initial` times the identity."""
    eye = initial * torch.eye(width, dtype=torch.float64)
    return State(torch.zeros(VIEWS, width, dtype=torch.float64), torch.stack([eye] * VIEWS))


def corinfomax_loss(
    views: Sequence[Tensor], state: State, attraction: float = 250.0, memory: float = 0.01, eps: float = 1e-8
) -> Outcome:
    """attraction * mean squared difference  -  sum over views of log det(R + eps I) / D,  rows brought to length 1.

    With s the old state's share `memory`: mean <- s mean + (1 - s) batch mean, x = z - the new mean, R <- s R +
    (1 - s) x^T x / N. Gradients flow through the present batch alone.

    Args:
        views: two embeddings [N, D], any floating dtype.
    Returns:
        Loss (float32 or wider) and the new state.
    Raises:
        UserError: a covariance that is singular (collapsed embeddings, no memory, eps 0) or not finite.
    """
    with float32_region(views[0]):
        rows = [unit_rows(view) for view in views]
        parts = [_LogDet.apply(z, *old, memory, eps) for z, old in zip(rows, zip(*state, strict=True), strict=True)]
        log_dets, means, covariances = (torch.stack(part) for part in zip(*parts, strict=True))
        log_det = log_dets.sum() / rows[0].shape[1]
        require(log_det.detach().isfinite(), _singular)
        loss = attraction * mean_squared_difference(rows) - log_det.to(rows[0].dtype)
        return Outcome(loss, State(means, covariances), log_det)


def _singular() -> UserError:
    return UserError("corinfomax: a covariance is singular or not finite: the embeddings have collapsed")


class _LogDet(torch.autograd.Function):
    """log det(R + eps I) of the updated covariance R; the updated mean, and R. All in float64.

    With x [N, D] the centred rows, its gradient with respect to x is 2 (1 - memory) / N x (R + eps I)^-1. For fewer
    images than channels, solving for their rows takes less than the inverse.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, mean: Tensor, covariance: Tensor, memory: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = z.double()
        mean = memory * mean + (1 - memory) * wide.mean(dim=0)
        x = wide - mean
        updated = accumulated_product(covariance, x.mT, memory, (1 - memory) / len(x))
        shifted = updated.clone()
        shifted.diagonal().add_(eps)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        value = torch.where(failed == 0, 2 * factor.diagonal().log().sum(), torch.nan)
        ctx.save_for_backward(x, factor)
        ctx.share, ctx.dtype = 1 - memory, z.dtype
        ctx.mark_non_differentiable(mean, updated)
        return value, mean, updated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, factor = ctx.saved_tensors
        # On an accelerator cholesky_inverse waits for its status; triangular solves do not.
        if len(x) < x.shape[1] or is_deferred(x):
            half = torch.linalg.solve_triangular(factor, x.mT, upper=False)
            solution = torch.linalg.solve_triangular(factor.mT, half, upper=True).mT
        else:
            solution = x @ torch.cholesky_inverse(factor)
        solution *= gradient * (2 * ctx.share / len(x))
        return (solution - ctx.share * solution.mean(dim=0)).to(ctx.dtype), None, None, None, None
