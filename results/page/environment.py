"""The Jinja environment of all HTML: every value is escaped unless a template made it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> Markup:
    """The template of that file name; an undefined name in it is an error."""
    return Markup(_environment().get_template(template).render(**values))  # escaped by the template


@cache
def macro(template: str, name: str) -> Callable[..., Markup]:
    """A macro of a template; called, it returns escaped HTML."""
    function: Callable[..., Markup] = getattr(_environment().get_template(template).module, name)
    return function


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
