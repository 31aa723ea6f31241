"""The spectral transforms that all whitening methods share.

Every transform sees matrices A [B, P, Q]: P centred variables in Q observations, B of them at once (groups, windows,
views). Its covariance is S = A A^T / (Q - 1), its output Y = W(S) A:

    zca       W = S^(-1/2)              Ermolov et al., ICML 2021; Weng et al., NeurIPS 2022 (CW-RGP)
    zca_iterated  the same without eigenvalues, for which the host of a GPU does not wait
    pca       W = L^(-1/2) U^T          S = U L U^T, components by descending eigenvalue
    cholesky  W = C^(-1)                S = C C^T (W-MSE)
    iternorm  W = P_T(S / tr S) / sqrt(tr S), Newton's iteration P <- (3 P - P^3 S / tr S) / 2 (Huang et al., CVPR 2019)
    power     W = S^(-exponent)         the spectral transformation of Weng et al., ICLR 2024 (INTL)

What is a variable depends on the axis: on "batch" a channel observed in N images, the classic way, on "channel" an
image observed in D channels. Everything runs in float32, or in float64 for inputs of that type, whatever autocast says.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from pretrain.losses.gram import gram
from pretrain.losses.iterated_whitening import zca_iterated
from pretrain.losses.matrix_functions import diagonal_of, inverse_power, newton_inverse_root, pca_matrix
from pretrain.losses.whitening_gradients import cholesky_whitened, symmetric_times, zca
from whitebench.errors import UserError, nearest

Transform = Literal["zca", "pca", "cholesky", "iternorm", "power", "zca_iterated"]
Axis = Literal["channel", "batch"]
FEW_ITERATIONS = 5
"""Of iternorm, up to which float32 is enough for all but Newton's iteration itself: it scales the smallest eigenvalues'
directions by no more than (3 / 2)^T, and rounding errors in them by the same factor."""


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
    # f(A A^T) A = A f(A^T A): a function of the covariance can be taken on the side of the smaller Gram matrix.
    if transform in ("zca", "zca_iterated", "power", "iternorm") and observations < variables:
        trace_of_eps = eps * (variables - observations)
        return _whiten(matrices.mT, transform, eps, iterations, exponent, observations - 1, trace_of_eps).mT
    return _whiten(matrices, transform, eps, iterations, exponent, observations - 1)


def _whiten(
    a: Tensor,
    transform: Transform,
    eps: float,
    iterations: int,
    exponent: float,
    divisor: int,
    more_trace: float = 0.0,
) -> Tensor:
    """W(S) A with S = (1 - eps) A A^T / divisor + eps I.

    `more_trace`: the trace of S on the other, larger side, less that of S.
    """
    scale = (1 - eps) / divisor
    if transform == "zca":
        return zca(a, scale, eps)
    if transform == "zca_iterated":
        return zca_iterated(a, scale, eps)
    if transform == "cholesky":
        return cholesky_whitened(a, scale, eps)
    # A covariance squares the condition number of its embeddings: float32 would lose its small eigenvalues. Its root
    # has that of the embeddings again: the products with it, which are the larger ones, can be as narrow as they are.
    covariance = gram(a, scale, a.dtype if transform == "iternorm" else torch.float64)
    if eps:
        covariance = covariance + eps * torch.eye(len(covariance[0]), dtype=covariance.dtype, device=a.device)
    if transform == "pca":
        return torch.bmm(pca_matrix(covariance).to(a.dtype), a)
    if transform == "iternorm":
        weight = newton_inverse_root(covariance, iterations, diagonal_of(covariance).sum(-1) + more_trace)
    else:
        weight = inverse_power(covariance, exponent).to(a.dtype)
    return symmetric_times(weight, a)


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
