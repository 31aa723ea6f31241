"""Reading the YAML in which recipes, protocols, sweeps, presets and overrides are written.

Of YAML 1.1, which PyYAML implements, the values that surprise people are left out, as in YAML 1.2: `1:30` is not 90,
`012` not 10, `on`, `off`, `yes` and `no` are not booleans, `2024-01-02` is not a date; `1e3` is a number. A key that
is listed twice in one mapping is an error, and so are NaN and infinities.
"""

import math
import pickle
import re
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from whitebench.errors import UserError, printable
from whitebench.files import read_input

NUMBER = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
PLAIN_VALUES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),  # not 012: an octal number, or part of a name?
    ("float", rf"(?![-+]?0[0-9]){NUMBER}", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
)
"""Type, what it looks like, and the characters that it may begin with, of values without quotes; the rest is text."""
LONGEST_NUMBER = 400
DEEPEST = 100


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, parsed once while the file stays as it is: a sweep reads it once per cell.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it cannot be read or is not YAML, in one line.
    """
    try:
        state = path.stat()
        return pickle.loads(_parsed(path, state.st_mtime_ns, state.st_size))
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder, not a YAML file") from error


def parse_yaml(text: str, where: object) -> Any:
    """The value that a YAML text holds.

    Raises:
        UserError: it is not YAML, it lists a key twice, or a number in it is not finite; `where` begins the message.
    """
    import yaml

    try:
        _check_depth(text)
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, KeyError) as error:  # KeyError: a text tagged as !!bool
        text = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise UserError(f"{where}: not readable as YAML: {printable(text)}") from error
    except RecursionError as error:
        raise UserError(f"{where}: not readable as YAML: nested too deeply") from error


def _check_depth(text: str) -> None:
    """libyaml builds nested values by recursion in C, which at some 100,000 levels ends the process."""
    import yaml

    if sum(map(text.count, "[{-?:")) <= DEEPEST:
        return
    depth = 0
    for event in yaml.parse(text, Loader=_loader()):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecursionError


@lru_cache
def _parsed(path: Path, modified: int, size: int) -> bytes:
    """The content, pickled: a fresh copy is made from that many times faster than from the content itself."""
    try:
        text = read_input(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not readable as YAML: not a text in UTF-8 ({error})") from error
    return pickle.dumps(parse_yaml(text, where=path))


@cache
def _loader() -> type:
    """PyYAML's safe loader (by libyaml where there is one, which is 10 times faster) with the rules of this file."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    prefix = "tag:yaml.org,2002:"
    plain = (None, *(prefix + name for name in ("null", "bool", "str", "seq")))

    class Loader(base):
        yaml_implicit_resolvers: dict[str, Any] = {}
        yaml_constructors = {tag: base.yaml_constructors[tag] for tag in plain}

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            if node in self.recursive_objects:
                raise _fault(node, "an alias refers to a value that contains it")
            return super().construct_object(node, deep=True)

    for name, pattern, first in PLAIN_VALUES:
        Loader.add_implicit_resolver(prefix + name, re.compile(rf"^(?:{pattern})$"), first)
    constructors: dict[str, Callable[[Any, Any], Any]] = {"map": _mapping, "int": _whole, "float": _finite}
    for name, construct in constructors.items():
        Loader.add_constructor(prefix + name, construct)
    return Loader


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value if not key.tag.endswith(":merge")]
    duplicate = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
    if duplicate is not None:
        raise _fault(node, f"the key '{duplicate}' is listed twice")
    loader.flatten_mapping(node)
    mapping: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return mapping


def _whole(loader: Any, node: Any) -> int:
    if len(node.value) > LONGEST_NUMBER:
        raise _fault(node, "a number of too many digits")
    try:
        return int(node.value)
    except ValueError as error:  # tagged as a number, but not one
        raise _fault(node, f"'{node.value}' is not a whole number") from error


def _finite(loader: Any, node: Any) -> float:
    try:
        value = float(node.value.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _fault(node, f"'{node.value}' is not a finite number")
    return value


def _fault(node: Any, problem: str) -> Exception:
    import yaml

    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
