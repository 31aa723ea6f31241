"""What is wrong with a config is said in YAML's words, and with the keys that a user can set."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from whitebench.config import strict, validated
from whitebench.errors import UserError


@dataclass(frozen=True)
class Part:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    hours: float | None = None
    gpus: int = 0


@strict
class Section:
    names: tuple[str, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    values: list[int] = field(default_factory=list)
    options: dict[str, int] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    part: Part = field(default_factory=Part)
    on: bool = False
    count: int = 1
    rate: float = 0.1
    title: str = ""


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"names": "abc"}, "names: should be a list, as in [a, b], not 'abc'"),
        ({"values": 3}, "values: should be a list, as in [a, b], not 3"),
        ({"values": {"a": 1}}, "values: should be a list, as in [a, b], not {'a': 1}"),
        ({"values": ["x"]}, "values.0: should be a whole number, not 'x'"),
        ({"pair": [1]}, "pair.1: is needed"),
        ({"options": [1]}, "options: should be a section of keys and values, not [1]"),
        ({"options": None}, "options: should be a section of keys and values, not null"),
        ({"part": "x"}, "part: should be a section of keys and values, not 'x'"),
        ({"parts": {"knn": 3}}, "parts.knn: should be a section of keys and values, not 3"),
        ({"on": "perhaps"}, "on: should be true or false, not 'perhaps'"),
        ({"on": [1]}, "on: should be true or false, not [1]"),
        ({"count": 1.5}, "count: should be a whole number, not 1.5"),
        ({"count": "many"}, "count: should be a whole number, not 'many'"),
        ({"count": None}, "count: should be a whole number, not null"),
        ({"rate": "fast"}, "rate: should be a number, not 'fast'"),
        ({"title": [1]}, "title: should be a text, not [1]"),
        ({"part": {"hour": 1}}, "part.hour: unknown key; did you mean 'hours'?"),
        ({"part": {"zzz": 1}}, "part.zzz: unknown key; valid: gpus, hours"),
        ({"parts": {"knn": {"zzz": 1}}}, "parts.knn.zzz: unknown key; valid: gpus, hours"),
    ],
)
def test_faults_are_in_the_words_of_yaml(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(Section, raw, where="x.yaml")
    assert str(caught.value) == f"x.yaml: {message}"
