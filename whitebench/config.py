"""Config sections as strict dataclasses: types and ranges are checked, unknown keys refused, errors are one line."""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import lru_cache
from typing import Any, TypeVar, cast, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, PydanticCustomError

from whitebench.errors import UserError, nearest, printable
from whitebench.yaml import parse_yaml

T = TypeVar("T")
REFUSED = "refused_conversion"
LIST, SECTION, WHOLE = "a list, as in [a, b]", "a section of keys and values", "a whole number"
YAML_WORDS = {
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), LIST),
    **dict.fromkeys(("dict_type", "mapping_type", "dataclass_type", "dataclass_exact_type", "model_type"), SECTION),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text",
    "none_required": "null",
}
"""pydantic's types of faults -> what the value should be."""


@dataclass_transform(frozen_default=True)
def strict(section: type[T]) -> type[T]:
    """Decorator of every config section: an immutable dataclass that checks types and ranges, and refuses unknown keys.

    NaN and infinities are refused in every field, and so is true or false where a number is expected. A whole number
    is taken for a text (a dataset may be called 2012).
    """
    checks: Any = classmethod(_refuse_conversions)
    section._refuse_conversions = model_validator(mode="before")(checks)  # type: ignore[attr-defined]
    config = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)
    checked: Any = dataclass(frozen=True, config=config)(section)
    return cast(type[T], checked)


def validated(kind: type[T], raw: dict[str, Any], where: str, separator: str = ": ") -> T:
    """`raw` as the strict dataclass `kind`.

    Raises:
        UserError: one line for the first fault, `<where>: <key>: what is wrong; the nearest valid key`.
    """
    try:
        section: T = _adapter(cast(Any, kind)).validate_python(dict(raw))
    except ValidationError as error:
        raise UserError(f"{where}{separator}{_first_fault(kind, error)}") from error
    return section


def parse_override(text: str) -> tuple[str, Any]:
    """'a.b=value' -> ('a.b', value), the value read as YAML.

    Raises:
        UserError: it has no key or no '=', or its value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")) or not key.isprintable():
        raise UserError(f"'{printable(text)}': overrides look like key=value, e.g. schedule.epochs=20")
    return key, parse_yaml(value, where=key)


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Overrides by key; if a key is set twice, the last counts, as on every command line."""
    return dict(map(parse_override, texts))


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
        raise UserError(f"{key}: no such entry in a list of {len(node)}") from error


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _first_fault(kind: type, error: ValidationError) -> str:
    unknown = ("unexpected_keyword_argument", "extra_forbidden")
    # A misspelt key that is needed is two faults: the unknown key explains the missing one. Of the alternatives of a
    # union, the one that came further says more.
    fault = min(error.errors(include_url=False), key=lambda fault: (fault["type"] not in unknown, -len(fault["loc"])))
    path = [printable(part) for part in _path(kind, fault["loc"])]
    message = _message(fault["type"], fault["msg"])
    if fault["type"] == REFUSED:
        key = fault["ctx"]["key"]
        return f"{'.'.join([*path, printable(key)])}: {message}, not {_shortened(_entry(fault['input'], key))}"
    if fault["type"] in unknown:
        return f"{'.'.join(path)}: unknown key{nearest(path[-1], _keys_at(kind, path[:-1]))}"
    if fault["type"].startswith("missing"):
        return f"{'.'.join(path)}: is needed"
    return f"{'.'.join(path)}: {message[:1].lower()}{message[1:]}, not {_shortened(fault['input'])}"


def _message(fault_type: str, text: str) -> str:
    """What is wrong in YAML's words: pydantic's are Python's."""
    if fault_type in YAML_WORDS:
        return f"should be {YAML_WORDS[fault_type]}"
    return text.removeprefix("Value error, ").replace("Tuple should", "list should")


def _path(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    """Keys and numbers of list entries, without the names of types that pydantic inserts for alternatives."""
    if not location:
        return []
    *parents, last = location
    keys: list[str] = []
    for part in parents:
        if isinstance(part, int) or part in _keys_at(kind, keys) or get_origin(_at(kind, keys)) is dict:
            keys.append(str(part))
    within = _keys_at(kind, keys)
    is_type = isinstance(last, str) and keys and not within and get_origin(_at(kind, keys)) is not dict
    return keys if is_type else [*keys, str(last)]


def _entry(values: Any, key: str) -> Any:
    return ((values.kwargs or {}) if isinstance(values, ArgsKwargs) else values)[key]


def _shortened(value: Any) -> str:
    """As it is written in YAML where it is one word; at most 80 characters."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _keys_at(kind: Any, path: list[str]) -> list[str]:
    """Field names of the section at `path` below the dataclass `kind`; none if a plain value is there."""
    section = _section(_at(kind, path))
    return [] if section is None else [field.name for field in fields(section)]


def _at(kind: Any, path: list[str]) -> Any:
    """The type at `path` below the dataclass `kind`."""
    for part in path:
        section = _section(kind)
        is_entry = get_origin(kind) in (list, tuple, dict) or section is None
        kind = section if is_entry else _types(section).get(part)
    return kind


def _section(kind: Any) -> Any:
    """The dataclass `kind`, or the one that it may hold."""
    candidates = [kind, *get_args(kind)]
    return next((candidate for candidate in candidates if hasattr(candidate, "__dataclass_fields__")), None)


def _refuse_conversions(section: Any, values: Any) -> Any:
    """`values` as they are, without those that pydantic would convert to something that was not written.

    It takes true for 1 where a number is expected, and 1.10 for "1.1" where a text is.
    """
    entries = (values.kwargs or {}) if isinstance(values, ArgsKwargs) else values
    for key, value in entries.items() if isinstance(entries, dict) else ():
        kind = _types(section).get(key, Any)
        if _section(kind) is None and any(isinstance(item, bool) for item in _items(value)) and not _takes(bool, kind):
            raise PydanticCustomError(REFUSED, "true and false are not numbers", {"key": key})
        if isinstance(value, float) and _takes(str, kind) and not _takes(float, kind):
            raise PydanticCustomError(REFUSED, "a text that looks like a number needs quotes", {"key": key})
    return values


@lru_cache
def _types(section: Any) -> dict[str, Any]:
    return get_type_hints(section)


def _items(value: Any) -> Iterator[Any]:
    """The value, or those in lists and mappings."""
    if isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _items(item)
    else:
        yield value


def _takes(plain: type, kind: Any) -> bool:
    """Whether a value of the plain type fits a field of this type, or an entry of its list."""
    return kind in (plain, Any) or any(_takes(plain, part) for part in get_args(kind))
