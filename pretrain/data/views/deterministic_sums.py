"""Weighted sums of pixels that do not depend on the order in which a device adds them up.

A product of matrices adds in an order that depends on its shape, so in floating point the last bit of an image depends
on the batch around it. Here weights and levels are whole numbers, and no sum exceeds 2^24, below which float32 adds
exactly.
"""

import torch
from torch import Tensor

BITS, BITS_CUBIC = 16, 14
"""Of a weight, 1 being 2^bits. Cubic ones may be negative or exceed 1; magnitudes of a sum add up to 1.5 at most."""
_FRACTION = 128
"""Fractions of a level in the intermediate result, between rows and columns."""


def whole_weights(weights: Tensor, bits: int) -> Tensor:
    """`weights` float64 [..., n], up to their scale, as whole numbers float32 whose sum over n is about 2^bits.

    Elementwise arithmetic in float64 rounds identically everywhere; the sum is made exact by whole numbers.
    """
    fine = (weights * 2**30).round()
    return (fine / fine.sum(-1, keepdim=True) * 2**bits).round().float()


def resample(levels: Tensor, rows: Tensor, columns: Tensor, bits: int) -> Tensor:
    """rows @ levels @ columns^T, rounded to the nearest of 0..255.

    Args:
        levels: float32 [n, 3, H, W], whole numbers 0..255.
        rows, columns: `whole_weights` float32 [n, h, H] and [n, w, W] of `bits`.
    Returns:
        float32 [n, 3, h, w]; within 0.02 of the exact result, before rounding, for sums of up to 16 weights.
    """
    across = columns[:, None].transpose(2, 3)
    blended = (rows[:, None] @ levels * (_FRACTION / 2**bits) + 0.5).floor()
    high = (blended / _FRACTION).floor()
    sums = high @ across + (blended - high * _FRACTION) @ across / _FRACTION
    return torch.clamp_(sums / 2**bits + 0.5, 0, 255).floor_()
