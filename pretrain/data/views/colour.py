"""Photometric operations on one view in place, uint8 [H, W, 3], as torchvision's `transforms.v2.functional` has them.

Like there, each operation returns to 8 bits. Equal to torchvision's within 1 level (its blur given our `radius`).
"""

from typing import Any

import numpy as np
from numba import float32

from pretrain.data.views import random_parameters as draws
from pretrain.data.views.jit import inner

RED, GREEN, BLUE = 0.2989, 0.587, 0.114
"""Weights of the channels in gray."""
TO_LEVEL = 255.999 / 255
"""torchvision's way from [0, 1] back to 0..255, applied to a value in levels that is then rounded down."""
RADIUS_IN_SIGMAS = 3.0
"""Where a Gaussian is cut off: 0.3 % of its weight lies outside."""

_JITTER, _ORDER, _FACTOR = draws.JITTER, draws.ORDER, draws.FACTOR
_MIX, _MATRIX, _GRAY = draws.MIX, draws.MATRIX, draws.GRAY
_SIGMA, _SOLARIZE, _INVERT = draws.SIGMA, draws.SOLARIZE, draws.INVERT
_BRIGHTNESS, _CONTRAST, _SATURATION = draws.BRIGHTNESS, draws.CONTRAST, draws.SATURATION


@inner
def recolour(view: Any, parameters: Any) -> None:
    """All that a row of the table says: jitter in its order, mix, gray, blur, solarize, invert."""
    if parameters[_JITTER] != 0:
        for position in range(4):
            operation = int(parameters[_ORDER + position])
            jitter(view, operation, parameters[_FACTOR + operation])
    if parameters[_MIX] != 0:
        mix(view, parameters[_MATRIX : _MATRIX + 9])
    if parameters[_GRAY] != 0:
        gray(view)
    if parameters[_SIGMA] > 0:
        blur(view, parameters[_SIGMA])
    if parameters[_SOLARIZE] < 256:
        solarize(view, int(parameters[_SOLARIZE]))
    if parameters[_INVERT] != 0:
        solarize(view, 0)


@inner
def jitter(view: Any, operation: int, factor: float) -> None:
    """`draws.BRIGHTNESS`, CONTRAST, SATURATION (a factor of 1 changes nothing) or HUE (a turn of `factor` circles)."""
    if operation == _BRIGHTNESS:
        _fade(view, factor, 0.0)
    elif operation == _CONTRAST:
        _fade(view, factor, _mean_gray(view))
    elif operation == _SATURATION:
        _saturate(view, factor)
    else:
        _turn_hue(view, factor)


@inner
def _level(value: Any) -> Any:
    """A float32 in levels -> uint8, limited and rounded down."""
    value = value if value > float32(0) else float32(0)
    return np.uint8(value if value < float32(255) else float32(255))


@inner
def _gray(red: Any, green: Any, blue: Any) -> Any:
    return np.floor(float32(RED) * red + float32(GREEN) * green + float32(BLUE) * blue)


@inner
def _fade(view: Any, factor: float, towards: float) -> None:
    """factor * value + (1 - factor) * towards: a table of 256 values."""
    levels = np.empty(256, np.uint8)
    offset = float32(towards) * float32(1.0 - factor)
    for value in range(256):
        levels[value] = _level(float32(factor) * float32(value) + offset)
    values = view.reshape(-1)
    for i in range(len(values)):
        values[i] = levels[values[i]]


@inner
def _mean_gray(view: Any) -> float:
    total = np.int64(0)
    for y in range(view.shape[0]):
        for x in range(view.shape[1]):
            total += np.int64(_gray(float32(view[y, x, 0]), float32(view[y, x, 1]), float32(view[y, x, 2])))
    return total / (view.shape[0] * view.shape[1])


@inner
def _saturate(view: Any, factor: float) -> None:
    strength, rest = float32(factor), float32(1.0 - factor)
    red, green, blue = _planes(view)
    for y in range(view.shape[0]):
        _split(view, y, red, green, blue)
        for x in range(len(red)):
            colourless = rest * _gray(red[x], green[x], blue[x])
            red[x] = strength * red[x] + colourless
            green[x] = strength * green[x] + colourless
            blue[x] = strength * blue[x] + colourless
        _join(view, y, red, green, blue)


@inner
def _turn_hue(view: Any, turn: float) -> None:
    """Rotates the hue of HSV, which counts in sixths of a circle from red."""
    one, two, four, shift = float32(1), float32(2), float32(4), float32(6.0 * turn)
    red, green, blue = _planes(view)
    for y in range(view.shape[0]):
        _split(view, y, red, green, blue)
        for x in range(len(red)):
            r, g, b = red[x], green[x], blue[x]
            high, low = r if r > g else g, r if r < g else g
            high, low = high if high > b else b, low if low < b else b
            chroma = high - low
            inverse = one / (chroma if chroma > one else one)
            hue = (r - g) * inverse + four
            hue = (b - r) * inverse + two if high == g else hue
            hue = (g - b) * inverse if high == r else hue
            red[x] = _channel_of_hue(hue + shift + float32(5), high, chroma)
            green[x] = _channel_of_hue(hue + shift + float32(3), high, chroma)
            blue[x] = _channel_of_hue(hue + shift + float32(1), high, chroma)
        _join(view, y, red, green, blue)


@inner
def _channel_of_hue(k: Any, high: Any, chroma: Any) -> Any:
    """high - chroma * clamp(min(k, 4 - k), 0, 1), k modulo 6; selections instead of branches become vector code."""
    zero, one, four, six = float32(0), float32(1), float32(4), float32(6)
    k = k - six * np.floor(k * float32(1 / 6))
    k = k if k < four - k else four - k
    k = k if k > zero else zero
    k = k if k < one else one
    return (high - chroma * k) * float32(TO_LEVEL)


