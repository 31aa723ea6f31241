"""The photometric operations of `colour.py` for a batch of views on a device, from the same table of parameters.

Which images an operation concerns is known on the host, so nothing waits for the device. Like there, each operation
returns to whole levels. Equal to `colour.py` within 1 level an operation (blur and hue round differently at ties).
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data import draws
from pretrain.data.colour import BLUE, GREEN, RADIUS_IN_SIGMAS, RED, TO_LEVEL
from pretrain.data.draws import Floats


def recolour(views: Tensor, table: Floats) -> Tensor:
    """Views uint8 [B, 3, S, S] as their `table` [B, PARAMETERS] says: jitter in its order, mix, gray, blur, ..."""
    levels = views.float()
    for place in range(4):
        for operation, function in enumerate((_brighten, _contrast, _saturate, _turn_hue)):
            chosen = (table[:, draws.JITTER] != 0) & (table[:, draws.ORDER + place] == operation)
            levels = _apply(levels, chosen, function, table[:, draws.FACTOR + operation])
    levels = _apply(levels, table[:, draws.MIX] != 0, _mix, table[:, draws.MATRIX : draws.MATRIX + 9])
    levels = _apply(levels, table[:, draws.GRAY] != 0, _to_gray, table[:, draws.GRAY])
    levels = _apply(levels, table[:, draws.SIGMA] > 0, _blur, table[:, draws.SIGMA])
    levels = _apply(levels, table[:, draws.SOLARIZE] < draws.NO_SOLARIZE, _solarize, table[:, draws.SOLARIZE])
    levels = _apply(levels, table[:, draws.INVERT] != 0, _solarize, np.zeros(len(table)))
    return levels.to(torch.uint8, memory_format=torch.channels_last)


def _apply(
    levels: Tensor, chosen: NDArray[np.bool_], function: Callable[[Tensor, Tensor], Tensor], values: Floats
) -> Tensor:
    """`function(images [n, 3, S, S], values [n, ...])` in place of the chosen images."""
    numbers = np.flatnonzero(chosen)
    if len(numbers) == 0:
        return levels
    rows = torch.from_numpy(numbers).to(levels.device, non_blocking=True)
    given = torch.from_numpy(values[numbers].astype(np.float32)).to(levels.device, non_blocking=True)
    return levels.index_copy(0, rows, function(levels.index_select(0, rows), given))


def _whole(levels: Tensor) -> Tensor:
    return levels.clamp_(0, 255).floor_()


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _gray(levels: Tensor) -> Tensor:
    """[n, 1, S, S], whole levels."""
    red, green, blue = levels.unbind(1)
    return (RED * red + GREEN * green + BLUE * blue).floor_()[:, None]


def _brighten(levels: Tensor, factor: Tensor) -> Tensor:
    return _whole(levels * _per_image(factor))


def _contrast(levels: Tensor, factor: Tensor) -> Tensor:
    mean = _gray(levels).mean((1, 2, 3), keepdim=True, dtype=torch.float64).float()
    return _whole(levels * _per_image(factor) + mean * _per_image(1 - factor))


def _saturate(levels: Tensor, factor: Tensor) -> Tensor:
    return _whole(levels * _per_image(factor) + _gray(levels) * _per_image(1 - factor))


def _turn_hue(levels: Tensor, turn: Tensor) -> Tensor:
    red, green, blue = levels.unbind(1)
    high, low = levels.amax(1), levels.amin(1)
    chroma = high - low
    inverse = 1 / chroma.clamp(min=1)
    hue = torch.where(high == green, (blue - red) * inverse + 2, (red - green) * inverse + 4)
    hue = torch.where(high == red, (green - blue) * inverse, hue) + 6 * turn[:, None, None]
    channels = []
    for start in (5, 3, 1):
        k = (hue + start).remainder(6)
        channels.append(high - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return _whole(torch.stack(channels, 1) * TO_LEVEL)


def _mix(levels: Tensor, matrix: Tensor) -> Tensor:
    mixed = torch.einsum("nij,njyx->niyx", matrix.view(-1, 3, 3), levels)
    return _whole(mixed + 0.5)


def _to_gray(levels: Tensor, _: Tensor) -> Tensor:
    return _gray(levels).expand(-1, 3, -1, -1)


def _solarize(levels: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(levels >= _per_image(threshold), 255 - levels, levels)


def _blur(levels: Tensor, sigma: Tensor) -> Tensor:
    """As two products with matrices, which hold the Gaussian and its reflection at the border."""
    down, across = (_blur_matrix(sigma, side) for side in levels.shape[2:])
    blurred = down[:, None] @ levels @ across[:, None].transpose(2, 3)
    return _whole(blurred + 0.5)


def _blur_matrix(sigma: Tensor, side: int) -> Tensor:
    """[n, side, side]: row y holds the weights of the places that a blur sums up at y."""
    place = torch.arange(side, device=sigma.device)
    reach = (RADIUS_IN_SIGMAS * sigma).ceil().clamp(max=side - 1)[:, None, None]
    beyond = torch.arange(-side + 1, 2 * side - 1, device=sigma.device)  # places, and where they are reflected to
    distance = place - beyond[:, None]
    weight = torch.exp(-0.5 * (distance / sigma[:, None, None]) ** 2) * (distance.abs() <= reach)
    source = torch.where(beyond.abs() < side, beyond.abs(), 2 * (side - 1) - beyond)
    matrix = torch.zeros(len(sigma), side, side, device=sigma.device).index_add_(1, source, weight)
    matrix = matrix.transpose(1, 2)
    return matrix / matrix.sum(2, keepdim=True)
