"""The ranges that numbers in recipes, sweeps and presets have: types for the fields of strict config sections.

A field's type is the one place where its range is written; the check, its error message and `docs/recipe-reference.md`
follow from it. NaN and infinities are refused in every field (see `config.strict`).
"""

from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = [
    "AtLeastTwo",
    "Hue",
    "Line",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PartAbove",
    "PartRange",
    "PositiveFloat",
    "PositiveInt",
    "RatioRange",
    "Seed",
    "Share",
    "ShareBelowOne",
    "SigmaRange",
    "Temperature",
]

Share = Annotated[float, Field(ge=0, le=1)]
"""A probability, a momentum, or a part of a whole."""
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
"""Similarities are divided by it: below 0.001, float32 softmaxes overflow."""
AtLeastTwo = Annotated[int, Field(ge=2)]
Hue = Annotated[float, Field(ge=0, le=0.5)]
"""A share of the colour circle; half of it is the opposite colour."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What every random generator in use accepts: numpy's, torch's, faiss's and those of compiled kernels."""
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=4096)]
"""A text of one line, as names of files are."""


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError("the first value should not exceed the second")
    return values


PartAbove = Annotated[float, Field(gt=0, le=1)]
"""A part of a whole, above 0."""
PartRange = Annotated[tuple[PartAbove, PartAbove], AfterValidator(_rising)]
"""Lowest and highest part of a whole."""
_Ratio = Annotated[float, Field(ge=0.01, le=100)]
RatioRange = Annotated[tuple[_Ratio, _Ratio], AfterValidator(_rising)]
_Sigma = Annotated[float, Field(gt=0, le=100)]
SigmaRange = Annotated[tuple[_Sigma, _Sigma], AfterValidator(_rising)]
"""Pixels."""