@inner
def mix(view: Any, matrix: Any) -> None:
    """Each channel becomes the mixture of channels that its row of `matrix` [9] gives, rounded to the nearest."""
    half = float32(0.5)
    to_red = float32(matrix[0]), float32(matrix[1]), float32(matrix[2])
    to_green = float32(matrix[3]), float32(matrix[4]), float32(matrix[5])
    to_blue = float32(matrix[6]), float32(matrix[7]), float32(matrix[8])
    red, green, blue = _planes(view)
    for y in range(view.shape[0]):
        _split(view, y, red, green, blue)
        for x in range(len(red)):
            r, g, b = red[x], green[x], blue[x]
            red[x] = to_red[0] * r + to_red[1] * g + to_red[2] * b + half
            green[x] = to_green[0] * r + to_green[1] * g + to_green[2] * b + half
            blue[x] = to_blue[0] * r + to_blue[1] * g + to_blue[2] * b + half
        _join(view, y, red, green, blue)


@inner
def _planes(view: Any) -> Any:
    """Room for a row's channels: apart, and as float32, they can be worked on in vector code."""
    width = view.shape[1]
    return np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)


@inner
def _split(view: Any, y: int, red: Any, green: Any, blue: Any) -> None:
    for x in range(len(red)):
        red[x], green[x], blue[x] = float32(view[y, x, 0]), float32(view[y, x, 1]), float32(view[y, x, 2])


@inner
def _join(view: Any, y: int, red: Any, green: Any, blue: Any) -> None:
    for x in range(len(red)):
        view[y, x, 0], view[y, x, 1], view[y, x, 2] = _level(red[x]), _level(green[x]), _level(blue[x])


@inner
def gray(view: Any) -> None:
    for y in range(view.shape[0]):
        for x in range(view.shape[1]):
            value = np.uint8(_gray(float32(view[y, x, 0]), float32(view[y, x, 1]), float32(view[y, x, 2])))
            for channel in range(3):
                view[y, x, channel] = value


@inner
def solarize(view: Any, threshold: int) -> None:
    """Inverts values of at least `threshold`; 0 inverts all."""
    values = view.reshape(-1)
    for i in range(len(values)):
        value = values[i]
        values[i] = np.uint8(255) - value if value >= threshold else value


@inner
def radius(sigma: float, side: int) -> int:
    """Of the blur's kernel; at most side - 1, since the border is a reflection without its edge."""
    return min(int(np.ceil(RADIUS_IN_SIGMAS * sigma)), side - 1)


@inner
def gaussian(sigma: float, reach: int) -> Any:
    """Weights float32 of the distances 0..reach, such that both sides together sum to 1."""
    exact = np.empty(reach + 1)
    total = -1.0
    for distance in range(reach + 1):
        exact[distance] = np.exp(-0.5 * (distance / sigma) * (distance / sigma))
        total += 2.0 * exact[distance]
    weights = np.empty(reach + 1, np.float32)
    for distance in range(reach + 1):
        weights[distance] = exact[distance] / total
    return weights


@inner
def _reflected(position: int, side: int) -> int:
    position = abs(position)
    return position if position < side else 2 * (side - 1) - position


@inner
def blur(view: Any, sigma: float) -> None:
    """Gaussian blur, `sigma` in pixels; the result is rounded to the nearest."""
    height, length = view.shape[0], 3 * view.shape[1]
    down, across = gaussian(sigma, radius(sigma, height)), gaussian(sigma, radius(sigma, view.shape[1]))
    target = view.reshape(height, length)
    source = np.empty((height, length), np.uint8)
    for y in range(height):
        for i in range(length):
            source[y, i] = target[y, i]
    border = 3 * (len(across) - 1)
    padded, total = np.empty(length + 2 * border, np.float32), np.empty(length, np.float32)
    for y in range(height):
        _blur_down(source, y, down, padded[border : border + length])
        _pad(padded, border, length)
        _blur_across(padded, across, total)
        for i in range(length):
            target[y, i] = _level(total[i] + float32(0.5))


@inner
def _blur_down(source: Any, y: int, weights: Any, line: Any) -> None:
    """Row `y` of the blur along columns, into `line`, float32."""
    for distance in range(len(weights)):
        above = source[_reflected(y - distance, len(source))]
        below = source[_reflected(y + distance, len(source))]
        weight = weights[distance]
        if distance == 0:
            for i in range(len(line)):
                line[i] = weight * float32(above[i])
        else:
            for i in range(len(line)):
                line[i] += weight * (float32(above[i]) + float32(below[i]))


@inner
def _pad(padded: Any, border: int, length: int) -> None:
    """Reflects a row of `length` values (3 a pixel), which lies in `padded` after `border` values, at both ends."""
    for distance in range(3, border + 1, 3):
        for channel in range(3):
            padded[border - distance + channel] = padded[border + distance + channel]
            end = border + length - 3 + channel
            padded[end + distance] = padded[end - distance]


@inner
def _blur_across(padded: Any, weights: Any, total: Any) -> None:
    """Slices instead of sums of indices: LLVM must know that an index is not negative to make vector code."""
    border = 3 * (len(weights) - 1)
    for distance in range(len(weights)):
        left = padded[border - 3 * distance : border - 3 * distance + len(total)]
        right = padded[border + 3 * distance : border + 3 * distance + len(total)]
        weight = weights[distance]
        if distance == 0:
            for i in range(len(total)):
                total[i] = weight * left[i]
        else:
            for i in range(len(total)):
                total[i] += weight * (left[i] + right[i])
