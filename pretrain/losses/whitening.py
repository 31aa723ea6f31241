"""The spectral transforms that all whitening methods share.

Every transform sees matrices A [B, P, Q]: P centred variables in Q observations, B of them at once (groups, windows,
views). Its covariance is S = A A^T / (Q - 1), its output Y = W(S) A:

    zca       W = S^(-1/2)              Ermolov et al., ICML 2021; Weng et al., NeurIPS 2022 (CW-RGP)
    pca       W = L^(-1/2) U^T          S = U L U^T, components by descending eigenvalue
    cholesky  W = C^(-1)                S = C C^T (W-MSE)
    iternorm  W = P_T(S / tr S) / sqrt(tr S), Newton's iteration P <- (3 P - P^3 S / tr S) / 2 (Huang et al., CVPR 2019)
    power     W = S^(-exponent)         the spectral transformation of Weng et al., ICLR 2024 (INTL)

What is a variable depends on the axis: on "batch" a channel observed in N images, the classic way, on "channel" an
image observed in D channels. Everything runs in float32, or in float64 for inputs of that type, whatever autocast says.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.losses.deferred import require
from pretrain.losses.gram import gram
from whitebench.errors import UserError, nearest

Transform = Literal["zca", "pca", "cholesky", "iternorm", "power"]
Axis = Literal["channel", "batch"]
FEW_ITERATIONS = 5
"""Of iternorm, up to which float32 is enough for all but Newton's iteration itself: it scales the smallest eigenvalues'
directions by no more than (3 / 2)^T, and rounding errors in them by the same factor."""
WIDE_NEWTON = 512
"""Variables up to which Newton's iteration runs in float64."""


