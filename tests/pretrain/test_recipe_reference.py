"""The reference of recipe keys is current, and no number of a recipe is without a range."""

import re
from dataclasses import fields
from typing import get_type_hints

import pytest

from pretrain.method import find_method, method_names
from tests.support.recipe_reference import PATH, SECTIONS, render
from whitebench.reference import describe

UNBOUNDED = {"steps", "reported", "tolerance"}
"""Milestones may count from the end, and papers report what they like."""


def test_the_reference_is_current() -> None:
    assert PATH.read_text() == render(), "run python -m tests.support.recipe_reference"


@pytest.mark.parametrize("section", [*SECTIONS.values(), *(find_method(name).Config for name in method_names())])
def test_every_number_has_a_range(section: type) -> None:
    types = get_type_hints(section, include_extras=True)
    for field in fields(section):
        text = describe(types[field.name])
        if field.name not in UNBOUNDED:
            assert not re.search(r"number(?!, [<>])", text), f"{field.name}: {text}"
