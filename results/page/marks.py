"""One mark per method, the same in every chart, table and legend: a colour, a shape, and a dash pattern for lines."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

METHOD_FILES = Path(__file__).parents[2] / "pretrain" / "methods"
COLOURS = 10
"""The page's style defines `--c0` to `--c9`, for light and dark."""

DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])


def _star(points: int = 5, outer: float = 1.15, inner: float = 0.48) -> str:
    corners = [
        (radius * math.sin(math.pi * k / points), -radius * math.cos(math.pi * k / points))
        for k, radius in enumerate([outer, inner] * points)
    ]
    return "M" + "L".join(f"{x:.2f},{y:.2f}" for x, y in corners) + "Z"


SHAPES = (
    "M0.9,0A0.9,0.9,0,1,1,-0.9,0A0.9,0.9,0,1,1,0.9,0Z",
    "M-0.8,-0.8L0.8,-0.8L0.8,0.8L-0.8,0.8Z",
    "M0,-1.05L1,0.75L-1,0.75Z",
    "M0,-1.15L0.95,0L0,1.15L-0.95,0Z",
    "M-0.35,-1L0.35,-1L0.35,-0.35L1,-0.35L1,0.35L0.35,0.35L0.35,1L-0.35,1L-0.35,0.35L-1,0.35L-1,-0.35L-0.35,-0.35Z",
    "M0,1.05L1,-0.75L-1,-0.75Z",
    _star(),
)
"""SVG paths within about [-1, 1], as Vega takes them for symbols."""


@dataclass(frozen=True)
class Mark:
    """Indices into the colours, SHAPES and DASHES."""

    colour: int
    shape: int
    dash: int


class Marks:
    """The marks of `methods`. Up to 70 differ from each other; neighbours differ in colour and in shape.

    The suite's own methods come first and in a fixed order, so that pages of different runs agree.
    """

    def __init__(self, methods: Iterable[str]) -> None:
        built_in = sorted(path.stem for path in METHOD_FILES.glob("[a-z]*.py"))
        present = set(methods)
        order = [*built_in, *sorted(present - set(built_in))]
        self._index = {method: i for i, method in enumerate(order)}
        self.methods = [method for method in order if method in present]

    def __getitem__(self, method: str) -> Mark:
        i = self._index.get(method, 0)
        return Mark(i % COLOURS, i % len(SHAPES), i // COLOURS % len(DASHES))

    def scales(self) -> dict[str, list[object]]:
        """Domain and ranges of Vega-Lite scales of the field `method`."""
        marks = [self[method] for method in self.methods]
        return {
            "methods": list(self.methods),
            "colours": [f"var(--c{mark.colour})" for mark in marks],
            "shapes": [SHAPES[mark.shape] for mark in marks],
            "dashes": [DASHES[mark.dash] for mark in marks],
        }
