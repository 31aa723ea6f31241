"""Inverse roots and factors of covariances S [B, P, P], which are symmetric and positive definite; B of them at once.

A covariance squares the condition number of its embeddings, so that callers form it in float64. One that is numerically
singular is refused: see `losses.deferred` for when that is reported on a GPU.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.losses.deferred import require
from whitebench.errors import UserError

WIDE_NEWTON = 512
"""Variables up to which Newton's iteration runs in float64."""


def inverse_power(s: Tensor, exponent: float = 0.5) -> Tensor:
    """S^(-exponent) of symmetric positive definite S [B, P, P].

    Raises:
        UserError: S is numerically singular or not finite.
    """
    power: Tensor = _InversePower.apply(s, exponent)
    return power


def eigendecomposition(s: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [B, P], ascending, and vectors [B, P, P] of a covariance of full rank."""
    try:
        eigenvalues, vectors = torch.linalg.eigh(s)
    except torch.linalg.LinAlgError as error:
        raise UserError("whitening: the embeddings are not finite, or too large for their covariance") from error
    with torch.no_grad():
        _refuse_singular(eigenvalues[:, 0], eigenvalues[:, -1], s.shape[-1])
    return eigenvalues, vectors


def _refuse_singular(smallest: Tensor, largest: Tensor, variables: int) -> None:
    """Raises where the smallest eigenvalue [B] is no more than the rounding error of the largest."""
    tolerance = 2 * math.sqrt(variables) * torch.finfo(smallest.dtype).eps
    regular = smallest > tolerance * largest
    require(regular, lambda: _singular(smallest, largest, int(regular.long().argmin()), variables))


def _singular(smallest: Tensor, largest: Tensor, worst: int, variables: int) -> UserError:
    return UserError(
        f"whitening: the covariance of {variables} variables is numerically singular (eigenvalues from "
        f"{float(smallest[worst]):.3g} to {float(largest[worst]):.3g}): constant or repeated embeddings, or too many "
        f"variables for the observations; whiten fewer at once, or set eps, e.g. 1e-4"
    )


def cholesky_factor(covariance: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(covariance)
    with torch.no_grad():
        pivots = torch.where(failed.unsqueeze(-1) == 0, diagonal_of(factor).square(), 0)
        _refuse_singular(pivots.amin(-1), diagonal_of(covariance).amax(-1), covariance.shape[-1])
    return factor


def newton_inverse_root(s: Tensor, iterations: int, trace: Tensor | None = None) -> Tensor:
    """Newton's iteration towards S^(-1/2), [B, P, P]; no eps anywhere, as its authors (Huang et al., CVPR 2019) do it.

    The iterate P of P <- (3 P - P^3 S) / 2, S over its trace, is Z of the coupled iteration Z <- F Z, Y <- Y F,
    F = (3 I - Z Y) / 2, which takes as many products. Rounding errors of the first form grow with every step along the
    small eigenvalues, in the order in which its authors multiply (by the transpose of P) by less, and without bound: at
    T = 9 gradients in float32 are off by orders of magnitude. Those of the coupled form do not grow (Higham, "Stable
    iterations for the matrix square root", 1997). It runs in float64 up to a size where that costs little.

    Args:
        trace: [B], by which S is scaled; None: its own.
    Raises:
        UserError: S is zero or not finite.
    """
    trace = diagonal_of(s).sum(-1) if trace is None else trace
    if iterations < 1:
        raise UserError(f"iternorm: at least 1 iteration, not {iterations}")
    message = "iternorm: the embeddings are constant (no variance to normalise) or not finite"
    require((trace > 0) & trace.isfinite(), lambda: UserError(message))
    variables, dtype = s.shape[-1], s.dtype
    if variables <= WIDE_NEWTON:
        s, trace = s.double(), trace.double()
    unit = s / trace[:, None, None]
    half = 1.5 * torch.eye(variables, dtype=unit.dtype, device=unit.device).expand_as(unit)
    root = half - 0.5 * unit  # the first step, from the identity
    product = torch.bmm(unit, root)
    for remaining in reversed(range(iterations - 1)):
        factor = torch.baddbmm(half, root, product, alpha=-0.5)
        root = torch.bmm(factor, root)
        if remaining:
            product = torch.bmm(product, factor)
    return (root * trace.rsqrt()[:, None, None]).to(dtype)


def pca_matrix(covariance: Tensor) -> Tensor:
    eigenvalues, vectors = eigendecomposition(covariance)
    return (vectors * eigenvalues.rsqrt().unsqueeze(-2)).flip(-1).mT


class _InversePower(torch.autograd.Function):
    """S^(-p) of symmetric positive definite S [B, P, P].

    The gradient follows Daleckii and Krein: U (F * (U^T G U)) U^T with F the divided differences of f at the
    eigenvalues. Unlike the gradient through eigenvectors, it exists where eigenvalues coincide.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, exponent: float) -> Tensor:
        eigenvalues, vectors = eigendecomposition(s)
        ctx.save_for_backward(eigenvalues, vectors)
        ctx.exponent = exponent
        return torch.bmm(vectors * eigenvalues.pow(-exponent).unsqueeze(-2), vectors.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        eigenvalues, vectors = ctx.saved_tensors
        with torch.autocast(device_type=vectors.device.type, enabled=False):
            inner = torch.bmm(vectors.mT, torch.bmm((gradient + gradient.mT) / 2, vectors))
            inner *= _divided_differences(eigenvalues, ctx.exponent)
            return torch.bmm(vectors, torch.bmm(inner, vectors.mT)), None


def _divided_differences(eigenvalues: Tensor, p: float) -> Tensor:
    """(f(a) - f(b)) / (a - b) for f(t) = t^(-p) at all pairs of eigenvalues [B, P] -> [B, P, P]; f'(a) at a = b.

    In a form that cancels nowhere: for p = 1/2, with r = sqrt(a) and s = sqrt(b), -1 / (r s (r + s)); otherwise, with
    x = log(a / b) / 2, -(a b)^(-(p + 1) / 2) sinh(p x) / sinh(x).
    """
    if p == 0.5:
        roots = eigenvalues.sqrt()
        r, s = roots.unsqueeze(-1), roots.unsqueeze(-2)
        return -1 / (r * s * (r + s))
    logs = eigenvalues.log()
    x = (logs.unsqueeze(-1) - logs.unsqueeze(-2)) / 2
    near = x.abs() < 1e-4
    ratio = torch.where(near, p * (1 + (p * p - 1) * x.square() / 6), (p * x).sinh() / x.masked_fill(near, 1).sinh())
    scale = eigenvalues.pow(-(p + 1) / 2)
    return -ratio * scale.unsqueeze(-1) * scale.unsqueeze(-2)


def diagonal_of(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)
