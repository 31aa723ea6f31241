"""Crop, antialiased resize and flip of an image in one pass, as torchvision's `resized_crop(antialias=True)`.

The filter is Pillow's: a triangle (bilinear) or Keys' cubic with a = -0.5 (bicubic), widened by the factor of a
reduction, its weights summing to 1 also at the borders of the box. Each output row is a blend of source rows (int16,
cheap and contiguous), then each output pixel a blend of that row's pixels; within 1 level of the exact result.
"""

from typing import Any

import numpy as np

from pretrain.data.views.jit import inner
from pretrain.data.views.simd import LANES, PADDING, blend_pixels, blend_rows

_BITS, _BITS_CUBIC = 15, 14
"""Fractional bits of a weight; a cubic weight may exceed 1."""
_FEW_TAPS = 30
"""Up to here (a reduction of 15, cubic 7) the fast blending of rows is exact enough: 1 / 64 of a level a tap."""


@inner
def resized_crop(image: Any, box: Any, full: Any, window: Any, flip: bool, cubic: bool, out: Any) -> None:
    """Fills `out`, uint8 [h, w, 3], from `image`, uint8 [H, W, 3], both packed.

    Args:
        box: (top, left, height, width) inside the image, sides of at least 1.
        full: (height, width) that the box is resized to.
        window: (top, left) of the part of it that `out` is; [h, w] from there lies inside `full`.
        flip: whether `out` is mirrored, left to right.
        cubic: bicubic, else bilinear.
    """
    first_row, row_weights = _taps(box[2], full[0], window[0], out.shape[0], cubic)
    first_column, column_weights = _taps(box[3], full[1], window[1], out.shape[1], cubic)
    offsets, pair_weights = _pair_table(first_column, column_weights, flip)
    shift = 2 * (_BITS_CUBIC if cubic else _BITS) - 9
    width = 3 * box[3]
    row = np.zeros(width + 6 * pair_weights.shape[1] + PADDING, np.int16)
    pixels = np.empty((len(pair_weights), 4, 3), np.uint8)
    left = image.ctypes.data + 3 * box[1]
    stride, row_bytes, weight_bytes = image.strides[0], out.shape[1] * 3, 2 * row_weights.shape[1]
    for y in range(len(out)):
        top = box[0] + first_row[y]
        if width >= LANES and row_weights.shape[1] <= _FEW_TAPS:
            weights = row_weights.ctypes.data + y * weight_bytes
            _blend_rows(row, left + top * stride, stride, weights, row_weights.shape[1], width)
        else:
            _blend_rows_exactly(row, image, top, box[1], width, row_weights, y)
        target = out.ctypes.data + y * row_bytes if row_bytes % 12 == 0 else pixels.ctypes.data
        _blend_pixels(target, row, offsets, pair_weights, shift)
        if row_bytes % 12 != 0:  # in place, the last group of 4 pixels would run over the end of the row
            for x in range(out.shape[1]):
                for channel in range(3):
                    out[y, x, channel] = pixels[x // 4, x % 4, channel]


@inner
def _taps(length: int, full: int, start: int, count: int, cubic: bool) -> Any:
    """Weights of `count` new positions from `start` on, where `length` positions are resized to `full`.

    Returns:
        first [count], position of the first neighbour; weights int16 [count, taps], 1 being 2^15 (2^14 where cubic).
    """
    scale = length / full
    stretch = max(scale, 1.0)
    support = 2.0 * stretch if cubic else stretch
    taps = min(int(np.ceil(2.0 * support)), length)
    first, weights = np.empty(count, np.int64), np.empty((count, taps), np.int16)
    exact = np.empty(taps)
    for position in range(count):
        centre = scale * (start + position + 0.5)
        low = min(max(int(centre - support + 0.5), 0), length - taps)
        total = 0.0
        for tap in range(taps):
            exact[tap] = _filter(abs(low + tap + 0.5 - centre) / stretch, cubic)
            total += exact[tap]
        first[position] = low
        _round_weights(exact, (1 << (_BITS_CUBIC if cubic else _BITS)) / total, weights, position)
    return first, weights


@inner
def _filter(distance: float, cubic: bool) -> float:
    if not cubic:
        return max(1.0 - distance, 0.0)
    if distance < 1.0:
        return (1.5 * distance - 2.5) * distance * distance + 1.0
    return ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0 if distance < 2.0 else 0.0


@inner
def _round_weights(exact: Any, scale: float, weights: Any, row: int) -> None:
    """Rounds the running sum, so that rounded weights still sum to 1 (which itself does not fit where bilinear)."""
    running, before = 0.0, 0.0
    for tap in range(len(exact)):
        running += exact[tap] * scale
        rounded = np.floor(running + 0.5)
        weights[row, tap] = np.int16(min(rounded - before, 32767.0))
        before = rounded


@inner
def _pair_table(first: Any, weights: Any, mirrored: bool) -> Any:
    """What `_taps` returns, in the layout of `blend_pixels`: offsets int32 [G, 4], weights int16 [G, P, 4, 4, 2]."""
    count, taps = weights.shape
    offsets = np.zeros(((count + 3) // 4, 4), np.int32)
    table = np.zeros((len(offsets), (taps + 1) // 2, 4, 4, 2), np.int16)
    for x in range(count):
        position = count - 1 - x if mirrored else x
        offsets[x // 4, x % 4] = 6 * first[position]
        for tap in range(taps):
            for channel in range(3):
                table[x // 4, tap // 2, x % 4, channel, tap % 2] = weights[position, tap]
    return offsets, table


@inner
def _blend_rows(row: Any, source: int, stride: int, weights: int, taps: int, length: int) -> None:
    """Constant numbers of taps let LLVM unroll the usual cases."""
    start = taps // 2
    if taps == 2:
        blend_rows(row.ctypes.data, source, stride, weights, 2, length, start)
    elif taps == 3:
        blend_rows(row.ctypes.data, source, stride, weights, 3, length, start)
    elif taps == 4:
        blend_rows(row.ctypes.data, source, stride, weights, 4, length, start)
    else:
        blend_rows(row.ctypes.data, source, stride, weights, taps, length, start)


@inner
def _blend_pixels(target: int, row: Any, offsets: Any, weights: Any, shift: int) -> None:
    groups, pairs = weights.shape[0], weights.shape[1]
    if pairs == 1:
        blend_pixels(target, row.ctypes.data, offsets.ctypes.data, weights.ctypes.data, groups, 1, shift)
    elif pairs == 2:
        blend_pixels(target, row.ctypes.data, offsets.ctypes.data, weights.ctypes.data, groups, 2, shift)
    else:
        blend_pixels(target, row.ctypes.data, offsets.ctypes.data, weights.ctypes.data, groups, pairs, shift)


@inner
def _blend_rows_exactly(row: Any, image: Any, top: int, left: int, width: int, weights: Any, y: int) -> None:
    """`simd.blend_rows` with weights[y] and one rounding instead of one per term; the box starts at (top, left)."""
    for i in range(width):
        total = 1 << 15
        for tap in range(weights.shape[1]):
            total += (np.int64(image[top + tap, left + i // 3, i % 3]) << 7) * weights[y, tap]
        row[i] = total >> 16
