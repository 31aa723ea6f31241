"""The photometric operations: the kernels against torchvision's, and the batched form against the kernels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.views import colour, colour_batched
from pretrain.data.views import random_parameters as draws
from pretrain.data.views.jit import kernel
from pretrain.recipe_sections import Colour, Views
from tests.support.photos import photo

inner_recolour = colour.recolour


@kernel
def recolour(view: Any, parameters: Any) -> None:
    inner_recolour(view, parameters)


def nothing() -> NDArray[np.float64]:
    """Parameters that leave a view as it is."""
    row = np.zeros(draws.PARAMETERS)
    row[draws.ORDER : draws.ORDER + 4] = range(4)
    row[draws.FACTOR : draws.FACTOR + 3] = 1.0
    row[draws.SOLARIZE] = draws.NO_SOLARIZE
    return row


def only(column: int, value: float = 1.0) -> NDArray[np.float64]:
    row = nothing()
    row[column] = value
    return row


def jitter(operation: int, factor: float) -> NDArray[np.float64]:
    row = only(draws.FACTOR + operation, factor)
    row[draws.JITTER] = 1
    return row


def blur_like_ours(image: Tensor, sigma: float) -> Tensor:
    reach = int(np.ceil(colour.RADIUS_IN_SIGMAS * sigma))
    return functional.gaussian_blur(image, [2 * reach + 1] * 2, [sigma, sigma])


VIEWS = [
    *(photo(number, 64, 64) for number in range(4)),
    photo(4, 65, 65),
    np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),
    np.zeros((64, 64, 3), np.uint8),
    np.full((64, 64, 3), 255, np.uint8),
]

Operation = Callable[[Tensor], Tensor]
CASES: dict[str, tuple[NDArray[np.float64], Operation, float]] = {
    "gray": (only(draws.GRAY), lambda x: functional.rgb_to_grayscale(x, 3), 0.01),
    "solarize": (only(draws.SOLARIZE, 128), lambda x: functional.solarize(x, 128), 0.0),
    "solarize at 0": (only(draws.SOLARIZE, 0), functional.invert, 0.0),
    "invert": (only(draws.INVERT), functional.invert, 0.0),
}
for factor in (0.0, 0.6, 1.0, 1.37, 2.5):
    CASES |= {
        f"brightness {factor}": (
            jitter(draws.BRIGHTNESS, factor),
            lambda x, f=factor: functional.adjust_brightness(x, f),
            0.0,
        ),
        f"contrast {factor}": (
            jitter(draws.CONTRAST, factor),
            lambda x, f=factor: functional.adjust_contrast(x, f),
            0.02,
        ),
        f"saturation {factor}": (
            jitter(draws.SATURATION, factor),
            lambda x, f=factor: functional.adjust_saturation(x, f),
            0.05,
        ),
    }
for turn in (-0.5, -0.1, 0.0, 0.03, 0.33, 0.5):
    CASES[f"hue {turn}"] = (jitter(draws.HUE, turn), lambda x, t=turn: functional.adjust_hue(x, t), 0.01)
for sigma in (0.1, 0.7, 1.0, 2.0, 5.0):
    CASES[f"blur {sigma}"] = (only(draws.SIGMA, sigma), lambda x, s=sigma: blur_like_ours(x, s), 0.01)


@pytest.mark.parametrize("name", CASES)
def test_operation_is_torchvisions_within_one_level(name: str) -> None:
    parameters, theirs, differing_share = CASES[name]
    for view in VIEWS:
        mine = view.copy()
        recolour(mine, parameters)
        expected = theirs(torch.from_numpy(view).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        difference = np.abs(mine.astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= differing_share


def test_blur_with_torchvisions_usual_kernel_differs_by_a_level_at_most() -> None:
    view = photo(7, 100, 100)
    for sigma in (0.1, 0.5, 1.0, 2.0):
        mine = view.copy()
        recolour(mine, only(draws.SIGMA, sigma))
        theirs = functional.gaussian_blur(torch.from_numpy(view).permute(2, 0, 1), [23, 23], [sigma, sigma])
        assert np.abs(mine.astype(int) - theirs.permute(1, 2, 0).numpy()).max() <= 1


def test_blur_of_a_view_smaller_than_its_kernel_keeps_to_the_view() -> None:
    for side in (1, 2, 5):
        view = np.full((side, side, 3), 200, np.uint8)
        recolour(view, only(draws.SIGMA, 10.0))
        assert (view == 200).all()


def test_mix_is_the_matrix_product() -> None:
    row = only(draws.MIX)
    matrix = np.random.default_rng(1).dirichlet(np.ones(3), 3)
    row[draws.MATRIX : draws.MATRIX + 9] = matrix.ravel()
    for view in VIEWS:
        mine = view.copy()
        recolour(mine, row)
        assert np.abs(mine - np.clip(view @ matrix.T, 0, 255)).max() <= 0.5 + 1e-4


def test_operations_come_in_their_order() -> None:
    row = nothing()
    row[draws.JITTER], row[draws.GRAY], row[draws.SIGMA], row[draws.SOLARIZE], row[draws.INVERT] = 1, 1, 1.0, 100, 1
    row[draws.MIX], row[draws.MATRIX : draws.MATRIX + 9] = 1, np.roll(np.eye(3), 1, axis=0).ravel()
    row[draws.ORDER : draws.ORDER + 4] = (draws.HUE, draws.SATURATION, draws.BRIGHTNESS, draws.CONTRAST)
    row[draws.FACTOR : draws.FACTOR + 4] = (1.2, 0.7, 1.4, 0.08)
    view = photo(11, 64, 64)
    steps = torch.from_numpy(view).permute(2, 0, 1)
    steps = functional.adjust_hue(steps, 0.08)
    steps = functional.adjust_saturation(steps, 1.4)
    steps = functional.adjust_brightness(steps, 1.2)
    steps = functional.adjust_contrast(steps, 0.7)
    steps = steps.roll(1, 0)
    steps = functional.rgb_to_grayscale(steps, 3)
    steps = blur_like_ours(steps, 1.0)
    steps = functional.invert(functional.solarize(steps, 100))
    recolour(view, row)
    difference = np.abs(view.astype(int) - steps.permute(1, 2, 0).numpy())
    assert np.percentile(difference, 99) <= 2  # at the threshold of 100 a level makes a difference of 55


def batch(side: int = 48, count: int = 96) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    setting = draws.settings_of(
        (Views(size=side),),
        Colour(jitter_p=0.8, mix_p=0.2, gray_p=0.2, blur_p=0.5, solarize_p=0.3, invert_p=0.2),
    )
    sides = np.full(count, side)
    views = np.stack([photo(number, side, side) for number in range(count)])
    return views, draws.draw(0, 0, np.arange(count), sides, sides, setting)[:, 0]


def batched(views: NDArray[np.uint8], table: NDArray[np.float64]) -> NDArray[np.uint8]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensor = torch.from_numpy(views).permute(0, 3, 1, 2).to(device)
    return colour_batched.recolour(tensor, table).cpu().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", CASES)
def test_batched_operation_is_the_kernels_within_one_level(name: str) -> None:
    views = np.stack([view for view in VIEWS if len(view) == 64])
    mine = views.copy()
    for view in mine:
        recolour(view, CASES[name][0])
    difference = np.abs(batched(views, np.tile(CASES[name][0], (len(views), 1))).astype(int) - mine)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_batched_augmentation_is_the_kernels_image_by_image() -> None:
    views, table = batch()
    mine = views.copy()
    for view, row in zip(mine, table, strict=True):
        recolour(view, row)
    difference = np.abs(batched(views, table).astype(int) - mine)
    assert difference.max() <= 3
    assert (difference > 1).mean() < 1e-3


def test_batched_augmentation_of_an_image_does_not_depend_on_its_batch() -> None:
    views, table = batch(count=12)
    whole = batched(views, table)
    for number in range(12):
        alone = batched(views[number : number + 1], table[number : number + 1])[0]
        np.testing.assert_array_equal(alone, whole[number])


def test_views_without_operations_stay_as_they_are() -> None:
    views, _ = batch(count=3)
    np.testing.assert_array_equal(batched(views, np.tile(nothing(), (3, 1))), views)


def test_batched_augmentation_without_blur_is_the_kernels_bit_by_bit() -> None:
    views, table = batch()
    table[:, draws.SIGMA] = draws.NO_BLUR
    mine = views.copy()
    for view, row in zip(mine, table, strict=True):
        recolour(view, row)
    np.testing.assert_array_equal(batched(views, table), mine)
