"""A detection set of a few drawn rectangles in COCO's layout, for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
COLOURS = {3: (220, 30, 30), 7: (30, 30, 220)}


def write_coco(folder: Path, train: int = 6, val: int = 3, side: int = 64, coded: bool = False) -> Path:
    """One red and one blue rectangle an image; masks as polygons, or run-length `coded`."""
    for offset, (split, count) in enumerate((("train2017", train), ("val2017", val))):
        (folder / split).mkdir(parents=True)
        rng = np.random.default_rng(offset)
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for i in range(count):
            picture = rng.integers(90, 130, (side, side + 16 * (i % 2), 3), dtype=np.uint8)
            for category, left in ((3, 2), (7, side // 2)):
                x, y, w, h = left, int(rng.integers(2, side // 3)), side // 3, side // 2
                picture[y : y + h, x : x + w] = COLOURS[category]
                number = len(annotations) + 1
                annotations.append(annotation(number, i + 1, category, (x, y, w, h), picture.shape[:2], coded))
            name = f"{i + 1:012d}.jpg"
            Image.fromarray(picture).save(folder / split / name, quality=95)
            images.append({"id": i + 1, "file_name": name, "height": side, "width": picture.shape[1]})
        whole = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(whole))
    return folder


def annotation(
    number: int, image: int, category: int, box: tuple[int, int, int, int], shape: tuple[int, ...], coded: bool
) -> dict[str, Any]:
    x, y, w, h = box
    segmentation: Any = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if coded:
        from pycocotools import mask

        drawn = np.zeros(shape, np.uint8, order="F")
        drawn[y : y + h, x : x + w] = 1
        rle = mask.encode(drawn)
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": w * h,
        "iscrowd": 0,
        "segmentation": segmentation,
    }


def edit(path: Path, change: Any) -> None:
    """Applies `change` to the JSON in `path`."""
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
