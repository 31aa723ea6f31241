"""Checks of a method's settings before training; every message names the method, the value and the recipe's key."""

from collections.abc import Iterable
from typing import Any

from whitebench.errors import UserError


def check_views(name: str, views: int, least: int = 2, most: int | None = None) -> None:
    """Raises `UserError` unless `least` <= views <= `most`."""
    if views < least:
        raise UserError(f"{name}: needs at least {least} views, not {views} (data.views)")
    if most is not None and views > most:
        raise UserError(f"{name}: takes at most {most} views, not {views} (data.views)")


def check_options(
    name: str,
    config: Any,
    positive: Iterable[str] = (),
    non_negative: Iterable[str] = (),
    shares: Iterable[str] = (),
    counts: Iterable[str] = (),
) -> None:
    """Raises `UserError` where an option is out of its range; an option that is None is not checked.

    Args:
        config: the method's Config; the other arguments are names of its options.
        positive: above 0. non_negative: at least 0. shares: between 0 and 1. counts: at least 1.
    """
    rules = (
        (positive, lambda value: value > 0, "is above 0"),
        (non_negative, lambda value: value >= 0, "is at least 0"),
        (shares, lambda value: 0 <= value <= 1, "lies between 0 and 1"),
        (counts, lambda value: value >= 1, "is at least 1"),
    )
    for keys, holds, text in rules:
        for key in keys:
            value = getattr(config, key)
            if value is not None and not holds(value):
                raise UserError(f"{name}: {key} {text}, not {value} (method.{key})")
