"""Where the suite's recipes are; a light module for code that reads them without training."""

from pathlib import Path

from whitebench.inheritance import Library

RECIPES = Library("recipe", Path(__file__).parent / "recipes", replaced=("method",))
"""A recipe's method replaces the other's as a whole: its keys belong to that method alone."""
