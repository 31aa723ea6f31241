"""Faults of a detection set that are better known before days of training: counted, and the first one named."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whitebench.errors import UserError

TOLERATED = 1 / 1000
"""Share of a split's objects that may have a fault: COCO itself has a few; Detectron2 clips or skips them."""
SLACK = 1.0
"""Pixels by which a box may reach beyond its image: annotations are rounded."""
LOOKED_AT = 500
"""Images of a split whose files are opened, evenly spread: their headers alone are read."""


@dataclass
class Faults:
    """Of one split: what is wrong, how often, and where first."""

    where: Path
    total: int
    """Objects of the split."""
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str) -> None:
        self.found.setdefault(kind, []).append(example)

    def notes(self) -> list[str]:
        """A line a kind, for those few enough to go on with.

        Raises:
            UserError: a kind of fault in more than `TOLERATED` of the objects.
        """
        lines = []
        for kind, examples in sorted(self.found.items()):
            line = f"{self.where.name}: {len(examples)} of {self.total} annotations {kind}, e.g. {examples[0]}"
            if len(examples) > TOLERATED * self.total:
                raise UserError(f"{self.where.parent / line}; at most 1 in {1 / TOLERATED:.0f} may")
            lines.append(line)
        return lines


def check_coco(path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> list[str]:
    """Notes on annotations (without crowds) that are of no use; see `Faults.notes`.

    Raises:
        UserError: also two entries of one id, an image without a size.
    """
    _check_ids(path, "images", images)
    _check_ids(path, "annotations", annotations)
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    for number, size in sizes.items():
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise UserError(f"{path}: image {number} has the impossible size {size[0]} x {size[1]}")
    faults = Faults(path, len(annotations))
    for item in annotations:
        width, height = sizes[item["image_id"]]
        kind = _box_fault(item["bbox"], width, height) or _mask_fault(item["segmentation"], width, height)
        if kind:
            faults.add(kind, f"annotation {item['id']} of image {item['image_id']}")
    return faults.notes()


def box_fault(left: float, top: float, right: float, bottom: float, width: int, height: int) -> str | None:
    """What is wrong with a box, in pixels of an image of this size; None where nothing is."""
    if not all(map(math.isfinite, (left, top, right, bottom))):
        return "have a box that is not finite"
    if right <= left or bottom <= top:
        return "have an empty box"
    if left < -SLACK or top < -SLACK or right > width + SLACK or bottom > height + SLACK:
        return "have a box that reaches beyond the image"
    return None


def check_files(images: Path, sizes: Iterable[tuple[str, int, int]]) -> None:
    """Opens some of the images, evenly spread, and compares their sizes with what the annotations say.

    Args:
        sizes: file name, width and height of each.
    Raises:
        UserError: one that does not decode, or is of another size.
    """
    from PIL import Image, UnidentifiedImageError

    listed = list(sizes)
    for name, width, height in listed[:: max(1, -(-len(listed) // LOOKED_AT))]:
        try:
            with Image.open(images / name) as image:
                found = image.size
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(f"{images / name}: does not decode ({error})") from error
        if found != (width, height):
            raise UserError(
                f"{images / name}: is {found[0]} x {found[1]} pixels, its annotations are for {width} x {height}"
            )


def _check_ids(path: Path, section: str, entries: list[dict[str, Any]]) -> None:
    seen: set[Any] = set()
    for item in entries:
        if item["id"] in seen:
            raise UserError(f"{path}: two entries of '{section}' have the id {item['id']}")
        seen.add(item["id"])


def _box_fault(box: Any, width: int, height: int) -> str | None:
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)
    if not numbers:
        return "have a box that is not four numbers"
    left, top, w, h = box
    return box_fault(left, top, left + w, top + h, width, height)


def _mask_fault(segmentation: Any, width: int, height: int) -> str | None:
    if isinstance(segmentation, list):
        polygons = [part for part in segmentation if isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0]
        whole = polygons and any(_extent(part[0::2]) > 0 and _extent(part[1::2]) > 0 for part in polygons)
        return None if whole else "have an empty mask"
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "have a mask that is neither polygons nor run-length coded"
    if list(segmentation["size"]) != [height, width]:
        return "have a mask of another size than their image"
    return None if any(_runs(segmentation)) else "have an empty mask"


def _extent(values: list[float]) -> float:
    return max(values) - min(values)


def _runs(segmentation: dict[str, Any]) -> Iterator[int]:
    """Lengths of the runs inside the object."""
    from pycocotools import mask

    counts = segmentation["counts"]
    if isinstance(counts, list):
        yield from counts[1::2]
    else:
        yield int(mask.area({"size": segmentation["size"], "counts": counts.encode()}))
