"""ZCA whitening without eigenvalues: products of matrices alone, for which the host of a GPU need not wait.

torch.linalg.eigh holds the host until LAPACK's status has come back. Here S^(-1/2) and S^(1/2) come from the coupled
Newton-Schulz iteration (Higham, "Stable iterations for the matrix square root", 1997), and the gradient's equation
R K + K R = C (see `whitening_gradients`) from the iteration for matrix signs, as Lin and Maji solve it (BMVC 2017), all
in float64. That takes some 240 products of [P, P] matrices, so that on a CPU it is several times slower than
eigenvalues. Where a covariance is so ill-conditioned that the residual stays above TOLERANCE, eigenvalues take over: on
a CPU at once, on an accelerator from the step on at which the host learns of it, and to the end of the process.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.losses.deferred import Outlook
from pretrain.losses.gram import symmetric_product
from pretrain.losses.matrix_functions import diagonal_of
from pretrain.losses.whitening_gradients import less_product, symmetric_times, zca

ITERATIONS = 30
"""Each brings an eigenvalue of S, over its Frobenius norm, closer to 1 by a factor of up to 2.25, and squares the
distance near 1: enough for condition numbers of S to 1e8 or so."""
TOLERANCE = 1e-6
"""Of the largest entry of W S W - I."""
_converges = Outlook()


def zca_iterated(a: Tensor, scale: float, eps: float = 0.0) -> Tensor:
    """As `whitening_gradients.zca`, of A [B, P, Q] in float32 or float64, outside autocast.

    Raises:
        UserError: where eigenvalues have taken over, S is numerically singular or not finite.
    """
    if not _converges.so_far():
        return zca(a, scale, eps)
    whitened: Tensor
    residual: Tensor
    whitened, residual = _IteratedZCA.apply(a, scale, eps)
    if not _converges.expect(residual <= TOLERANCE):
        return zca(a, scale, eps)
    return whitened


class _IteratedZCA(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
        s = symmetric_product(a.double()).mul_(scale)
        diagonal_of(s).add_(eps)
        weight, root, residual = _roots(s)
        weight = weight.to(a.dtype)
        y = symmetric_times(weight, a)
        ctx.save_for_backward(y, weight, root)
        ctx.scale = scale
        ctx.mark_non_differentiable(residual)
        return y, residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        y, weight, root = ctx.saved_tensors
        with torch.autocast(device_type=y.device.type, enabled=False):
            p = torch.bmm(gradient, y.mT).double()
            right = torch.bmm(p, root)
            k = _lyapunov(root, right + right.mT).to(y.dtype)
            return symmetric_times(weight, less_product(gradient, k, y, ctx.scale)), None, None


def _roots(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S^(-1/2), S^(1/2), [B, P, P], and the largest entry of the residual."""
    norm = torch.linalg.matrix_norm(s, keepdim=True)
    unit = s / norm
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device).expand_as(s)
    root, inverse = unit, eye
    for _ in range(ITERATIONS):
        factor = torch.baddbmm(eye, inverse, root, beta=1.5, alpha=-0.5)
        root, inverse = torch.bmm(root, factor), torch.bmm(factor, inverse)
    residual = (torch.bmm(inverse, torch.bmm(unit, inverse)) - eye).abs().amax()
    return inverse / norm.sqrt(), root * norm.sqrt(), residual


def _lyapunov(root: Tensor, right: Tensor) -> Tensor:
    """K with R K + K R = C, of symmetric positive definite R and symmetric C, [B, P, P]."""
    norm = torch.linalg.matrix_norm(root, keepdim=True)
    a, q = root / norm, right / norm
    triple = 3 * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
    for _ in range(ITERATIONS):
        factor = torch.baddbmm(triple, a, a, alpha=-1)
        inner = torch.bmm(a, q)
        q = (torch.bmm(q, factor) - torch.bmm(a, inner - inner.mT)) / 2
        a = torch.bmm(a, factor) / 2
    return (q + q.mT) / 4
