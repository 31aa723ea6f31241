"""Whitening in windows, as CW-RGP, W-MSE and Shuffled-DBN share it.

Images are put into windows at random, alike for all views; each window of each view is whitened by itself, in groups
of channels that may be drawn each time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pretrain.losses.whitening import (
    Axis,
    Transform,
    at_least_float32,
    centred,
    check_whitenable,
    float32_region,
    whiten,
    whiten_matrices,
)
from whitebench.errors import UserError


def whiten_windows(
    views: Sequence[Tensor],
    transform: Transform,
    axis: Axis,
    groups: int = 1,
    permutations: Sequence[Tensor] | None = None,
    random_groups: bool = False,
    window: int | None = None,
    repeats: int = 1,
    eps: float = 0.0,
    generator: torch.Generator | None = None,
    aligned: bool = False,
    image_order: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Whitens V embeddings of the same N images, each [N, D], any floating dtype; in float32 or wider.

    Args:
        permutations: V orders of the channels, int64 [D], or [W, D] with one for each of the W = repeats * N / window
            windows, which fix the groups; None draws new ones for every view, window and repeat where
            `random_groups`, otherwise groups are of neighbouring channels.
        window: images whitened together; the images are put into windows at random, alike for all views, in every
            repeat. None: all N.
        generator: of all these draws; torch's default generator where None.
        aligned: whether a draw of groups is the same for all views.
        image_order: int64 [N], in place of the random order in which images fill the windows.
    Returns:
        For each view [repeats * N / window, window, D]; a row is the same image in all of them.
    Raises:
        UserError: sizes that do not divide or cannot be whitened, a singular covariance.
    """
    images, channels = views[0].shape
    check_windows(images, channels, transform, axis, groups, window, repeats, eps)
    if permutations is not None and [order.shape[-1] for order in permutations] != [channels] * len(views):
        raise UserError(f"permutations: needs {len(views)} orders of {channels} channels, one per view")
    with float32_region(views[0]):
        stacked = torch.stack([at_least_float32(view) for view in views])
        if axis == "channel":  # an image's mean is the same in every window
            stacked = centred(stacked)
        windows = _deal(stacked, window or images, repeats, generator, image_order)
        if axis == "batch":
            windows = centred(windows)
        drawn = len(windows) // len(views) if aligned and permutations is None else len(windows)
        orders = _channel_orders(drawn, channels, permutations, random_groups, windows.device, generator)
        if orders is not None and aligned and permutations is None:
            orders = orders.repeat(len(views), 1)
        whitened = _whiten_ordered(windows, orders, transform, axis, groups, eps)
        return whitened.unflatten(0, (len(views), -1)).mT.unbind()


