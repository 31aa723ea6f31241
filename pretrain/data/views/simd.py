"""The two inner loops of a resize, in vector instructions: rows blended into one, then its pixels into new pixels.

Numba has no vector types, so the loops are written as LLVM vector code through its `intrinsic`; LLVM lowers them to
SSE, AVX2 or AVX-512, or to what another CPU has. Images are packed RGB, 8 bits; a row in between is int16
with fractional bits.
"""

import platform
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 32
"""Bytes that a step of `blend_rows` takes; it may not be called for fewer."""
PADDING = 32
"""Elements that `blend_pixels` may read, and not use, after a row."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_HAS_MADD = platform.machine() in ("x86_64", "AMD64")


def _blend_rows(
    typing_context: Any, target: Any, source: Any, stride: Any, weights: Any, taps: Any, length: Any, start: Any
) -> Any:
    """target[j] = start + sum over k < taps of ((source[k * stride + j] << 7) * weights[k] >> 16), for j < length.

    Each term is rounded down, by half a unit on average: `start` is what makes up for that. Addresses of: target int16
    [length], source uint8 (rows `stride` bytes apart), weights int16 [taps].
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(builder)
        target, source, stride, weights, taps, length, start = arguments
        narrow, wide = ir.VectorType(_I16, LANES), ir.VectorType(_I32, LANES)
        total = cgutils.alloca_once(builder, narrow)
        last = builder.sub(length, _I64(LANES))
        with cgutils.for_range(builder, builder.udiv(builder.add(length, _I64(LANES - 1)), _I64(LANES))) as step:
            column = builder.mul(step.index, _I64(LANES))
            column = builder.select(builder.icmp_signed("<", column, last), column, last)  # the last step overlaps
            builder.store(code.repeat(builder.trunc(start, _I16), LANES), total)
            with cgutils.for_range(builder, taps) as tap:
                address = builder.add(builder.add(source, column), builder.mul(tap.index, stride))
                pixels = builder.zext(code.load(address, ir.VectorType(_I8, LANES)), narrow)
                pixels = builder.shl(pixels, code.constant(narrow, 7))
                weight = code.load(code.element(weights, tap.index, 2), _I16, align=2)
                product = builder.mul(builder.sext(pixels, wide), builder.sext(code.repeat(weight, LANES), wide))
                upper = builder.trunc(builder.ashr(product, code.constant(wide, 16)), narrow)  # one instruction, pmulhw
                builder.store(builder.add(builder.load(total), upper), total)
            code.store(builder.load(total), code.element(target, column, 2))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


def _blend_pixels(
    typing_context: Any, target: Any, row: Any, offsets: Any, weights: Any, groups: Any, pairs: Any, shift: Any
) -> Any:
    """Each new pixel is a weighted sum of neighbouring pixels of `row`, (sum + half) >> shift, limited to 0..255.

    Works on `groups` of 4 new pixels and on `pairs` of neighbours. Addresses of: target uint8 [groups, 4, 3], row int16
    [pixels, 3] (and PADDING more), offsets int32 [groups, 4] in bytes of the row, weights int16
    [groups, pairs, 4 pixels, 4 channels (one unused), 2 neighbours].
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(builder)
        target, row, offsets, weights, groups, pairs, shift = arguments
        eight = ir.VectorType(_I32, 8)
        totals = [cgutils.alloca_once(builder, eight) for _ in range(2)]  # of two pixels each, as R G B .
        half = builder.shl(_I32(1), builder.trunc(builder.sub(shift, _I64(1)), _I32))
        with cgutils.for_range(builder, groups) as group:
            first = code.element(offsets, group.index, 16)
            starts = [code.load(builder.add(first, _I64(4 * pixel)), _I32, align=4) for pixel in range(4)]
            starts = [builder.add(row, builder.zext(start, _I64)) for start in starts]
            for total in totals:
                builder.store(code.repeat(half, 8), total)
            with cgutils.for_range(builder, pairs) as pair:
                taps = code.element(weights, builder.add(builder.mul(group.index, pairs), pair.index), 64)
                sums = [
                    code.sum_of_pair(code.element(start, pair.index, 12), builder.add(taps, _I64(16 * pixel)))
                    for pixel, start in enumerate(starts)
                ]
                for total, two in zip(totals, (sums[:2], sums[2:]), strict=True):
                    builder.store(builder.add(builder.load(total), code.joined(*two)), total)
            pixels = code.joined(*[builder.load(total) for total in totals])
            pixels = builder.ashr(pixels, code.repeat(builder.trunc(shift, _I32), 16))
            code.store_pixels(code.limited(pixels), code.element(target, group.index, 12))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


blend_rows: Any = intrinsic(_blend_rows)
blend_pixels: Any = intrinsic(_blend_pixels)


class _Code:
    """Words for the vector code above."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def constant(self, vector: Any, value: int) -> Any:
        return ir.Constant(vector, [value] * vector.count)

    def element(self, base: Any, index: Any, size: int) -> Any:
        """Address of element `index`, `size` bytes each."""
        return self.builder.add(base, self.builder.mul(index, _I64(size)))

    def load(self, address: Any, kind: Any, align: int = 1) -> Any:
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=align)

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=1)

    def pick(self, vector: Any, lanes: Sequence[int]) -> Any:
        mask = ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes))
        return self.builder.shuffle_vector(vector, vector, mask)

    def repeat(self, scalar: Any, count: int) -> Any:
        vector = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
        return self.pick(self.builder.insert_element(vector, scalar, _I32(0)), [0] * count)

    def joined(self, first: Any, second: Any) -> Any:
        both = 2 * first.type.count
        mask = ir.Constant(ir.VectorType(_I32, both), list(range(both)))
        return self.builder.shuffle_vector(first, second, mask)

    def sum_of_pair(self, pixels: Any, weights: Any) -> Any:
        """R0 G0 B0 R1 G1 B1 . . and (w0 w1) x 4 -> int32 R G B .  with R = R0 w0 + R1 w1."""
        eight, four = ir.VectorType(_I16, 8), ir.VectorType(_I32, 4)
        values = self.pick(self.load(pixels, eight), (0, 3, 1, 4, 2, 5, 6, 7))
        factors = self.load(weights, eight, align=2)
        if _HAS_MADD:
            kind = ir.FunctionType(four, [eight, eight])
            madd = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.x86.sse2.pmadd.wd")
            return self.builder.call(madd, [values, factors])
        even, odd = (
            self.builder.mul(*[self.builder.sext(self.pick(vector, lanes), four) for vector in (values, factors)])
            for lanes in ((0, 2, 4, 6), (1, 3, 5, 7))
        )
        return self.builder.add(even, odd)

    def limited(self, pixels: Any) -> Any:
        """int32 -> 0..255 as uint8."""
        low, high = self.constant(pixels.type, 0), self.constant(pixels.type, 255)
        pixels = self.builder.select(self.builder.icmp_signed(">", pixels, low), pixels, low)
        pixels = self.builder.select(self.builder.icmp_signed("<", pixels, high), pixels, high)
        return self.builder.trunc(pixels, ir.VectorType(_I8, pixels.type.count))

    def store_pixels(self, pixels: Any, address: Any) -> None:
        """Four of R G B . -> 12 bytes."""
        self.store(self.builder.bitcast(self.pick(pixels, (0, 1, 2, 4, 5, 6, 8, 9)), _I64), address)
        rest = self.builder.bitcast(self.pick(pixels, (10, 12, 13, 14)), _I32)
        self.store(rest, self.builder.add(address, _I64(8)))
