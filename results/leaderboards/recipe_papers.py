"""What the suite's recipes say of their papers, read from their files alone: without any heavy import."""

from functools import cache
from typing import Any

from pretrain.recipe_files import RECIPES


@cache
def names() -> frozenset[str]:
    """Of all recipes, e.g. "cifar10/intl"."""
    return frozenset(RECIPES.names())


@cache
def content(name: str) -> dict[str, Any]:
    """The recipe's sections, merged with those of the recipe that it extends; {} for an unknown name.

    Raises:
        UserError: see `Library.read`.
    """
    return RECIPES.read(name) if name in names() else {}


def section(name: str, key: str) -> dict[str, Any]:
    """One of the recipe's sections; {} where it has none."""
    value = content(name).get(key)
    return value if isinstance(value, dict) else {}


def paper(name: str) -> dict[str, Any]:
    """The recipe's `paper` section: title, source, reported, tolerance, reconstruction."""
    return section(name, "paper")


def is_reconstruction(name: str) -> bool:
    """Whether the recipe says that its paper's exact method or settings are not known."""
    return bool(paper(name).get("reconstruction"))


def tolerance(name: str, stage: str, metric: str) -> float | None:
    """Points by which a result may fall short of the published value and be called reproduced, if the recipe says."""
    value = (paper(name).get("tolerance") or {}).get(f"{stage}_{metric}")
    return float(value) if isinstance(value, int | float) else None
