"""What the suite's recipes say of their papers, read from their files alone: without any heavy import."""

from functools import cache
from pathlib import Path
from typing import Any

from whitebench.yaml import read_yaml

RECIPES = Path(__file__).parents[2] / "pretrain" / "recipes"


@cache
def names() -> frozenset[str]:
    """Of all recipes, e.g. "cifar10/intl"."""
    return frozenset(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml"))


@cache
def content(name: str) -> dict[str, Any]:
    """The recipe's sections, laid over those of the recipe that it extends; {} where the suite has none of that name.

    Raises:
        UserError: its file is not readable as YAML.
    """
    if name not in names():
        return {}
    own = read_yaml(RECIPES / f"{name}.yaml")
    if not isinstance(own, dict):
        return {}
    base = content(own["extends"]) if isinstance(own.get("extends"), str) and own["extends"] != name else {}
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict) and key != "method"
        merged[key] = {**base[key], **value} if both else value
    return merged


def paper(name: str) -> dict[str, Any]:
    """The recipe's `paper` section: title, source, reported, tolerance, reconstruction."""
    section = content(name).get("paper")
    return section if isinstance(section, dict) else {}


def is_reconstruction(name: str) -> bool:
    """Whether the recipe says that its paper's exact method or settings are not known."""
    return bool(paper(name).get("reconstruction"))


def tolerance(name: str, stage: str, metric: str) -> float | None:
    """Points by which a result may fall short of the published value and be called reproduced, if the recipe says."""
    value = (paper(name).get("tolerance") or {}).get(f"{stage}_{metric}")
    return float(value) if isinstance(value, int | float) else None


def forget() -> None:
    """What was read: for tests that put other recipes in place."""
    names.cache_clear()
    content.cache_clear()