def whiten(
    x: Tensor,
    transform: Transform = "zca",
    axis: Axis = "channel",
    groups: int = 1,
    permutation: Tensor | None = None,
    eps: float = 0.0,
    iterations: int = 4,
    exponent: float = 0.5,
) -> Tensor:
    """Whitens the embeddings x [N, D] in `groups` groups of D / groups channels; differentiable in x.

    The mean is taken off first (over all D channels on the channel axis, over the N images on the batch axis).

    Args:
        permutation: int64 [D]; channels are put in this order before they are cut into groups, and back afterwards.
        eps: shrinkage, S <- (1 - eps) S + eps I. At 0, every transform but iternorm needs a covariance of full rank.
        iterations: T of iternorm, at least 1.
        exponent: of `power`; 0.5 is zca.
    Returns:
        [N, D] in float32, or float64 where x is that. For pca, components take the place of the variables; their signs
        are arbitrary, and the gradient grows without bound as two eigenvalues meet.
    Raises:
        UserError: sizes that cannot be whitened (with the constraint), a covariance that is numerically singular,
            embeddings that are constant or not finite. On a GPU those of values come later: see `losses.deferred`.
    """
    _check_arguments(x, transform, axis, groups, permutation)
    n, d = x.shape
    check_whitenable(n, d, groups, transform, axis, eps)
    with float32_region(x):
        columns = centred(at_least_float32(x), axis).mT
        if permutation is not None:
            columns, inverse = columns[permutation], permutation.argsort()
        grouped = columns.unflatten(0, (groups, d // groups))
        matrices = grouped.mT if axis == "channel" else grouped
        y = whiten_matrices(matrices, transform, eps, iterations, exponent)
        columns = (y.mT if axis == "channel" else y).flatten(0, 1)
        return (columns if permutation is None else columns[inverse]).mT


def whiten_matrices(
    matrices: Tensor, transform: Transform, eps: float = 0.0, iterations: int = 4, exponent: float = 0.5
) -> Tensor:
    """[B, P, Q], centred along Q by the caller, float32 or wider -> whitened, same shape. See the module's head."""
    variables, observations = matrices.shape[1:]
    dtype = matrices.dtype
    if transform == "iternorm" and iterations > FEW_ITERATIONS and dtype != torch.float64:
        return whiten_matrices(matrices.double(), transform, eps, iterations).to(dtype)
    # A covariance squares the condition number of its embeddings: float32 would lose its small eigenvalues. Its root
    # has that of the embeddings again: the products with it, which are the larger ones, can be as narrow as they are.
    wide = dtype if transform == "iternorm" else torch.float64
    # f(A A^T) A = A f(A^T A): a function of the covariance can be taken on the side of the smaller Gram matrix.
    small_side = transform in ("zca", "power", "iternorm") and observations < variables
    covariance = gram(matrices.mT if small_side else matrices, (1 - eps) / (observations - 1), wide)
    trace = _diagonal(covariance).sum(-1) + eps * variables
    if eps:
        covariance = covariance + eps * torch.eye(
            covariance.shape[-1], dtype=covariance.dtype, device=covariance.device
        )
    if transform == "cholesky":
        return torch.linalg.solve_triangular(_cholesky(covariance).to(dtype), matrices, upper=False)
    if transform == "pca":
        return torch.bmm(_pca(covariance).to(dtype), matrices)
    if transform == "iternorm":
        weight = _iternorm(covariance, trace, iterations)
    else:
        weight = _InversePower.apply(covariance, exponent if transform == "power" else 0.5).to(dtype)
    if small_side:
        return torch.bmm(matrices, weight)
    # The weight is symmetric: the output keeps the layout of the input, so that what follows walks along its memory.
    return torch.bmm(matrices.mT, weight).mT if matrices.mT.is_contiguous() else torch.bmm(weight, matrices)


def check_whitenable(
    images: int, channels: int, groups: int = 1, transform: Transform = "zca", axis: Axis = "channel", eps: float = 0.0
) -> None:
    """Raises `UserError` where [images, channels] in `groups` groups cannot be whitened, whatever the values."""
    if groups < 1 or channels % groups:
        raise UserError(f"{channels} channels cannot be cut into {groups} groups of equal size")
    if not 0 <= eps < 1:
        raise UserError(f"whitening: eps lies in [0, 1), not {eps}")
    if images < 2 or (axis == "channel" and channels < 2):
        raise UserError(f"whitening needs at least 2 images and 2 channels, not [{images}, {channels}]")
    width = channels // groups
    if transform == "iternorm" or eps > 0 or (images < width if axis == "channel" else width < images):
        return
    if axis == "channel":
        rule, remedy = "fewer images than channels a group (N < D / groups)", "whiten fewer images at once"
    else:
        rule, remedy = "more images than channels a group (N > D / groups)", "whiten more images at once"
    raise UserError(
        f"whitening over the {axis} axis needs {rule}, but N = {images} and D / groups = {channels} / {groups} = "
        f"{width}: {remedy}, change the groups or the embedding's width, or set eps > 0"
    )


def float32_region(x: Tensor) -> torch.autocast:
    """A context in which autocast is off on the device of x. It does not convert what enters: `at_least_float32`."""
    return torch.autocast(device_type=x.device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def centred(x: Tensor, axis: Axis = "channel") -> Tensor:
    """x [..., N, D] less its mean over the observations: D on the channel axis, N on the batch axis."""
    return x - x.mean(dim=-1 if axis == "channel" else -2, keepdim=True)


def inverse_power(s: Tensor, exponent: float = 0.5) -> Tensor:
    """S^(-exponent) of symmetric positive definite S [B, P, P].

    Raises:
        UserError: S is numerically singular or not finite.
    """
    power: Tensor = _InversePower.apply(s, exponent)
    return power


def newton_inverse_root(s: Tensor, iterations: int) -> Tensor:
    """Newton's iteration towards S^(-1/2), S [B, P, P] scaled by its trace.

    Raises:
        UserError: S is zero or not finite.
    """
    return _iternorm(s, _diagonal(s).sum(-1), iterations)


class _InversePower(torch.autograd.Function):
    """S^(-p) of symmetric positive definite S [B, P, P].

    The gradient follows Daleckii and Krein: U (F * (U^T G U)) U^T with F the divided differences of f at the
    eigenvalues. Unlike the gradient through eigenvectors, it exists where eigenvalues coincide.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, exponent: float) -> Tensor:
        eigenvalues, vectors = _eigh(s)
        ctx.save_for_backward(eigenvalues, vectors)
        ctx.exponent = exponent
        return torch.bmm(vectors * eigenvalues.pow(-exponent).unsqueeze(-2), vectors.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        eigenvalues, vectors = ctx.saved_tensors
        with float32_region(vectors):
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


def _pca(covariance: Tensor) -> Tensor:
    eigenvalues, vectors = _eigh(covariance)
    return (vectors * eigenvalues.rsqrt().unsqueeze(-2)).flip(-1).mT


def _cholesky(covariance: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(covariance)
    with torch.no_grad():
        pivots = torch.where(failed.unsqueeze(-1) == 0, _diagonal(factor).square(), 0)
        _refuse_singular(pivots.amin(-1), _diagonal(covariance).amax(-1), covariance.shape[-1])
    return factor


def _iternorm(covariance: Tensor, trace: Tensor, iterations: int) -> Tensor:
    """Newton's iteration towards covariance^(-1/2), [B, P, P]; no eps anywhere, as its authors do it.

    The iterate P of P <- (3 P - P^3 S) / 2, S the covariance over its trace, is Z of the coupled iteration Z <- F Z,
    Y <- Y F, F = (3 I - Z Y) / 2, which takes as many products. Rounding errors of the first form grow with every step
    along the small eigenvalues, in the order in which its authors multiply (by the transpose of P) by less, and without
    bound: at T = 9 gradients in float32 are off by orders of magnitude. Those of the coupled form do not grow (Higham,
    "Stable iterations for the matrix square root", 1997). It runs in float64 up to a size where that costs little.
    """
    if iterations < 1:
        raise UserError(f"iternorm: at least 1 iteration, not {iterations}")
    message = "iternorm: the embeddings are constant (no variance to normalise) or not finite"
    require((trace > 0) & trace.isfinite(), lambda: UserError(message))
    variables, dtype = covariance.shape[-1], covariance.dtype
    if variables <= WIDE_NEWTON:
        covariance, trace = covariance.double(), trace.double()
    unit = covariance / trace[:, None, None]
    half = 1.5 * torch.eye(variables, dtype=unit.dtype, device=unit.device).expand_as(unit)
    root = half - 0.5 * unit  # the first step, from the identity
    product = torch.bmm(unit, root)
    for remaining in reversed(range(iterations - 1)):
        factor = torch.baddbmm(half, root, product, alpha=-0.5)
        root = torch.bmm(factor, root)
        if remaining:
            product = torch.bmm(product, factor)
    return (root * trace.rsqrt()[:, None, None]).to(dtype)


def _eigh(s: Tensor) -> tuple[Tensor, Tensor]:
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


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def _check_arguments(x: Tensor, transform: str, axis: str, groups: int, permutation: Tensor | None) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise UserError(f"whitening takes floating-point embeddings [N, D], not {x.dtype} {list(x.shape)}")
    if transform not in get_args(Transform):
        raise UserError(f"unknown transform '{transform}'{nearest(str(transform), get_args(Transform))}")
    if axis not in get_args(Axis):
        raise UserError(f"unknown axis '{axis}'{nearest(str(axis), get_args(Axis))}")
    if permutation is not None:
        channels = torch.arange(x.shape[1], device=permutation.device)
        if permutation.shape != channels.shape or not torch.equal(permutation.sort().values, channels):
            raise UserError(f"permutation: needs each of the {x.shape[1]} channels exactly once")
