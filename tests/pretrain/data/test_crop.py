"""The crop and resize kernel against torchvision and exact arithmetic, and its vector code against plain arithmetic."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode

from pretrain.data.views import crop
from pretrain.data.views.jit import kernel
from pretrain.data.views.simd import LANES, PADDING, blend_pixels, blend_rows
from tests.support.photos import photo

MODES = {False: InterpolationMode.BILINEAR, True: InterpolationMode.BICUBIC}
inner_crop = crop.resized_crop


@kernel
def resized_crop(image: Any, box: Any, full: Any, window: Any, flip: bool, cubic: bool, out: Any) -> None:
    inner_crop(image, box, full, window, flip, cubic, out)


def ours(
    image: NDArray[np.uint8], box: tuple[int, int, int, int], size: int, flip: bool, cubic: bool
) -> NDArray[np.uint8]:
    out = np.full((size, size, 3), 77, np.uint8)
    resized_crop(image, box, (size, size), (0, 0), flip, cubic, out)
    return out


def exact(
    image: NDArray[np.uint8], box: tuple[int, int, int, int], size: int, flip: bool, cubic: bool
) -> NDArray[np.float32]:
    """torchvision's result in floating point."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    view = functional.resized_crop(pixels, *box, [size, size], interpolation=MODES[cubic], antialias=True)
    return (view.flip(2) if flip else view).clamp(0, 255).permute(1, 2, 0).numpy()


def random_box(draw: np.random.Generator, height: int, width: int, share: float) -> tuple[int, int, int, int]:
    h, w = (max(1, round(side * np.sqrt(share) * draw.uniform(0.87, 1.0))) for side in (height, width))
    return int(draw.integers(height - h + 1)), int(draw.integers(width - w + 1)), h, w


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("size", [224, 96, 37, 8])
def test_within_one_level_of_torchvision(size: int, cubic: bool) -> None:
    draw = np.random.default_rng(size)
    for number in range(12):
        image = photo(number, 375, 500)
        box, flip = random_box(draw, 375, 500, draw.uniform(0.02, 1.0)), bool(number % 2)
        view = ours(image, box, size, flip, cubic).astype(float)
        assert np.abs(view - exact(image, box, size, flip, cubic)).max() <= 1.0
        if not cubic:  # torchvision's own bicubic result in 8 bits is up to 16 levels off
            pixels = torch.from_numpy(image).permute(2, 0, 1)
            theirs = functional.resized_crop(pixels, *box, [size, size], antialias=True).permute(1, 2, 0).numpy()
            theirs = theirs[:, ::-1] if flip else theirs
            assert np.abs(view - theirs).max() <= 1


