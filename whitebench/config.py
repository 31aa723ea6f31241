"""Config sections as strict dataclasses: types are checked, unknown keys refused, and a fault is told in one line."""

from functools import lru_cache
from typing import Any, TypeVar, cast, dataclass_transform, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from whitebench.errors import UserError, nearest

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def strict(section: type[T]) -> type[T]:
    """Decorator of every config section: an immutable dataclass that checks its types and refuses unknown keys."""
    checked: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid"))(section)
    return cast(type[T], checked)


def validated(kind: type[T], raw: dict[str, Any], where: str, separator: str = ": ") -> T:
    """`raw` as the strict dataclass `kind`.

    Raises:
        UserError: one line for the first fault, `<where>: <key>: what is wrong; the nearest valid key`.
    """
    try:
        made: T = _adapter(cast(Any, kind)).validate_python(dict(raw))
    except ValidationError as error:
        raise UserError(f"{where}{separator}{_first_fault(kind, error)}") from error
    return made


def parse_override(text: str) -> tuple[str, Any]:
    """'a.b=value' -> ('a.b', value), the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"'{text}': overrides look like key=value, e.g. schedule.epochs=20")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"{key}: '{value}' is not a YAML value") from error


def set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets tree["a"]["b"] for key "a.b"; a number walks into a list."""
    *parents, last = key.split(".")
    node: Any = tree
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
            if not isinstance(node, dict | list):
                raise UserError(f"{key}: '{part}' is a value, not a section")
        node[int(last) if isinstance(node, list) else last] = value
    except (ValueError, IndexError) as error:
        raise UserError(f"{key}: there is no such entry in a list of {len(node)}") from error


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _first_fault(kind: type, error: ValidationError) -> str:
    unknown = ("unexpected_keyword_argument", "extra_forbidden")
    # a misspelt key that is needed is two faults: the unknown key explains the missing one
    fault = min(error.errors(include_url=False), key=lambda fault: fault["type"] not in unknown)
    path = [str(part) for part in fault["loc"]]
    if fault["type"] in unknown:
        return f"{'.'.join(path)}: unknown key{nearest(path[-1], _keys_at(kind, path[:-1]))}"
    if fault["type"].startswith("missing"):
        return f"{'.'.join(path)}: is needed"
    return f"{'.'.join(path)}: {fault['msg'].lower()}, not {fault['input']!r}"


def _keys_at(kind: Any, path: list[str]) -> list[str]:
    """Field names of the section at `path` below the dataclass `kind`."""
    for part in path:
        if get_origin(kind) in (list, tuple, dict):  # `part` is an entry of it
            kind = _section(kind)
        else:
            kind = getattr(_section(kind), "__annotations__", {}).get(part)
    return list(getattr(_section(kind), "__dataclass_fields__", {}))


def _section(kind: Any) -> Any:
    """The dataclass `kind`, or the one that it may hold."""
    held = [kind, *getattr(kind, "__args__", ())]
    return next((arg for arg in held if hasattr(arg, "__dataclass_fields__")), None)
