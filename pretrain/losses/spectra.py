"""Functions of the singular values of embeddings X [N, D], from whichever Gram matrix is the smaller.

X X^T [N, N] and X^T X [D, D] have the same eigenvalues other than 0. log-determinants, entropies, nuclear norms and
traces of powers are sums over eigenvalues, and so need no matrix of more than min(N, D) rows. All of them run outside
autocast, in float32 or wider; eigenvalues always in float64, since a Gram matrix squares the condition number.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.losses.deferred import is_deferred
from pretrain.losses.gram import gram
from pretrain.losses.whitening import at_least_float32, float32_region
from whitebench.errors import UserError

Summand = Literal["root", "entropy"]


def coding_rate(x: Tensor, scale: float) -> Tensor:
    """1/2 log det(I + scale X^T X) of X [N, D]; scalar."""
    with float32_region(x):
        small = small_gram(at_least_float32(x), scale)
        return log_det(small + torch.eye(len(small), dtype=small.dtype, device=small.device)) / 2


def log_det(s: Tensor) -> Tensor:
    """log det of symmetric positive definite S [P, P], by Cholesky; NaN where S is not positive definite."""
    value: Tensor = _LogDet.apply(s)
    return value


def nuclear_norm(x: Tensor) -> Tensor:
    """The sum of the singular values of each matrix of X [..., N, D]; [...].

    Singular values that are 0 up to rounding get no gradient.
    """
    with float32_region(x):
        matrices = at_least_float32(x).reshape(-1, *x.shape[-2:])
        return _spectral_sum(small_grams(matrices, 1.0, torch.float64), "root").to(matrices.dtype).reshape(x.shape[:-2])


def von_neumann_entropy(x: Tensor) -> Tensor:
    """-sum of lambda log lambda over the eigenvalues of X^T X / N, X [N, D] with rows of length 1; scalar.

    Between 0 (all rows alike) and log min(N, D). Eigenvalues that are 0 up to rounding get no gradient, so that it is
    finite at collapse, too.
    """
    with float32_region(x):
        x = at_least_float32(x)
        return _spectral_sum(small_grams(x[None], 1 / len(x), torch.float64), "entropy").to(x.dtype)[0]


def small_gram(x: Tensor, scale: float = 1.0) -> Tensor:
    """scale X X^T or scale X^T X of X [N, D], whichever is smaller; in the dtype of x."""
    return small_grams(x[None], scale, x.dtype)[0]


def small_grams(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """As `small_gram`, of each matrix of X [B, N, D]."""
    return gram(x if x.shape[-2] <= x.shape[-1] else x.mT, scale, dtype)


def trace_polynomial(m: Tensor, coefficients: Sequence[float]) -> Tensor:
    """c_1 tr(M) + c_2 tr(M^2) + ... + c_K tr(M^K) of M [P, P]; scalar.

    Takes half the powers: tr(M^k) is the inner product of M^a and the transpose of M^b with a + b = k. The gradient is
    a polynomial of M, too: to K = 4, one product in the forward pass and one in the backward pass.
    """
    total: Tensor = _TracePolynomial.apply(m, tuple(coefficients))
    return total


class _LogDet(torch.autograd.Function):
    """The gradient is the inverse: one triangular inversion in place of autograd's solves through the factor."""

    @staticmethod
    def forward(ctx: Any, s: Tensor) -> Tensor:
        factor, failed = torch.linalg.cholesky_ex(s)
        ctx.save_for_backward(factor)
        value = 2 * factor.diagonal().log().sum()
        return torch.where(failed == 0, value, torch.full_like(value, float("nan")))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (factor,) = ctx.saved_tensors
        if not is_deferred(factor):
            return gradient * torch.cholesky_inverse(factor)
        # On an accelerator cholesky_inverse waits for its status; triangular solves do not.
        eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        half = torch.linalg.solve_triangular(factor, eye, upper=False)
        return gradient * (half.mT @ half)


class _TracePolynomial(torch.autograd.Function):
    """The gradient is the transpose of sum_k k c_k M^(k - 1)."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, coefficients: tuple[float, ...]) -> Tensor:
        powers = [m]
        while 2 * len(powers) < len(coefficients):
            powers.append(powers[-1] @ m)
        total = coefficients[0] * m.trace()
        for k, coefficient in enumerate(coefficients[1:], start=2):
            if coefficient:
                total = total + coefficient * _product_trace(powers[(k + 1) // 2 - 1], powers[k // 2 - 1])
        ctx.save_for_backward(*powers)
        ctx.coefficients = coefficients
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        powers: tuple[Tensor, ...] = ctx.saved_tensors
        slopes = [k * c for k, c in enumerate(ctx.coefficients, start=1)]
        with float32_region(powers[0]):
            # Horner's scheme in the highest power that is at hand, M^h; its coefficients are polynomials of degree < h.
            high = len(powers)
            parts = [slopes[start : start + high] for start in range(0, len(slopes), high)]
            total = _polynomial(powers, parts[-1])
            for part in reversed(parts[:-1]):
                total = (total @ powers[-1]).add_(_polynomial(powers, part))
            return gradient * total.mT, None


def _polynomial(powers: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """c_0 I + c_1 M + c_2 M^2 + ..., powers being M, M^2, ..."""
    total = torch.zeros_like(powers[0])
    total.diagonal().fill_(coefficients[0])
    for coefficient, power in zip(coefficients[1:], powers, strict=False):
        total.add_(power, alpha=coefficient)
    return total


def _product_trace(a: Tensor, b: Tensor) -> Tensor:
    """tr(A B)."""
    return torch.einsum("ij,ji->", a, b)


def _spectral_sum(s: Tensor, summand: Summand) -> Tensor:
    total: Tensor = _SpectralSum.apply(s, summand)
    return total


class _SpectralSum(torch.autograd.Function):
    """Sum over the eigenvalues of symmetric S [B, P, P] of sqrt(t) or -t log t; the gradient is U f'(L) U^T."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, summand: Summand) -> Tensor:
        try:
            values, vectors = torch.linalg.eigh(s)
        except torch.linalg.LinAlgError as error:
            raise UserError("the embeddings are not finite, or too large for their Gram matrix") from error
        floor = values[:, -1:].clamp_min(0) * (s.shape[-1] * torch.finfo(s.dtype).eps)
        counts = values > floor
        values = values.masked_fill(~counts, 1)
        terms = values.sqrt() if summand == "root" else -values * values.log()
        slopes = 0.5 * values.rsqrt() if summand == "root" else -values.log() - 1
        ctx.save_for_backward(slopes.masked_fill(~counts, 0), vectors)
        return terms.masked_fill(~counts, 0).sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        slopes, vectors = ctx.saved_tensors
        return torch.bmm(vectors * (gradient[:, None] * slopes).unsqueeze(-2), vectors.mT), None
