"""A few drawn rectangles in Cityscapes' folders, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

CAR, PERSON = 26, 24
COLOURS = {CAR: (220, 30, 30), PERSON: (30, 30, 220)}


def write_cityscapes(folder: Path, train: int = 4, val: int = 3, side: int = 64) -> Path:
    """One car and one person an image, on road (7); the first image also has a group of cars."""
    for split, count in (("train", train), ("val", val)):
        rng = np.random.default_rng(len(split))
        for number in range(count):
            city = ("aachen", "bochum")[number % 2]
            pixels = rng.integers(90, 130, (side, 2 * side, 3), dtype=np.uint8)
            ids = np.full((side, 2 * side), 7, dtype=np.uint16)
            for label, left in ((CAR, 4), (PERSON, side // 2)):
                top = int(rng.integers(2, side // 3))
                where = (slice(top, top + side // 2), slice(left, left + side // 3))
                pixels[where], ids[where] = COLOURS[label], label * 1000 + number
            if number == 0:
                ids[2:22, side + 30 : side + 50] = CAR
            write(folder, split, city, f"{city}_{number:06d}_000019", pixels, ids)
    return folder


def write(folder: Path, split: str, city: str, name: str, pixels: np.ndarray, ids: np.ndarray) -> None:
    for top, content, end in (("leftImg8bit", pixels, "leftImg8bit"), ("gtFine", ids, "gtFine_instanceIds")):
        (folder / top / split / city).mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(folder / top / split / city / f"{name}_{end}.png")
