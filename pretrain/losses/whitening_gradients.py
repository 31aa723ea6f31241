"""ZCA and Cholesky whitening with their gradients in closed form.

Y = W A whitens A [B, P, Q] with S = scale A A^T + eps I. Since A = W^-1 Y, the gradient of a loss with respect to A
needs Y alone, not S. With G the gradient with respect to Y and P = G Y^T it is W^T (G - scale K Y), K symmetric:

    cholesky  S = C C^T, W = C^-1:     K = the lower triangle of P, mirrored
    zca       W = S^(-1/2), R = W^-1:  R K + K R = P R + R P^T; in the eigenvectors of R, with eigenvalues r,
                                       K_ij = (P_ij r_j + P_ji r_i) / (r_i + r_j)

The factors of P lie between 0 and 1 however ill-conditioned S is: what squares the condition number, S and its
eigenvalues, is in float64, and the products of the backward pass are as wide as A.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.losses.gram import symmetric_product
from pretrain.losses.matrix_functions import cholesky_factor, diagonal_of, eigendecomposition


def zca(a: Tensor, scale: float, eps: float = 0.0) -> Tensor:
    """S^(-1/2) A, [B, P, Q], of A in float32 or float64, outside autocast; its layout is that of A.

    Raises:
        UserError: S is numerically singular or not finite.
    """
    whitened: Tensor = _ZCA.apply(a, scale, eps)
    return whitened


def cholesky_whitened(a: Tensor, scale: float, eps: float = 0.0) -> Tensor:
    """C^-1 A, [B, P, Q], with S = C C^T; otherwise as `zca`."""
    whitened: Tensor = _Cholesky.apply(a, scale, eps)
    return whitened


class _ZCA(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, scale: float, eps: float) -> Tensor:
        values, vectors = eigendecomposition(_covariance(a, scale, eps))
        roots = values.sqrt()
        weight = symmetric_product(vectors * values.pow(-0.25).unsqueeze(-2)).to(a.dtype)
        y = symmetric_times(weight, a)
        shares = roots.unsqueeze(-2) / (roots.unsqueeze(-1) + roots.unsqueeze(-2))
        ctx.save_for_backward(y, weight, vectors.to(a.dtype), shares.to(a.dtype))
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        y, weight, vectors, shares = ctx.saved_tensors
        with _without_autocast(y):
            inner = torch.bmm(vectors.mT, torch.bmm(torch.bmm(gradient, y.mT), vectors)).mul_(shares)
            k = torch.bmm(vectors, torch.bmm(inner + inner.mT, vectors.mT))
            return symmetric_times(weight, less_product(gradient, k, y, ctx.scale)), None, None


class _Cholesky(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, scale: float, eps: float) -> Tensor:
        factor = cholesky_factor(_covariance(a, scale, eps))
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=a.device).expand_as(factor)
        # Of many observations, products with the inverse are faster than triangular solves.
        weight = torch.linalg.solve_triangular(factor, eye, upper=False).to(a.dtype)
        y = torch.bmm(weight, a)
        ctx.save_for_backward(y, weight)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        y, weight = ctx.saved_tensors
        with _without_autocast(y):
            lower = torch.bmm(gradient, y.mT).tril_()
            k = lower + lower.tril(-1).mT
            return torch.bmm(weight.mT, torch.baddbmm(gradient, k, y, alpha=-ctx.scale)), None, None


def _covariance(a: Tensor, scale: float, eps: float) -> Tensor:
    """In float64."""
    s = symmetric_product(a.double()).mul_(scale)
    if eps:
        diagonal_of(s).add_(eps)
    return s


def symmetric_times(weight: Tensor, a: Tensor) -> Tensor:
    """W A of symmetric W, in the layout of A, so that what follows walks along its memory."""
    return torch.bmm(a.mT, weight).mT if a.mT.is_contiguous() else torch.bmm(weight, a)


def less_product(gradient: Tensor, k: Tensor, y: Tensor, scale: float) -> Tensor:
    """G - scale K Y of symmetric K, in the layout of Y."""
    if y.mT.is_contiguous():
        return torch.baddbmm(gradient.mT, y.mT, k, alpha=-scale).mT
    return torch.baddbmm(gradient, k, y, alpha=-scale)


def _without_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(device_type=x.device.type, enabled=False)
