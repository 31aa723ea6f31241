"""The ranges that numbers in recipes, sweeps and presets have: types for the fields of strict config sections.

A field's type is the one place where its range is written; the check, its error message and `docs/recipe-reference.md`
follow from it. NaN and infinities are refused in every field (see `config.strict`).
"""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = [
    "AtLeastTwo",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Seed",
    "Share",
    "ShareBelowOne",
    "Temperature",
]

Share = Annotated[float, Field(ge=0, le=1)]
"""A probability, a momentum, or a part of a whole."""
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
"""Similarities are divided by it: below 0.001, float32 softmaxes overflow."""
AtLeastTwo = Annotated[int, Field(ge=2)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What every random generator in use accepts: numpy's, torch's, faiss's and those of compiled kernels."""
