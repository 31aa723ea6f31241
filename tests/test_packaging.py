"""What the code imports is declared in pyproject.toml, and what is declared is pinned in requirements.txt."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("whitebench", "pretrain", "transfer", "slurm", "results")
OTHER_WAYS = {"detectron2", "ffcv", "lvis", "cityscapesscripts", "wandb", "timm", "pydantic_core"}
"""Installed by commands of their own (requirements-native.txt), by those who use them, or with another package."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared() -> set[str]:
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    return {canonicalize_name(Requirement(text).name) for text in [*PROJECT["dependencies"], *extras]}


def imported(package: str) -> set[str]:
    """Top-level names that the package imports, also within functions."""
    names = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - set(PACKAGES) - {"tests"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_declared(package: str) -> None:
    distributions = importlib.metadata.packages_distributions()
    undeclared = {
        name
        for name in imported(package) - OTHER_WAYS
        if not {canonicalize_name(each) for each in distributions.get(name, [name])} & declared()
    }
    assert not undeclared


def test_what_is_declared_is_pinned() -> None:
    text = (ROOT / "requirements.txt").read_text() + (ROOT / "requirements-native.txt").read_text()
    pinned = {canonicalize_name(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}
    indirect = {"networkx"}  # of torch
    assert declared() - pinned <= indirect
