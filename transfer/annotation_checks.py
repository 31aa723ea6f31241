"""Checks of single annotations, and the count of what is wrong in a split: before days of training, not after them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whitebench.errors import UserError

TOLERATED = 1 / 1000
"""Share of a split's annotations that may be faulty: COCO itself has a few; Detectron2 clips or skips them."""
SLACK = 1.0
"""Pixels by which a box may reach beyond its image: annotations are rounded."""
FAR = 10
"""A mask's points lie within this many times the image's longer side; pycocotools walks along every pixel between."""
LEAST_OVERLAP = 0.3
"""Intersection over union of a box and its mask's extent, both widened by a pixel."""
SKIP_OPTION = "--skip-faulty"


@dataclass
class Faults:
    """What is wrong with the annotations of one file or list, how often, and where first."""

    path: Path
    total: int
    """Annotations that were checked."""
    skip: bool = False
    """Every faulty annotation is left out, however many there are."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """By kind, such as "have an empty box": the annotations."""

    def add(self, kind: str, example: str) -> None:
        self.examples.setdefault(kind, []).append(example)

    def notes(self) -> list[str]:
        """One line per kind of fault.

        Raises:
            UserError: a kind of fault in more than `TOLERATED` of the annotations, unless they are to be skipped.
        """
        lines = []
        for kind, examples in sorted(self.examples.items()):
            line = f"{self.path.name}: {len(examples)} of {self.total} annotations {kind}, e.g. {examples[0]}"
            if len(examples) > TOLERATED * self.total and not self.skip:
                advice = f"at most 1 in {1 / TOLERATED:.0f} may; {SKIP_OPTION} leaves them out"
                raise UserError(f"{self.path.parent / line}; {advice}")
            lines.append(f"{line}; left out" if self.skip else line)
        return lines

    def listing(self) -> list[str]:
        """One line per faulty annotation."""
        return [
            f"{self.path.name}: {example}: {kind.replace('have', 'has', 1)}"
            for kind, examples in sorted(self.examples.items())
            for example in examples
        ]


def is_number(value: Any) -> bool:
    """Whether `value` is an int or float that is finite as a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int of hundreds of digits
        return False


def coco_box_fault(box: Any, width: int, height: int) -> str | None:
    """What is wrong with COCO's [left, top, width, height]; None where nothing is."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        return "have a box that is not four numbers"
    if not all(map(is_number, box)):
        return "have a box that is not finite"
    left, top, w, h = box
    return box_fault(left, top, left + w, top + h, width, height)


def box_fault(left: float, top: float, right: float, bottom: float, width: int, height: int) -> str | None:
    """What is wrong with a box, in pixels of an image of this size; None where nothing is."""
    if not all(map(is_number, (left, top, right, bottom))):
        return "have a box that is not finite"
    if right <= left or bottom <= top:
        return "have an empty box"
    if left < -SLACK or top < -SLACK or right > width + SLACK or bottom > height + SLACK:
        return "have a box that reaches beyond the image"
    return None


def mask_fault(segmentation: Any, width: int, height: int) -> str | None:
    """What is wrong with a mask of either form; None where nothing is."""
    if isinstance(segmentation, list):
        return _polygons_fault(segmentation, width, height)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "have a mask that is neither polygons nor run-length coded"
    if segmentation["size"] not in ([height, width], (height, width)):
        return "have a mask of another size than their image"
    runs = run_lengths(segmentation["counts"])
    if runs is None or min(runs, default=0) < 0 or sum(runs) != width * height:
        return "have a run-length code that does not decode"
    return None if any(runs[1::2]) else "have an empty mask"


def _polygons_fault(polygons: list[Any], width: int, height: int) -> str | None:
    limit = FAR * max(width, height)
    extent = False
    for points in polygons:
        if not isinstance(points, list):
            return "have a polygon that is not a list of numbers"
        try:
            if not all(-limit <= value <= limit for value in points):  # False for NaN, too
                return "have a polygon that is not finite, or far outside the image"
        except TypeError:
            return "have a polygon that is not a list of numbers"
        if is_polygon(points):
            extent = extent or (max(points[0::2]) > min(points[0::2]) and max(points[1::2]) > min(points[1::2]))
    return None if extent else "have an empty mask"


def is_polygon(points: Sequence[float]) -> bool:
    """Whether the list has x and y of at least three points; Detectron2 drops others, pycocotools fails on them."""
    return len(points) >= 6 and len(points) % 2 == 0


def run_lengths(counts: Any) -> list[int] | None:
    """Lengths of the runs of a run-length code, background first, from a list or a compressed text; None: broken.

    The compressed form is that of pycocotools (maskApi.c, rleFrString): groups of 5 bits, low ones first, in
    characters from "0" on, a sixth bit where more follow; from the fourth run on, differences to the run two before.
    pycocotools itself reads beyond the text's end where the code is broken.
    """
    if isinstance(counts, list):
        return counts if all(isinstance(run, int) and not isinstance(run, bool) for run in counts) else None
    if not isinstance(counts, str):
        return None
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 40:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs if shift == 0 else None


def mask_extent(segmentation: Any, height: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a mask in which `mask_fault` finds nothing; of run-length codes, their columns."""
    if isinstance(segmentation, list):
        parts = [points for points in segmentation if is_polygon(points)]
        xs, ys = [x for points in parts for x in points[0::2]], [y for points in parts for y in points[1::2]]
        return min(xs), min(ys), max(xs), max(ys)
    runs, position = run_lengths(segmentation["counts"]) or [], 0
    left, top, right, bottom = math.inf, float(height), 0.0, 0.0
    for number, run in enumerate(runs):
        if number % 2 and run:  # column by column, from the top
            first, last = divmod(position, height), divmod(position + run - 1, height)
            spans = first[0] != last[0]
            left, right = min(left, first[0]), max(right, last[0] + 1)
            top, bottom = min(top, 0 if spans else first[1]), max(bottom, height if spans else last[1] + 1)
        position += run
    return left, top, right, bottom


def fits(box: Sequence[float], extent: tuple[float, float, float, float]) -> bool:
    """Whether COCO's box [left, top, width, height] is about the extent of its mask."""
    a = (box[0] - 1, box[1] - 1, box[0] + box[2] + 1, box[1] + box[3] + 1)
    b = (extent[0] - 1, extent[1] - 1, extent[2] + 1, extent[3] + 1)
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared > LEAST_OVERLAP * (areas - shared)


def mask_area(segmentation: Any) -> float:
    """Area of a mask in which `mask_fault` finds nothing, square pixels.

    The pixels of a run-length code; of polygons, the sum of their areas.
    """
    if not isinstance(segmentation, list):
        return float(sum((run_lengths(segmentation["counts"]) or [])[1::2]))
    return sum(_polygon_area(points) for points in segmentation if is_polygon(points))


def _polygon_area(points: Sequence[float]) -> float:
    xs, ys = points[0::2], points[1::2]
    return abs(sum(xs[k - 1] * ys[k] - xs[k] * ys[k - 1] for k in range(len(xs)))) / 2
