"""A detection set of a few drawn rectangles in VOC's layout, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

OBJECT = """<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>
<difficult>{difficult}</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""
LISTS = {"VOC2007": {"trainval": 3, "test": 3}, "VOC2012": {"trainval": 2}}


def write_voc(folder: Path, side: int = 64) -> Path:
    """One cat and one dog an image, the dog of every other image difficult."""
    number = 0
    for year, lists in LISTS.items():
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (folder / year / part).mkdir(parents=True)
        for split, count in lists.items():
            names = [f"{number + k:06d}" for k in range(count)]
            number += count
            (folder / year / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
            for k, name in enumerate(names):
                _write_image(folder / year, name, side, difficult=k % 2)
    return folder


def _write_image(year: Path, name: str, side: int, difficult: int) -> None:
    draw = np.random.default_rng(int(name))
    pixels = draw.integers(90, 130, (side, side, 3), dtype=np.uint8)
    objects = []
    for kind, hard, left, colour in (("cat", 0, 2, (220, 30, 30)), ("dog", difficult, side // 2, (30, 30, 220))):
        top = int(draw.integers(2, side // 3))
        pixels[top : top + side // 2, left : left + side // 3] = colour
        box = (left + 1, top + 1, left + side // 3, top + side // 2)  # counted from 1, both ends within
        objects.append(OBJECT.format(*box, name=kind, difficult=hard))
    Image.fromarray(pixels).save(year / "JPEGImages" / f"{name}.jpg", quality=95)
    size = f"<size><width>{side}</width><height>{side}</height><depth>3</depth></size>"
    (year / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
