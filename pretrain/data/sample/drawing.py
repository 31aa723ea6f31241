"""Draws the pictures of the built-in sample: digits on photos, both of which scikit-learn ships.

Every picture has a generator of its own, seeded by (SEED, set, split, number), and only such arithmetic as gives the
same bits on every machine: sums and products in float64, sums of whole numbers, Pillow's integer resampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SEED = 1797
CLASSES = tuple("0123456789")
CLASSIFICATION, DETECTION = "sample", "sample-det"
SPLITS = ("train", "val")
VAL_DIGITS = 36
"""Digits of each class that only validation pictures show (360 of 1,797)."""

PICTURE_SIDE = 64
PLAIN = 128
"""Level (0..255) of all three channels of a plain background."""
BACKGROUND_CELLS = 4
"""A soft background is a photo crop reduced to this many pixels per side and scaled up again."""
BACKGROUND_CROPS = (64, 320)
"""Sides of the photo crop behind a digit, photo pixels."""
BACKGROUND_FADE = 0.6
"""How far such a background is faded to its own mean colour."""
BACKGROUND_LEVELS = (48, 208)
"""Levels of a gray background that each picture has of its own."""

SCENE_SIDE = 160
SCENE_OBJECTS = (2, 5)
SCENE_DIGIT_SIDES = (32, 88)
SCENE_CROPS = (160, 320)
SCENE_FADE = 0.35
"""How far a scene's photo is faded to its own mean colour, so that digits stand out."""
SCENE_CONTRAST = 80.0
STROKE = 0.5
"""Coverage from which a pixel of a scene belongs to the digit: the edge of its mask."""
EDGE = 6.0
"""How steeply coverage rises from 0 to 1 across the edge of a mask: about one pixel, for an average digit."""
MIN_VISIBLE = 0.2
"""Share of a digit's pixels that must stay visible; a later digit that would hide more is placed elsewhere."""

LUMA = np.array([0.299, 0.587, 0.114])
WHITE = np.array([235.0, 235.0, 235.0])

Pixels = NDArray[np.uint8]
Coverage = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Style:
    """What classification pictures have in common, and what each has of its own."""

    background: Literal["plain", "gray", "photo"]
    """plain: one gray for all pictures; gray: a level of its own for each; photo: a soft photo crop of its own."""
    tint: Literal["white", "random"]
    """Of the digit: one for all pictures, or one for each."""
    contrast: float
    """Least difference in luma (0..255) between a random tint and what it covers."""
    sides: tuple[int, int]
    """Least and greatest side of the digit's square, pixels."""
    centred: bool
    """The digit is in the middle; otherwise at a random position."""


VERSION_1 = Style("photo", "random", contrast=88.0, sides=(44, 60), centred=False)
"""The sample's first version, in which views of a picture could be matched without looking at the digit."""
STYLE = Style("plain", "random", contrast=88.0, sides=(44, 60), centred=False)
"""Pictures differ in their digit alone: its shape, tint, size and position."""


@dataclass(frozen=True)
class Material:
    """What one split is made of; the splits' material is disjoint."""

    digits: Pixels
    """[N, 8, 8], 0..255: ink."""
    labels: NDArray[np.int64]
    """[N]"""
    source: NDArray[np.int64]
    """[N]: indices in scikit-learn's `load_digits`, ascending."""
    photos: tuple[Pixels, ...]
    """Half photos, each [427, 320, 3]."""

    def __len__(self) -> int:
        return len(self.digits)


@dataclass(frozen=True)
class Object:
    """A digit in a scene."""

    label: int
    mask: Mask
    """[S, S]: its pixels that no later digit covers."""
    drawn: int
    """Pixels of it before later digits covered some."""


@dataclass(frozen=True)
class Scene:
    image: Pixels
    """[S, S, 3], as it is before it becomes a JPEG."""
    objects: tuple[Object, ...]
    """In the order in which they were drawn: later ones occlude earlier ones."""


def material() -> dict[str, Material]:
    """Split -> its digits and photo halves. The digits of val are drawn class by class."""
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    ink = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    rng = np.random.Generator(np.random.PCG64(SEED))
    of_class = [rng.permutation(np.flatnonzero(digits.target == label)) for label in range(len(CLASSES))]
    chosen = {
        "train": np.sort(np.concatenate([members[VAL_DIGITS:] for members in of_class])),
        "val": np.sort(np.concatenate([members[:VAL_DIGITS] for members in of_class])),
    }
    photos = [np.asarray(photo) for photo in load_sample_images().images]
    middle = photos[0].shape[1] // 2
    halves = {"train": slice(None, middle), "val": slice(middle, None)}
    return {
        split: Material(ink[rows], digits.target[rows], rows, tuple(photo[:, halves[split]] for photo in photos))
        for split, rows in chosen.items()
    }


def picture(split: str, number: int, made_of: Material, style: Style = STYLE) -> Pixels:
    """[64, 64, 3]: digit `number` of the split, in this style."""
    rng = _generator(CLASSIFICATION, split, number)
    background = _background(rng, made_of, style)
    coverage = _placed(rng, made_of.digits[number], style.sides, PICTURE_SIDE, style.centred)
    if style.tint == "white":
        return _blended(background, coverage, WHITE)
    return _painted(rng, background, coverage, style.contrast)


