"""Reference tables of config sections, made from the types and docstrings of their fields."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

BOUNDS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}"}
NAMES = {float: "number", int: "whole number", str: "text", bool: "true or false", type(None): "null", Any: "any"}


def markdown_table(section: type, prefix: str = "") -> str:
    """A row for each field of a strict dataclass: key, type and range, default, meaning.

    Args:
        prefix: goes before each key, e.g. "optimizer.".
    """
    types, texts = get_type_hints(section, include_extras=True), _field_docstrings(section)
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for field in fields(section):
        cells = (f"`{prefix}{field.name}`", describe(types[field.name]), _default(field), texts.get(field.name, ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def describe(kind: Any) -> str:
    """A type and its range, in words: "number, >= 0 and <= 1"."""
    if get_origin(kind) is Annotated:
        base, *metadata = get_args(kind)
        bounds = " and ".join(_bounds(metadata))
        return f"{describe(base)}, {bounds}" if bounds else describe(base)
    if kind in NAMES:
        return NAMES[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return f"mapping of names to: {describe(arguments[1])}"
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"list of: {describe(arguments[0])}"
    if origin is tuple:
        parts = list(dict.fromkeys(map(describe, arguments)))
        same = len(parts) == 1
        return f"{len(arguments)} values, each: {parts[0]}" if same else f"[{'; '.join(map(describe, arguments))}]"
    if arguments:  # a union
        return "; or ".join(map(describe, arguments))
    return f"section `{kind.__name__}`"


def _bounds(metadata: list[Any]) -> Iterator[str]:
    """Of annotated-types' objects, and of those that pydantic's Field holds."""
    for item in metadata:
        for constraint in getattr(item, "metadata", [item]):
            for name, text in BOUNDS.items():
                if hasattr(constraint, name):
                    yield text.format(getattr(constraint, name))
            if getattr(constraint, "min_length", 0):
                yield f"at least {constraint.min_length} long"
        if getattr(item, "func", None) is not None:
            yield "the first not above the second"


def _default(field: "Field[Any]") -> str:
    if field.default is not MISSING:
        value = field.default
        return "null" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"
    return "" if field.default_factory is not MISSING else "needed"


def _field_docstrings(section: type) -> dict[str, str]:
    """The docstring below each field, in one line; those of inherited fields, too."""
    texts: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if not hasattr(base, "__dataclass_fields__") or base.__module__ == "builtins":
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        statements = getattr(body, "body", [])
        for statement, after in pairwise(statements):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and is_text:
                texts[statement.target.id] = " ".join(str(after.value.value).split())
    return texts
