"""The draws: pure functions of (seed, epoch, index, view), with the distributions of torchvision's transforms."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from pretrain.data.views import random_parameters as draws
from pretrain.recipe_sections import Colour, Views

COLOUR = Colour(
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_p=0.8,
    mix_p=0.3,
    gray_p=0.2,
    blur_p=[1.0, 0.1, 0.5],
    solarize_p=[0.0, 0.2, 0.0],
    solarize_threshold=100,
    invert_p=0.25,
)
GROUPS = (Views(size=224, count=2), Views(size=96, scale=(0.05, 0.2), flip_p=0.0))
SETTINGS = draws.settings_of(GROUPS, COLOUR)


def table(count: int = 4000, seed: int = 0, epoch: int = 0, height: int = 375, width: int = 500, **other: Any) -> Any:
    setting = other.get("settings", SETTINGS)
    sides = np.full(count, height), np.full(count, width)
    return draws.draw(seed, epoch, np.arange(count), *sides, setting)


def test_a_draw_depends_on_nothing_but_seed_epoch_index_and_view() -> None:
    whole = table(100)
    order = np.random.default_rng(0).permutation(100)[:30]
    part = draws.draw(0, 0, order, np.full(30, 375), np.full(30, 500), SETTINGS[:2])
    np.testing.assert_array_equal(part, whole[order, :2])


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_draws_anew(other: dict[str, int]) -> None:
    assert (table(50)[..., draws.FACTOR] != table(50, **other)[..., draws.FACTOR]).all()


def test_views_and_images_draw_independently() -> None:
    factors = table()[..., draws.FACTOR]
    assert abs(np.corrcoef(factors[:, 0], factors[:, 1])[0, 1]) < 0.06
    assert abs(np.corrcoef(factors[:-1, 0], factors[1:, 0])[0, 1]) < 0.06


def plain_key(*words: int) -> int:
    """The generator in Python's own integers."""
    key = 0
    for word in words:
        key = plain_mixed(key + word + 0x9E3779B97F4A7C15)
    return key


def plain_mixed(z: int) -> int:
    mask = 2**64 - 1
    z &= mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def plain_uniform(key: int, number: int) -> float:
    return (plain_mixed(key + 0x9E3779B97F4A7C15 * (number + 1)) >> 11) / 2**53


def test_draws_are_those_of_the_documented_generator() -> None:
    drawn = table(5, seed=3, epoch=2)
    for image, view in np.ndindex(5, 3):
        row, key = drawn[image, view], plain_key(3, 2, image, view)
        factors = [plain_uniform(key, 24 + operation) for operation in range(4)]
        expected = [0.6 + 0.8 * factors[0], 0.6 + 0.8 * factors[1], 0.8 + 0.4 * factors[2], -0.1 + 0.2 * factors[3]]
        np.testing.assert_allclose(row[draws.FACTOR : draws.FACTOR + 4], expected, rtol=1e-12)
        assert row[draws.GRAY] == (plain_uniform(key, 39) < 0.2)
    keys = [plain_key(3, 5, index, -1) for index in range(20)]
    assert draws.shuffled(3, 5, 20).tolist() == sorted(range(20), key=keys.__getitem__)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (64, 64), (40, 400)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.05, 0.2)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    count = 3000
    ours = table(
        count, height=height, width=width, settings=draws.settings_of((Views(size=32, scale=scale),), Colour())
    )
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)])
    columns = (draws.TOP, draws.LEFT, draws.HEIGHT, draws.WIDTH)
    for column, name in enumerate(("top", "left", "height", "width")):
        mine = ours[:, 0, columns[column]]
        assert stats.ks_2samp(mine, theirs[:, column]).pvalue > 1e-3, name
    corner = ours[:, 0, draws.TOP] + ours[:, 0, draws.LEFT]
    assert stats.ks_2samp(corner, theirs[:, 0] + theirs[:, 1]).pvalue > 1e-3


@given(
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    low=st.floats(0.01, 1.0),
    ratio=st.tuples(st.floats(0.2, 1.0), st.floats(1.0, 5.0)),
    index=st.integers(0, 2**40),
)
@settings(max_examples=200, deadline=None)
def test_boxes_lie_inside_the_image(
    height: int, width: int, low: float, ratio: tuple[float, float], index: int
) -> None:
    setting = draws.settings_of((Views(size=8, scale=(low, 1.0), ratio=ratio),), Colour())
    row = draws.draw(0, 0, np.array([index]), np.array([height]), np.array([width]), setting)[0, 0]
    assert row[draws.HEIGHT] >= 1
    assert row[draws.WIDTH] >= 1
    assert 0 <= row[draws.TOP] <= height - row[draws.HEIGHT]
    assert 0 <= row[draws.LEFT] <= width - row[draws.WIDTH]


def test_chances_hold_for_each_view() -> None:
    drawn = table()
    expected = {
        "flip": (drawn[..., draws.FLIP] != 0, [0.5, 0.5, 0.0]),
        "jitter": (drawn[..., draws.JITTER] != 0, [0.8] * 3),
        "mix": (drawn[..., draws.MIX] != 0, [0.3] * 3),
        "gray": (drawn[..., draws.GRAY] != 0, [0.2] * 3),
        "blur": (drawn[..., draws.SIGMA] > 0, [1.0, 0.1, 0.5]),
        "solarize": (drawn[..., draws.SOLARIZE] == 100, [0.0, 0.2, 0.0]),
        "invert": (drawn[..., draws.INVERT] != 0, [0.25] * 3),
    }
    for name, (happened, chances) in expected.items():
        np.testing.assert_allclose(happened.mean(0), chances, atol=0.03, err_msg=name)
    assert set(np.unique(drawn[..., draws.SOLARIZE])) == {100, draws.NO_SOLARIZE}


def test_factors_are_uniform_in_torchvisions_ranges() -> None:
    colour = Colour(jitter=(0.4, 1.5, 0.0, 0.1), jitter_p=1.0, blur_p=1.0, blur_sigma=(0.1, 2.0))
    drawn = table(settings=draws.settings_of((Views(size=8),), colour))[:, 0]
    ranges = {draws.BRIGHTNESS: (0.6, 1.4), draws.CONTRAST: (0.0, 2.5), draws.HUE: (-0.1, 0.1)}
    for operation, (low, high) in ranges.items():
        factors = drawn[:, draws.FACTOR + operation]
        assert stats.kstest(factors, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert (drawn[:, draws.FACTOR + draws.SATURATION] == 1.0).all()
    assert stats.kstest(drawn[:, draws.SIGMA], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_every_order_of_jitter_is_as_likely() -> None:
    orders = table(8000)[:, :, draws.ORDER : draws.ORDER + 4].astype(int).reshape(-1, 4)
    counts = Counter(map(tuple, orders.tolist()))
    assert len(counts) == 24
    assert all(sorted(order) == [0, 1, 2, 3] for order in counts)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_mixtures_are_convex() -> None:
    matrix = table()[:, 0, draws.MATRIX : draws.MATRIX + 9].reshape(-1, 3, 3)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(2), 1.0)
    np.testing.assert_allclose(matrix.mean(0), 1 / 3, atol=0.02)


@given(count=st.integers(1, 300), seed=st.integers(0, 2**31), epoch=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_an_order_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(draws.shuffled(seed, epoch, count)) == list(range(count))


def test_orders_of_epochs_and_seeds_differ() -> None:
    orders = {tuple(draws.shuffled(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
