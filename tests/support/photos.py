"""Photos to test with: crops of scikit-learn's two, as JPEGs of various sizes, and an ImageFolder of them."""

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("bird", "cat", "dog")


@cache
def scenes() -> list[NDArray[np.uint8]]:
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


def photo(number: int, height: int | None = None, width: int | None = None) -> NDArray[np.uint8]:
    """Photo `number`, [H, W, 3]: a part of a scene, of drawn sides (80..200) where they are not given."""
    draw = np.random.default_rng(number)
    sides = height or int(draw.integers(80, 200)), width or int(draw.integers(80, 200))
    scene = scenes()[number % 2]
    top, left = (int(draw.integers(0, scene.shape[axis] - sides[axis] + 1)) for axis in (0, 1))
    return np.ascontiguousarray(scene[top : top + sides[0], left : left + sides[1]])


def jpeg(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


def image_folder(root: Path, train: int = 24, val: int = 7, side: int | None = None) -> Path:
    """<split>/<class>/NNN.jpg; all of `side` x `side` pixels where that is given."""
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        for number in range(count):
            path = root / split / CLASSES[number % len(CLASSES)] / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(photo(first + number, side, side)))
    return root
