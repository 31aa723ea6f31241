"""Every random draw of an augmentation, as a pure function of (seed, epoch, image index, view).

The generator is counter-based: draw number n of a view is a hash of (seed, epoch, index, view, n). Nothing is consumed,
so the draws do not depend on batch size, workers, ranks, order, or where a run was resumed. All loaders and both
placements of the photometric part read one table of parameters, float64 [B, V, PARAMETERS].
"""

from typing import Any

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from pretrain.data.views.jit import inner, kernel
from pretrain.recipe_sections import Colour, Views

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Columns of the table. Geometry: the box [top, left, height, width] of the image is resized to [full height, full
# width], of which the view is the window that starts at [window top, window left]; then it is flipped or not.
TOP, LEFT, HEIGHT, WIDTH, FULL_HEIGHT, FULL_WIDTH, WINDOW_TOP, WINDOW_LEFT, FLIP = range(9)
# Photometry. JITTER, MIX, GRAY and INVERT are 0 or 1; ORDER holds the four jitter operations in the order they are
# applied (0 brightness, 1 contrast, 2 saturation, 3 hue), FACTOR their strengths; MATRIX is row-major, output by input.
JITTER, ORDER, FACTOR, MIX, MATRIX, GRAY = 9, 10, 14, 18, 19, 28
SIGMA, SOLARIZE, INVERT, PARAMETERS = 29, 30, 31, 32
NO_BLUR, NO_SOLARIZE = 0.0, 256.0
"""SIGMA (of the blur, pixels) and SOLARIZE (a threshold) where the operation is not applied."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

BLOCK = 16
"""Neighbours in the file that stay together until a window is shuffled: 2 MB of ImageNet are read in one go."""
_OF_IMAGES, _OF_BLOCKS = -1, -2
"""Used instead of a view number for the keys by which orders are drawn; no view has these numbers."""
OF_MASKS = -3
"""The same for masks of the first view; those of view v have OF_MASKS - v."""

# Columns of the settings of a view, float64 [V, SETTINGS].
_SCALE, _LOG_RATIO, _FLIP_P, _SIZE, _JITTER_P, _STRENGTH, _MIX_P, _GRAY_P, _BLUR_P, _SIGMA = (
    0,
    2,
    4,
    5,
    6,
    7,
    11,
    12,
    13,
    14,
)
_SOLARIZE_P, _THRESHOLD, _INVERT_P, SETTINGS = 16, 17, 18, 19

# Numbers of a view's draws.
_TRIES = 10
"""Attempts at a box that fits, as torchvision makes; each takes two draws."""
_PLACE = 2 * _TRIES
_FLIP_DRAW, _JITTER_DRAW, _FACTOR_DRAW, _ORDER_DRAW, _MIX_DRAW, _MATRIX_DRAW = 22, 23, 24, 28, 29, 30
_GRAY_DRAW, _BLUR_DRAW, _SIGMA_DRAW, _SOLARIZE_DRAW, _INVERT_DRAW, _DRAWS = 39, 40, 41, 42, 43, 44


def settings_of(groups: tuple[Views, ...], colour: Colour) -> Floats:
    """What `draw` needs to know of each view, float64 [V, SETTINGS]."""
    views = [group for group in groups for _ in range(group.count)]
    settings = np.zeros((len(views), SETTINGS))
    for row, view in zip(settings, views, strict=True):
        row[_SCALE : _SCALE + 2] = view.scale
        row[_LOG_RATIO : _LOG_RATIO + 2] = np.log(view.ratio)
        row[_FLIP_P], row[_SIZE] = view.flip_p, view.size
    for column, chance in (
        (_JITTER_P, colour.jitter_p),
        (_MIX_P, colour.mix_p),
        (_GRAY_P, colour.gray_p),
        (_BLUR_P, colour.blur_p),
        (_SOLARIZE_P, colour.solarize_p),
        (_INVERT_P, colour.invert_p),
    ):
        settings[:, column] = chance
    settings[:, _STRENGTH : _STRENGTH + 4] = colour.jitter
    settings[:, _SIGMA : _SIGMA + 2] = colour.blur_sigma
    settings[:, _THRESHOLD] = colour.solarize_threshold
    return settings


def draw(seed: int, epoch: int, index: Integers, height: Integers, width: Integers, settings: Floats) -> Floats:
    """The parameters, float64 [B, V, PARAMETERS], of images `index` with sides `height` and `width`, all [B]."""
    table = np.zeros((len(index), len(settings), PARAMETERS))
    _fill(seed, epoch, index, height, width, settings, table)
    return table


def uniforms(seed: int, epoch: int, index: Integers, view: int, count: int) -> Floats:
    """Numbers in [0, 1), float64 [B, count], of the images `index` [B]; `view` may be one of the numbers above."""
    numbers = np.empty((len(index), count))
    _fill_uniforms(seed, epoch, index, view, numbers)
    return numbers


def shuffled(seed: int, epoch: int, count: int) -> Integers:
    """The order in which an epoch visits `count` images: a permutation, int64 [count]."""
    return np.argsort(_keys(seed, epoch, _OF_IMAGES, count), kind="stable")


def shuffled_in_windows(seed: int, epoch: int, count: int, window: int) -> Integers:
    """Such an order for a file larger than memory: int64 [count], and again a function of its arguments alone.

    Blocks of BLOCK neighbours in the file come in random order; in the sequence of images that this makes, each
    `window` images are shuffled among themselves. So at any time only the blocks of one window (and the ends of two)
    are read from, and an epoch reads each block once, if memory holds a window. `window` >= `count` is `shuffled`.
    """
    blocks = np.argsort(_keys(seed, epoch, _OF_BLOCKS, -(-count // BLOCK)), kind="stable")
    images = (BLOCK * blocks[:, None] + np.arange(BLOCK)).ravel()
    images = images[images < count]
    keys = _keys(seed, epoch, _OF_IMAGES, count)[images]
    return images[np.lexsort((keys, np.arange(count) // window))]


def _keys(seed: int, epoch: int, view: int, count: int) -> NDArray[np.uint64]:
    keys = np.empty(count, np.uint64)
    _fill_keys(seed, epoch, view, keys)
    return keys


@inner
def _mixed(z: Any) -> Any:
    """The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection whose output looks random."""
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    return z ^ (z >> uint64(31))


@inner
def _key(seed: int, epoch: int, index: int, view: int) -> Any:
    key = uint64(0)
    for word in (seed, epoch, index, view):
        key = _mixed(key + uint64(word) + uint64(0x9E3779B97F4A7C15))
    return key


@inner
def _draw_uniforms(key: Any, uniforms: Any) -> None:
    """All draws of the view `key`: uniform in [0, 1), 53 bits."""
    for number in range(len(uniforms)):
        bits = _mixed(key + uint64(0x9E3779B97F4A7C15) * uint64(number + 1))
        uniforms[number] = float(bits >> uint64(11)) * (1.0 / 9007199254740992.0)


@kernel
def _fill_keys(seed: int, epoch: int, view: int, keys: Any) -> None:
    for index in range(len(keys)):
        keys[index] = _key(seed, epoch, index, view)


@kernel
def _fill_uniforms(seed: int, epoch: int, index: Any, view: int, numbers: Any) -> None:
    for image in range(len(index)):
        _draw_uniforms(_key(seed, epoch, index[image], view), numbers[image])


@kernel
def _fill(seed: int, epoch: int, index: Any, height: Any, width: Any, settings: Any, table: Any) -> None:
    uniforms = np.empty(_DRAWS)
    for image in range(len(index)):
        for view in range(len(settings)):
            _draw_uniforms(_key(seed, epoch, index[image], view), uniforms)
            _set_geometry(uniforms, height[image], width[image], settings[view], table[image, view])
            _set_photometry(uniforms, settings[view], table[image, view])


@inner
def _between(uniform: float, low: float, high: float) -> float:
    return low + (high - low) * uniform


@inner
def _set_geometry(uniforms: Any, height: int, width: int, setting: Any, row: Any) -> None:
    """A box as torchvision's RandomResizedCrop.get_params draws it, and a flip."""
    box_height, box_width = 0, 0
    for attempt in range(_TRIES):
        area = height * width * _between(uniforms[2 * attempt], setting[_SCALE], setting[_SCALE + 1])
        ratio = np.exp(_between(uniforms[2 * attempt + 1], setting[_LOG_RATIO], setting[_LOG_RATIO + 1]))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            box_height, box_width = h, w
            break
    if box_height > 0:
        row[TOP] = int(uniforms[_PLACE] * (height - box_height + 1))
        row[LEFT] = int(uniforms[_PLACE + 1] * (width - box_width + 1))
    else:
        box_height, box_width = _central_box(height, width, setting)
        row[TOP], row[LEFT] = (height - box_height) // 2, (width - box_width) // 2
    row[HEIGHT], row[WIDTH] = box_height, box_width
    row[FULL_HEIGHT], row[FULL_WIDTH] = setting[_SIZE], setting[_SIZE]
    row[FLIP] = uniforms[_FLIP_DRAW] < setting[_FLIP_P]


@inner
def _central_box(height: int, width: int, setting: Any) -> Any:
    """The largest central box with a permitted ratio; sides of at least 1."""
    low, high = np.exp(setting[_LOG_RATIO]), np.exp(setting[_LOG_RATIO + 1])
    if width < low * height:
        return max(1, round(width / low)), width
    if width > high * height:
        return height, max(1, round(height * high))
    return height, width


@inner
def _set_photometry(uniforms: Any, setting: Any, row: Any) -> None:
    row[JITTER] = uniforms[_JITTER_DRAW] < setting[_JITTER_P]
    for operation in range(4):
        strength = setting[_STRENGTH + operation]
        low, high = (-strength, strength) if operation == HUE else (max(0.0, 1.0 - strength), 1.0 + strength)
        row[FACTOR + operation] = _between(uniforms[_FACTOR_DRAW + operation], low, high)
    _set_order(int(24 * uniforms[_ORDER_DRAW]), row)
    row[MIX] = uniforms[_MIX_DRAW] < setting[_MIX_P]
    _set_matrix(uniforms, row)
    row[GRAY] = uniforms[_GRAY_DRAW] < setting[_GRAY_P]
    row[SIGMA] = NO_BLUR
    if uniforms[_BLUR_DRAW] < setting[_BLUR_P]:
        row[SIGMA] = _between(uniforms[_SIGMA_DRAW], setting[_SIGMA], setting[_SIGMA + 1])
    row[SOLARIZE] = NO_SOLARIZE
    if uniforms[_SOLARIZE_DRAW] < setting[_SOLARIZE_P]:
        row[SOLARIZE] = setting[_THRESHOLD]
    row[INVERT] = uniforms[_INVERT_DRAW] < setting[_INVERT_P]


@inner
def _set_order(code: int, row: Any) -> None:
    """Permutation number `code`, 0..23, of the jitter operations."""
    used = 0  # a bit per operation that has been placed
    for position, permutations in ((0, 6), (1, 2), (2, 1), (3, 1)):
        rank, code = code // permutations, code % permutations
        operation = 0
        while used >> operation & 1 or rank > 0:
            rank -= 1 - (used >> operation & 1)
            operation += 1
        used |= 1 << operation
        row[ORDER + position] = operation


@inner
def _set_matrix(uniforms: Any, row: Any) -> None:
    """Rows uniform on the simplex (exponentials over their sum)."""
    for output in range(3):
        total = 0.0
        for channel in range(3):
            weight = -np.log(1.0 - uniforms[_MATRIX_DRAW + 3 * output + channel])
            row[MATRIX + 3 * output + channel] = weight
            total += weight
        for channel in range(3):
            row[MATRIX + 3 * output + channel] /= total