@given(
    sides=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.integers(1, 70),
    flip=st.booleans(),
    cubic=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_every_size_of_box_and_view_is_right(
    sides: tuple[int, int], size: int, flip: bool, cubic: bool, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    box = (int(draw.integers(101 - sides[0])), int(draw.integers(101 - sides[1])), *sides)
    view = ours(image, box, size, flip, cubic)
    assert np.abs(view.astype(float) - exact(image, box, size, flip, cubic)).max() <= 1.3  # noise, the worst case


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("box", [(0, 0, 90, 90), (0, 0, 8, 8), (3, 5, 1, 1), (0, 0, 299, 299)])
def test_a_flat_image_stays_flat(value: int, box: tuple[int, int, int, int], cubic: bool) -> None:
    image = np.full((299, 299, 3), value, np.uint8)
    assert (ours(image, box, 32, False, cubic) == value).all()


@pytest.mark.parametrize("cubic", [False, True])
def test_a_box_of_the_views_own_size_is_copied(cubic: bool) -> None:
    image = photo(1, 120, 130)
    np.testing.assert_array_equal(ours(image, (10, 20, 64, 64), 64, False, cubic), image[10:74, 20:84])
    np.testing.assert_array_equal(ours(image, (10, 20, 64, 64), 64, True, cubic), image[10:74, 20:84][:, ::-1])


def test_pixels_outside_of_the_box_have_no_influence() -> None:
    image, other = photo(2, 100, 100), np.zeros((100, 100, 3), np.uint8)
    other[20:60, 30:80] = image[20:60, 30:80]
    box = (20, 30, 40, 50)
    np.testing.assert_array_equal(ours(image, box, 48, True, True), ours(other, box, 48, True, True))


def test_nothing_is_written_beside_the_view() -> None:
    frame = np.full((60, 3 * 31), 99, np.uint8)
    out = frame[10:41].reshape(-1)[: 31 * 31 * 3].reshape(31, 31, 3)  # 31 is no multiple of 4
    resized_crop(photo(3, 100, 100), (0, 0, 100, 100), (31, 31), (0, 0), False, False, out)
    assert (frame[:10] == 99).all()
    assert (frame[41:] == 99).all()


@pytest.mark.parametrize("size", [24, 25])
def test_a_window_is_a_part_of_the_whole_view(size: int) -> None:
    image = photo(4, 90, 120)
    whole = np.empty((48, 64, 3), np.uint8)
    resized_crop(image, (0, 0, 90, 120), (48, 64), (0, 0), False, False, whole)
    part = np.empty((size, size, 3), np.uint8)
    resized_crop(image, (0, 0, 90, 120), (48, 64), (12, 20), False, False, part)
    np.testing.assert_array_equal(part, whole[12 : 12 + size, 20 : 20 + size])


@kernel
def run_blend_rows(target: Any, source: Any, weights: Any, start: int) -> None:
    stride, taps, length = source.strides[0], len(weights), source.shape[1]
    blend_rows(target.ctypes.data, source.ctypes.data, stride, weights.ctypes.data, taps, length, start)


@kernel
def run_blend_pixels(target: Any, row: Any, offsets: Any, weights: Any, shift: int) -> None:
    groups, pairs = weights.shape[0], weights.shape[1]
    blend_pixels(target.ctypes.data, row.ctypes.data, offsets.ctypes.data, weights.ctypes.data, groups, pairs, shift)


@pytest.mark.parametrize("length", [LANES, LANES + 1, 3 * LANES, 200])
@pytest.mark.parametrize("taps", [1, 2, 5])
def test_vector_code_blends_rows_as_plain_arithmetic_does(length: int, taps: int) -> None:
    draw = np.random.default_rng(length + taps)
    source = draw.integers(0, 256, (taps, length), dtype=np.uint8)
    weights = draw.integers(-(2**15) // taps, 2**15 // taps, taps).astype(np.int16)
    target = np.full(length + 1, 55, np.int16)
    run_blend_rows(target, source, weights, taps // 2)
    terms = (source.astype(np.int64) << 7) * weights[:, None].astype(np.int64) >> 16
    np.testing.assert_array_equal(target[:-1], terms.sum(0) + taps // 2)
    assert target[-1] == 55


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("pairs", [1, 2, 4])
def test_vector_code_blends_pixels_as_plain_arithmetic_does(groups: int, pairs: int) -> None:
    draw = np.random.default_rng(10 * groups + pairs)
    row = np.concatenate([draw.integers(-3000, 16000, 60, dtype=np.int16), np.zeros(PADDING, np.int16)])
    first = draw.integers(0, 20 - 2 * pairs, (groups, 4))
    taps = draw.integers(-5000, 20000, (groups, 4, 2 * pairs)).astype(np.int16)
    weights = np.zeros((groups, pairs, 4, 4, 2), np.int16)
    weights[:] = taps.reshape(groups, 4, pairs, 1, 2).transpose(0, 2, 1, 3, 4)
    target = np.zeros((groups, 4, 3), np.uint8)
    run_blend_pixels(target, row, (6 * first).astype(np.int32), weights, 21)
    for group, pixel, channel in np.ndindex(groups, 4, 3):
        places = 3 * (first[group, pixel] + np.arange(2 * pairs)) + channel
        total = int((row[places].astype(np.int64) * taps[group, pixel].astype(np.int64)).sum()) + 2**20
        assert target[group, pixel, channel] == min(max(total >> 21, 0), 255)