def standardise_windows(
    views: Sequence[Tensor],
    window: int | None = None,
    repeats: int = 1,
    eps: float = 0.0,
    generator: torch.Generator | None = None,
    image_order: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Batch norm without affine part in place of whitening: each channel has mean 0 and biased variance 1 in a window.

    Arguments and result as `whiten_windows`; eps is added to variances. A constant channel becomes 0.

    Raises:
        UserError: a window that does not divide N.
    """
    check_division(len(views[0]), window, repeats)
    with float32_region(views[0]):
        stacked = torch.stack([at_least_float32(view) for view in views])
        x = centred(_deal(stacked, window or stacked.shape[1], repeats, generator, image_order))
        variance = x.square().mean(dim=-1, keepdim=True) + eps
        scale = torch.where(variance > 0, variance.where(variance > 0, 1.0).rsqrt(), 0.0)
        return (x * scale).unflatten(0, (len(views), -1)).mT.unbind()


def whiten_neighbours(
    z: Tensor, transform: Transform, axis: Axis, groups: int = 1, window: int | None = None, eps: float = 0.0
) -> Tensor:
    """Without draws: z [N, D] whitened in groups of neighbouring channels, in windows of neighbouring images.

    Images that fill no window are left out; fewer than a window are whitened together.
    """
    window = min(window or len(z), len(z))
    parts = z[: len(z) // window * window].split(window)
    return torch.cat([whiten(part, transform, axis, groups, eps=eps) for part in parts])


def check_windows(
    images: int,
    channels: int,
    transform: Transform,
    axis: Axis,
    groups: int = 1,
    window: int | None = None,
    repeats: int = 1,
    eps: float = 0.0,
) -> None:
    """Raises `UserError` where `images` images of a process cannot be whitened in such windows, whatever the values."""
    check_division(images, window, repeats)
    check_whitenable(window or images, channels, groups, transform, axis, eps)


def check_division(images: int, window: int | None = None, repeats: int = 1) -> None:
    """Raises `UserError` where `images` images of a process cannot be divided into such windows."""
    if repeats < 1:
        raise UserError(f"whitening in windows: repeats is at least 1, not {repeats} (method.repeats)")
    if window is not None and (window < 1 or images % window):
        raise UserError(f"{images} images of a process cannot be divided into windows of {window} (method.window)")


def _deal(
    stacked: Tensor, window: int, repeats: int, generator: torch.Generator | None, order: Tensor | None = None
) -> Tensor:
    """[V, N, D] -> [V * repeats * N / window, D, window]: the images in random windows, alike for all views."""
    images = stacked.shape[1]
    if order is not None:
        stacked = stacked.index_select(1, order.repeat(repeats))
    elif window < images:
        order = torch.cat([_permutations(1, images, stacked.device, generator)[0] for _ in range(repeats)])
        stacked = stacked.index_select(1, order)
    else:  # the order within a window changes nothing: all images in one need no shuffle
        stacked = stacked.repeat(1, repeats, 1)
    return stacked.unflatten(1, (-1, window)).flatten(0, 1).mT.contiguous()


def _channel_orders(
    count: int,
    channels: int,
    permutations: Sequence[Tensor] | None,
    random_groups: bool,
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor | None:
    """int64 [count, channels] for the windows of all views, view by view; None where channels keep their order."""
    if permutations is not None:
        windows = count // len(permutations)
        rows = [order.expand(windows, channels) for order in permutations]
        return torch.cat(rows).to(device)
    return _permutations(count, channels, device, generator) if random_groups else None


def _whiten_ordered(
    windows: Tensor, orders: Tensor | None, transform: Transform, axis: Axis, groups: int, eps: float
) -> Tensor:
    """Each group of channels, in its window's order, of each window, all at once: [B, D, window] -> [B, D, window]."""
    if orders is None:
        return _whiten_groups(windows, transform, axis, groups, eps)
    inverse = orders.argsort(dim=-1)
    whitened = _whiten_groups(permute_rows(windows, orders, inverse), transform, axis, groups, eps)
    return permute_rows(whitened, inverse, orders)


def _whiten_groups(windows: Tensor, transform: Transform, axis: Axis, groups: int, eps: float) -> Tensor:
    grouped = windows.unflatten(1, (groups, -1)).flatten(0, 1)
    if axis == "channel":
        return whiten_matrices(grouped.mT, transform, eps).mT.reshape(windows.shape)
    return whiten_matrices(grouped, transform, eps).reshape(windows.shape)


def _permutations(count: int, size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """int64 [count, size]: uniform random permutations, drawn where the generator lives."""
    drawn_on = device if generator is None else generator.device
    keys = torch.rand(count, size, device=drawn_on, dtype=torch.float64, generator=generator)
    return keys.argsort(dim=-1).to(device)


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Each matrix of x [B, R, C] with its rows in the order of its own permutation; order and inverse are int64 [B, R].

    The gradient selects by the inverse: without scattered additions it is fast, and the same bits every time.
    """
    permuted: Tensor = _PermutedRows.apply(x, order, inverse)
    return permuted


class _PermutedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        matrices, rows = order.shape
        first = torch.arange(0, matrices * rows, rows, device=order.device)
        return x.flatten(0, 1).index_select(0, (order + first.unsqueeze(-1)).flatten()).unflatten(0, (matrices, rows))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return permute_rows(gradients[0], inverse, order), None, None