def _background(rng: np.random.Generator, made_of: Material, style: Style) -> Pixels:
    """Draws what is behind the digit, [64, 64, 3]."""
    if style.background == "photo":
        cells = _photo_crop(rng, made_of.photos, BACKGROUND_CROPS, BACKGROUND_CELLS)
        return _faded(_resized(cells, PICTURE_SIDE, Image.Resampling.BICUBIC), BACKGROUND_FADE)
    level = int(rng.integers(*BACKGROUND_LEVELS, endpoint=True)) if style.background == "gray" else PLAIN
    return np.full((PICTURE_SIDE, PICTURE_SIDE, 3), level, np.uint8)


def scene(split: str, number: int, made_of: Material) -> Scene:
    """[160, 160, 3]: two to five digits on a sharp photo crop, with the exact masks of their visible parts."""
    rng = _generator(DETECTION, split, number)
    indices = rng.integers(len(made_of), size=int(rng.integers(*SCENE_OBJECTS, endpoint=True)))
    layers: list[Coverage] = []
    for digit in made_of.digits[indices]:
        layers.append(_non_hiding_layer(rng, layers, digit))
    image = _faded(_photo_crop(rng, made_of.photos, SCENE_CROPS, SCENE_SIDE), SCENE_FADE)
    for layer in layers:
        image = _painted(rng, image, layer, SCENE_CONTRAST)
    masks = [layer >= 0.5 for layer in layers]
    parts = zip(made_of.labels[indices], visible(masks), masks)
    return Scene(image, tuple(Object(int(label), seen, int(mask.sum())) for label, seen, mask in parts))


def visible(masks: Sequence[Mask]) -> list[Mask]:
    """The part of each mask that later ones do not cover; `masks` are in the order of drawing."""
    covered = np.zeros((SCENE_SIDE, SCENE_SIDE), dtype=bool)
    uncovered: list[Mask] = []
    for mask in reversed(masks):
        uncovered.append(mask & ~covered)
        covered |= mask
    return uncovered[::-1]


def _non_hiding_layer(rng: np.random.Generator, before: Sequence[Coverage], digit: Pixels) -> Coverage:
    """[S, S]: a sharp `digit`, drawn again until no digit of `before` is hidden too far by it and those between."""
    while True:
        soft = _placed(rng, digit, SCENE_DIGIT_SIDES, SCENE_SIDE)
        layer = np.clip((soft - STROKE) * EDGE + 0.5, 0.0, 1.0)
        masks = [other >= 0.5 for other in (*before, layer)]
        if all(seen.sum() >= MIN_VISIBLE * mask.sum() for seen, mask in zip(visible(masks), masks)):
            return layer


def _placed(
    rng: np.random.Generator, digit: Pixels, sides: tuple[int, int], canvas: int, centred: bool = False
) -> Coverage:
    """[canvas, canvas], 0..1: `digit` [8, 8] smoothly enlarged to a random side, at a random position inside."""
    side = int(rng.integers(*sides, endpoint=True))
    top, left = (int(offset) for offset in rng.integers(canvas - side, size=2, endpoint=True))
    if centred:
        top = left = (canvas - side) // 2
    coverage = np.zeros((canvas, canvas))
    enlarged = _resized(np.pad(digit, 1), side, Image.Resampling.BICUBIC)  # padded: strokes end inside
    coverage[top : top + side, left : left + side] = enlarged / 255
    return coverage


def _painted(rng: np.random.Generator, image: Pixels, coverage: Coverage, contrast: float) -> Pixels:
    """`image` with a uniform tint laid on by `coverage`; the tint's luma is at least `contrast` from what it covers."""
    behind = _luma(image[coverage >= 0.5].mean(axis=0))
    tint = rng.uniform(0, 255, size=3)
    while abs(_luma(tint) - behind) < contrast:
        tint = rng.uniform(0, 255, size=3)
    return _blended(image, coverage, tint)


def _blended(image: Pixels, coverage: Coverage, tint: NDArray[np.float64]) -> Pixels:
    return np.rint(image + coverage[..., None] * (tint - image)).astype(np.uint8)


def _luma(colour: NDArray[np.float64]) -> float:
    return float((colour * LUMA).sum())


def _photo_crop(rng: np.random.Generator, photos: Sequence[Pixels], sides: tuple[int, int], size: int) -> Pixels:
    """[size, size, 3]: a random square of a random photo, mirrored half of the time, averaged down to `size`."""
    photo = photos[int(rng.integers(len(photos)))]
    side = int(rng.integers(*sides, endpoint=True))
    top, left = (int(rng.integers(extent - side, endpoint=True)) for extent in photo.shape[:2])
    crop = photo[top : top + side, left : left + side]
    if rng.integers(2):
        crop = crop[:, ::-1]
    return _resized(crop, size, Image.Resampling.BOX)


def _faded(photo: Pixels, share: float) -> Pixels:
    """`photo` drawn towards its own mean colour: 0 leaves it unchanged, 1 makes it uniform."""
    return np.rint(photo + share * (photo.mean(axis=(0, 1)) - photo)).astype(np.uint8)


def _resized(image: Pixels, side: int, how: Image.Resampling) -> Pixels:
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), how))


def _generator(dataset: str, split: str, number: int) -> np.random.Generator:
    """The generator of one picture: it does not depend on which other pictures are drawn."""
    entropy = [SEED, (CLASSIFICATION, DETECTION).index(dataset), SPLITS.index(split), number]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
