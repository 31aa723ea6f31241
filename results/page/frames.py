"""The data of the page's charts: pandas frames, as compact JSON that each chart reads by the frame's name."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

DIGITS = 5
"""Significant digits of numbers: more than any screen shows."""


def compact(frame: pd.DataFrame) -> dict[str, Any]:
    """{column: [numbers] or {"levels": [distinct texts], "codes": [index of each row]}}."""
    return {str(name): _column(frame[name]) for name in frame.columns}


def _column(column: pd.Series) -> list[float | bool | None] | dict[str, Any]:
    if pd.api.types.is_bool_dtype(column):
        return [bool(value) for value in column]
    if pd.api.types.is_numeric_dtype(column):
        return [_rounded(value) for value in column]
    codes, levels = pd.factorize(column.fillna("").astype(str))
    return {"levels": [str(level) for level in levels], "codes": [int(code) for code in codes]}


def _rounded(value: Any) -> float | None:
    """None for what JSON and a chart cannot hold: missing and infinite values."""
    if pd.isna(value) or not math.isfinite(value):
        return None
    number = float(f"{float(value):.{DIGITS}g}")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def script_json(value: Mapping[str, Any]) -> Markup:
    """JSON for a `<script type="application/json">` or a single-quoted attribute: nothing in it ends either."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&'":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # every sign that HTML reads is written as an escape of JSON
