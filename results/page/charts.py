"""Charts as SVG that takes its colours from the page: lines, dots with intervals, scatters. Every text is escaped."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 24, 36
COLOURS = 10
"""The page's style defines `--c0` to `--c9`."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    name: str
    colour: int
    points: Sequence[Point]
    opacity: float = 1.0


@dataclass(frozen=True)
class Mark:
    """A point of a scatter."""

    x: float
    y: float
    name: str
    colour: int
    error: Point | None = None
    """Half an interval to either side, in x and in y; None draws none."""


@dataclass(frozen=True)
class DotRow:
    """A row of `dots`: single values, their mean and half the interval of that (NaN where there is none)."""

    name: str
    colour: int
    values: Sequence[float]
    mean: float
    half_width: float
    note: str = ""


@dataclass(frozen=True)
class Scale:
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers within the scale; powers of ten where it is logarithmic and spans some."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, round((last - first) / count))
            powers = [10.0**k for k in range(first, last + 1, step)]
            return powers if len(powers) > 1 else [self.low, self.high]
        rough = (self.high - self.low) / count or 1.0
        base = 10 ** math.floor(math.log10(rough))
        step = next(base * k for k in (1, 2, 5, 10) if base * k >= rough * 0.999)
        return [k * step for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def lines(series: Sequence[Series], x_label: str, y_label: str, log_y: bool = False, from_zero: bool = False) -> str:
    """A line each; values that cannot be drawn (not finite, not positive on a logarithmic scale) break it."""
    drawn = [[point for point in one.points if _drawable(point, log_y)] for one in series]
    points = [point for one in drawn for point in one]
    if not points:
        return ""
    x, y = _scales(points, log_y, from_zero)
    body = [
        f'<polyline class="line k{one.colour % COLOURS}" opacity="{one.opacity:.2f}" '
        f'points="{" ".join(f"{x(a)},{y(b)}" for a, b in kept)}"><title>{escape(one.name)}</title></polyline>'
        for one, kept in zip(series, drawn, strict=True)
        if len(kept) > 1
    ]
    body += [
        f'<circle class="dot k{one.colour % COLOURS}" cx="{x(kept[-1][0])}" cy="{y(kept[-1][1])}" r="2.6" '
        f'opacity="{one.opacity:.2f}"><title>{escape(one.name)}: {_text(kept[-1][1])}</title></circle>'
        for one, kept in zip(series, drawn, strict=True)
        if kept
    ]
    return _svg(HEIGHT, [*_axes(x, y, x_label, y_label), *body], f"{y_label} over {x_label}")


def scatter(marks: Sequence[Mark], x_label: str, y_label: str, front: bool = False, log_x: bool = False) -> str:
    """Points with names in their tooltips; `front` joins those that no other beats in both (less x, more y)."""
    kept = [mark for mark in marks if _drawable((mark.x, mark.y), False) and (not log_x or mark.x > 0)]
    if not kept:
        return ""
    x = _padded([mark.x for mark in kept], LEFT, WIDTH - RIGHT, log_x)
    y = _padded([mark.y for mark in kept], HEIGHT - BOTTOM, TOP)
    body = []
    if front:
        path = " ".join(f"{x(mark.x)},{y(mark.y)}" for mark in pareto(kept))
        body.append(f'<polyline class="front" points="{path}"/>')
    for mark in kept:
        body.append(
            f'<circle class="dot k{mark.colour % COLOURS}" cx="{x(mark.x)}" cy="{y(mark.y)}" r="5">'
            f"<title>{escape(mark.name)}: {_text(mark.x)}, {_text(mark.y)}</title></circle>"
        )
    return _svg(HEIGHT, [*_axes(x, y, x_label, y_label), *body], f"{y_label} against {x_label}")


def pareto(marks: Iterable[Mark]) -> list[Mark]:
    """Those that no other beats in both: less x and more y; by x."""
    front: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.x, -mark.y)):
        if not front or mark.y > front[-1].y:
            front.append(mark)
    return front


def dots(rows: Sequence[DotRow], x_label: str) -> str:
    """A row an experiment: each pretraining a dot, the mean a line, its 95 % interval a bar (cut at the edge)."""
    values = [value for row in rows for value in row.values if math.isfinite(value)]
    if not values:
        return ""
    step, top = 36, 8
    height = top + step * len(rows) + BOTTOM
    x = _padded(values, 10, WIDTH - RIGHT)
    body = [_text_at(WIDTH / 2 + 5, height - 4, x_label, "label")]
    for tick in x.ticks(6):
        body.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{top}" y2="{height - BOTTOM + 4}"/>')
        body.append(_text_at(x(tick), height - BOTTOM + 17, _text(tick), "tick"))
    for i, row in enumerate(rows):
        y, colour = top + step * i + 25, f"k{row.colour % COLOURS}"
        body.append(_text_at(10, y - 10, row.name, "name"))
        body.append(_text_at(WIDTH - RIGHT, y - 10, row.note, "note"))
        if math.isfinite(row.half_width):
            low, high = (x(min(max(row.mean + sign * row.half_width, x.low), x.high)) for sign in (-1, 1))
            body.append(
                f'<rect class="ci {colour}" x="{low}" y="{y - 4}" width="{max(high - low, 1):.1f}" height="8" rx="2"/>'
            )
        if math.isfinite(row.mean):
            body.append(
                f'<line class="mean {colour}" x1="{x(row.mean)}" x2="{x(row.mean)}" y1="{y - 7}" y2="{y + 7}"/>'
            )
        body += [
            f'<circle class="dot {colour}" cx="{x(value)}" cy="{y}" r="3.4"><title>{_text(value)}</title></circle>'
            for value in row.values
            if math.isfinite(value)
        ]
    return _svg(height, body, x_label)


def _drawable(point: Point, log_y: bool) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1]) and (not log_y or point[1] > 0)


def _scales(points: Sequence[Point], log_y: bool, from_zero: bool) -> tuple[Scale, Scale]:
    xs, ys = zip(*points, strict=True)
    if log_y:
        return Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT), Scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP, log=True)
    y = _padded([*ys, 0.0] if from_zero else list(ys), HEIGHT - BOTTOM, TOP)
    return Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT), Scale(0.0, y.high, y.start, y.end) if from_zero else y


def _padded(values: Sequence[float], start: float, end: float, log: bool = False) -> Scale:
    """A scale with some room to either side."""
    low, high = min(values), max(values)
    if log:
        return Scale(low / 1.3, high * 1.3, start, end, log=True)
    room = (high - low) * 0.08 or abs(high) * 0.08 or 1.0
    return Scale(low - room, high + room, start, end)


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    base = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    for tick in x.ticks():
        parts.append(_text_at(x(tick), base + 15, _text(tick), "tick"))
    for tick in y.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(_text_at(LEFT - 6, y(tick) + 4, _text(tick), "tick end"))
    parts.append(_text_at((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label, "label"))
    parts.append(_text_at(4, 11, y_label, "label start"))
    return parts


def _text_at(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>' if text else ""


def _text(value: float) -> str:
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e5 or size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def _svg(height: float, body: Iterable[str], title: str) -> str:
    inside = "\n".join(part for part in body if part)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">\n{inside}\n</svg>'
