"""The photometric operations of `colour.py` for a batch of views on a device, from the same table of parameters.

Which images an operation applies to, and how, is decided on the host, so nothing waits for the device. Like there, each
operation returns to whole levels. Equal to `colour.py` bit by bit on a CPU, but for blur, which differs by 1 level at
most; an image's result does not depend on the batch around it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.views import random_parameters as draws
from pretrain.data.views.colour import BLUE, GREEN, RED, TO_LEVEL, gaussian, radius
from pretrain.data.views.deterministic_sums import BITS, resample
from pretrain.data.views.jit import kernel
from pretrain.data.views.random_parameters import Floats
from pretrain.data.views.render import pinned


@dataclass(frozen=True)
class _Step:
    """An operation on some images of the batch."""

    apply: Callable[[Tensor, Tensor], Tensor]
    """From images float32 [n, 3, H, W] in whole levels, and `values`, to such images."""
    rows: NDArray[np.int64]
    """The images' numbers, [n]."""
    values: NDArray[np.float32]
    """[n, ...]."""


def recolour(views: Tensor, table: Floats) -> Tensor:
    """Views uint8 [B, 3, H, W] as their `table` [B, PARAMETERS] says: jitter in its order, mix, gray, blur, ..."""
    steps = [step for step in _steps(table, views.shape[2], views.shape[3]) if len(step.rows)]
    if not steps:
        return views
    rows = _sent([step.rows for step in steps], views.device)
    values = _sent([step.values for step in steps], views.device)
    levels = views.float()
    for step, chosen, parameters in zip(steps, rows, values, strict=True):
        levels.index_copy_(0, chosen, step.apply(levels.index_select(0, chosen), parameters.view(step.values.shape)))
    return levels.to(torch.uint8, memory_format=torch.channels_last)


def _sent(arrays: list[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """The arrays, flat, on the device: in one transfer."""
    flat = [array.reshape(-1) for array in arrays]
    together = pinned(np.concatenate(flat)).to(device, non_blocking=True)
    return list(together.split([len(array) for array in flat]))


def _steps(table: Floats, height: int, width: int) -> list[_Step]:
    def step(apply: Callable[[Tensor, Tensor], Tensor], chosen: Any, *columns: Any) -> _Step:
        rows = np.flatnonzero(chosen)
        values = [np.broadcast_to(column, len(table))[rows] for column in columns]
        return _Step(apply, rows, np.stack([*values, np.zeros(len(rows))], 1).astype(np.float32))

    steps = []
    for position in range(4):
        for operation, apply in enumerate((_brighten, _contrast, _saturate, _turn_hue)):
            chosen = (table[:, draws.JITTER] != 0) & (table[:, draws.ORDER + position] == operation)
            factor = table[:, draws.FACTOR + operation]
            steps.append(step(apply, chosen, factor, 1.0 - factor, 6.0 * factor))
    matrix = table[:, draws.MATRIX : draws.MATRIX + 9].T
    return [
        *steps,
        step(_mix, table[:, draws.MIX] != 0, *matrix),
        step(_to_gray, table[:, draws.GRAY] != 0),
        _blur_step(table[:, draws.SIGMA], height, width),
        step(_solarize, table[:, draws.SOLARIZE] < draws.NO_SOLARIZE, table[:, draws.SOLARIZE]),
        step(_solarize, table[:, draws.INVERT] != 0, 0.0),
    ]


def _blur_step(sigma: Floats, height: int, width: int) -> _Step:
    """Its values are the Gaussians down and across: [n, 2, most + 2], whole multiples of 2^-BITS, the last always 0."""
    rows = np.flatnonzero(sigma > 0)
    most = max((radius.py_func(each, max(height, width)) for each in sigma[rows]), default=0)
    weights = np.zeros((len(rows), 2, most + 2))
    _fill_gaussians(sigma[rows], np.array([height, width]), weights)
    return _Step(_blur, rows, np.round(weights * 2**BITS).astype(np.float32))


@kernel
def _fill_gaussians(sigma: Any, sides: Any, weights: Any) -> None:
    for image in range(len(sigma)):
        for axis in range(2):
            reach = radius(sigma[image], sides[axis])
            weights[image, axis, : reach + 1] = gaussian(sigma[image], reach)


def _whole(levels: Tensor) -> Tensor:
    return levels.clamp_(0, 255).floor_()


def _column(values: Tensor, number: int) -> Tensor:
    return values[:, number, None, None, None]


def _gray(levels: Tensor) -> Tensor:
    """[n, 1, H, W], whole levels."""
    red, green, blue = levels.unbind(1)
    return (RED * red + GREEN * green + BLUE * blue).floor_()[:, None]


def _brighten(levels: Tensor, values: Tensor) -> Tensor:
    return _whole(levels * _column(values, 0))


def _contrast(levels: Tensor, values: Tensor) -> Tensor:
    pixels = levels.shape[2] * levels.shape[3]
    mean = _gray(levels).sum((1, 2, 3), keepdim=True, dtype=torch.float64) / pixels  # whole levels: exact
    return _whole(levels * _column(values, 0) + mean.float() * _column(values, 1))


def _saturate(levels: Tensor, values: Tensor) -> Tensor:
    return _whole(levels * _column(values, 0) + _gray(levels) * _column(values, 1))


def _turn_hue(levels: Tensor, values: Tensor) -> Tensor:
    red, green, blue = levels.unbind(1)
    high, low = levels.amax(1), levels.amin(1)
    chroma = high - low
    inverse = 1 / chroma.clamp(min=1)
    hue = torch.where(high == green, (blue - red) * inverse + 2, (red - green) * inverse + 4)
    hue = torch.where(high == red, (green - blue) * inverse, hue) + values[:, 2, None, None]
    channels = []
    for start in (5, 3, 1):
        k = hue + start
        k = k - 6 * (k * (1 / 6)).floor()
        channels.append((high - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)) * TO_LEVEL)
    return _whole(torch.stack(channels, 1))


def _mix(levels: Tensor, values: Tensor) -> Tensor:
    red, green, blue = levels.unbind(1)
    rows = values[:, :9, None, None].unflatten(1, (3, 3)).unbind(1)
    mixed = [row[:, 0] * red + row[:, 1] * green + row[:, 2] * blue + 0.5 for row in rows]
    return _whole(torch.stack(mixed, 1))


def _to_gray(levels: Tensor, _: Tensor) -> Tensor:
    return _gray(levels).expand(-1, 3, -1, -1)


def _solarize(levels: Tensor, values: Tensor) -> Tensor:
    return torch.where(levels >= _column(values, 0), 255 - levels, levels)


def _blur(levels: Tensor, values: Tensor) -> Tensor:
    """As two products with matrices, which hold the Gaussian and its reflection at the border."""
    down, across = (
        _blur_matrix(weights, side) for weights, side in zip(values.unbind(1), levels.shape[2:], strict=True)
    )
    return resample(levels, down, across, BITS)


def _blur_matrix(weights: Tensor, side: int) -> Tensor:
    """[n, side, side]: row y holds the weights of the rows that a blur sums up at y; `weights` [n, most + 2]."""
    x = torch.arange(side, device=weights.device)
    y, none = x[:, None], weights.shape[1] - 1
    direct = (y - x).abs()
    before = torch.where(x > 0, y + x, none)  # row -x, where x is reflected
    behind = torch.where(x < side - 1, 2 * (side - 1) - x - y, none)
    return sum(weights[:, distance.clamp(max=none)] for distance in (direct, before, behind))  # type: ignore[return-value]
