"""Vega-Lite specifications of the page's charts. Data come from a named frame; marks from the field `method`.

The page's script adds width, colours of axes and the ranges of the method scales (`Marks.scales`), and draws a chart
when it comes into view.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from results.page.frames import script_json
from results.page.marks import COLOURS

Spec = dict[str, Any]
HEIGHT = 230
LAST, HOVER, FRONT = "last", "hover", "front"
"""Boolean columns: the last point of a line, points that show values on hover, points of a Pareto front."""


@dataclass(frozen=True)
class Chart:
    title: str
    frame: str
    """Name of the frame that holds its rows."""
    spec: Spec
    where: Mapping[str, str] = field(default_factory=dict)
    """Only rows with these values of text columns."""
    note: str = ""

    @property
    def json(self) -> Markup:
        return script_json({"frame": self.frame, "where": dict(self.where), "spec": self.spec})


@dataclass(frozen=True)
class Axis:
    field: str
    title: str
    log: bool = False
    zero: bool = False

    def encoding(self) -> Spec:
        scale: Spec = {"type": "log"} if self.log else {"zero": self.zero, "nice": True}
        axis = {"format": ".0e"} if self.log else {}
        return {"field": self.field, "type": "quantitative", "title": self.title or None, "scale": scale, "axis": axis}

    def tooltip(self) -> Spec:
        return {"field": self.field, "type": "quantitative", "title": self.title or self.field, "format": ".4~g"}

    def drawable(self) -> Spec:
        """A filter that drops values which the axis cannot show."""
        test = {"gt": 0} if self.log else {"valid": True}
        return {"filter": {"field": self.field, **test}}


def line_chart(x: Axis, y: Axis, series: str, by_method: bool = True, levels: Sequence[str] = ()) -> Spec:
    """A line for each value of the column `series`, with a mark at its end.

    Coloured by method, or by `series` itself, whose values are then `levels`.
    """
    colour, shape, dash = _method_scales() if by_method else _level_scales(series, levels)
    tooltip = [{"field": series, "type": "nominal"}, x.tooltip(), y.tooltip()]
    base = {"detail": {"field": series}, **colour}
    return {
        "height": HEIGHT,
        "transform": [x.drawable(), y.drawable()],
        "encoding": {"x": {**x.encoding(), "scale": {"zero": False, "nice": False}}, "y": y.encoding()},
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.8}, "encoding": {**base, **dash}},
            {"transform": [_only(LAST)], "mark": _point(45), "encoding": {**base, **shape, "tooltip": tooltip}},
            {"transform": [_only(HOVER)], "mark": {**_point(130), "opacity": 0}, "encoding": {"tooltip": tooltip}},
        ],
    }


def spectrum_chart(x: Axis, y: Axis, colour: int) -> Spec:
    """A line for each epoch, the later the stronger, in the page's colour of that number."""
    strength = {"field": "epoch", "type": "quantitative", "scale": {"range": [0.2, 1]}, "legend": None}
    tooltip = [{"field": "epoch", "type": "quantitative"}, x.tooltip(), y.tooltip()]
    paint = f"var(--c{colour % COLOURS})"
    return {
        "height": HEIGHT - 50,
        "transform": [x.drawable(), y.drawable()],
        "encoding": {"x": {**x.encoding(), "scale": {"zero": False, "nice": False}}, "y": y.encoding()},
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 1.6, "stroke": paint},
                "encoding": {"detail": {"field": "epoch"}, "opacity": strength},
            },
            {"transform": [_only(HOVER)], "mark": {**_point(130), "opacity": 0}, "encoding": {"tooltip": tooltip}},
        ],
    }


def scatter_chart(x: Axis, y: Axis, name: str, front: bool = False) -> Spec:
    """A mark for each row, `name` and values on hover; `front` joins the rows whose column FRONT is true."""
    colour, shape, _ = _method_scales()
    tooltip = [{"field": name, "type": "nominal"}, x.tooltip(), y.tooltip()]
    line = {
        "transform": [_only(FRONT)],
        "mark": {"type": "line", "stroke": "var(--soft)", "strokeDash": [4, 4], "strokeWidth": 1.3},
        "encoding": {"order": {"field": x.field, "type": "quantitative"}},
    }
    points = {"mark": _point(90), "encoding": {**colour, **shape, "tooltip": tooltip}}
    return {
        "height": HEIGHT,
        "transform": [x.drawable(), y.drawable()],
        "encoding": {"x": x.encoding(), "y": y.encoding()},
        "layer": [*([line] if front else []), points],
    }


def interval_chart(value: Axis, low: str, high: str, name: str) -> Spec:
    """A row for each `name`, best first: its value as a mark, the interval from `low` to `high` as a bar."""
    colour, shape, _ = _method_scales()
    across = value.encoding()
    tooltip = [{"field": name, "type": "nominal"}, value.tooltip()]
    tooltip += [{"field": edge, "type": "quantitative", "format": ".4~g"} for edge in (low, high)]
    bar = {"x": {**across, "field": low}, "x2": {"field": high}, **colour, "tooltip": tooltip}
    return {
        "height": {"step": 22},
        "transform": [value.drawable()],
        "encoding": {"y": {"field": name, "type": "nominal", "title": None, "sort": None}},
        "layer": [
            {"mark": {"type": "bar", "opacity": 0.25, "height": 9}, "encoding": bar},
            {"mark": _point(70), "encoding": {"x": across, **colour, **shape, "tooltip": tooltip}},
        ],
    }


def band_chart(x: Axis, y: Axis, low: str, high: str, series: str) -> Spec:
    """A line with a mark at each row, for each value of the column `series`, and the band from `low` to `high`."""
    colour, shape, dash = _method_scales()
    tooltip = [{"field": series, "type": "nominal"}, x.tooltip(), y.tooltip()]
    tooltip += [{"field": edge, "type": "quantitative", "format": ".4~g"} for edge in (low, high)]
    base = {"detail": {"field": series}, **colour}
    up = y.encoding()
    band = {**base, "y": {**up, "field": low}, "y2": {"field": high}}
    return {
        "height": HEIGHT,
        "transform": [x.drawable(), y.drawable()],
        "encoding": {"x": {**x.encoding(), "scale": {"zero": False, "nice": False}}},
        "layer": [
            {"mark": {"type": "area", "opacity": 0.15}, "encoding": band},
            {"mark": {"type": "line", "strokeWidth": 1.8}, "encoding": {**base, **dash, "y": up}},
            {"mark": _point(45), "encoding": {**base, **shape, "y": up, "tooltip": tooltip}},
        ],
    }


def _method_scales() -> tuple[Spec, Spec, Spec]:
    """Encodings by method: colour, shape, dash. The script gives their scales the page's domain and ranges."""
    method = {"field": "method", "type": "nominal", "legend": None}
    return {"color": dict(method)}, {"shape": dict(method)}, {"strokeDash": dict(method)}


def _level_scales(name: str, levels: Sequence[str]) -> tuple[Spec, Spec, Spec]:
    colours = [f"var(--c{i % COLOURS})" for i in range(len(levels))]
    scale = {"domain": list(levels), "range": colours}
    return {"color": {"field": name, "type": "nominal", "scale": scale, "legend": {"title": None}}}, {}, {}


def _only(column: str) -> Spec:
    return {"filter": {"field": column, "equal": True}}


def _point(size: int) -> Spec:
    return {"type": "point", "filled": True, "size": size, "opacity": 1}
