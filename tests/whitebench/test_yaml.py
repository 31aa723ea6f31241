"""YAML is read without the surprises of YAML 1.1, and every fault is one line."""

import os
from pathlib import Path
from typing import Any

import pytest

from whitebench.errors import UserError
from whitebench.yaml import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("01:00:00", "01:00:00"),
        ("012", "012"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("on", "on"),
        ("No", "No"),
        ("y", "y"),
        ("2024-01-02", "2024-01-02"),
        ("1e3", 1000.0),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("-7", -7),
        ("true", True),
        ("~", None),
        ("", None),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
        ("a: &x {b: 1}\nc: {<<: *x, d: 3}", {"a": {"b": 1}, "c": {"b": 1, "d": 3}}),
    ],
)
def test_plain_values_are_what_they_look_like(text: str, value: Any) -> None:
    parsed = parse_yaml(text, "x")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' is listed twice"),
        ("{s: {a: 1, a: 1}}", "the key 'a' is listed twice"),
        ("[.nan]", "not a finite number"),
        ("-.INF", "not a finite number"),
        ("1e999", "not a finite number"),
        ("9" * 5000, "too many digits"),
        ("&a [*a]", "an alias refers to a value that contains it"),
        ("&a {b: *a}", "an alias refers to a value that contains it"),
        ("[" * 200_000 + "]" * 200_000, "nested too deeply"),  # ends a process that asks libyaml for it
        ("- " * 5_000, "nested too deeply"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("!!timestamp x", "could not determine a constructor"),
        ("!!int abc", "not a whole number"),
        ("!!bool abc", "not readable as YAML"),
        ("a: [1", "not readable as YAML"),
        ("\x00", "control characters"),
    ],
)
def test_a_fault_is_one_line_that_names_the_file(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_yaml(text, "some.yaml")
    assert str(caught.value).startswith("some.yaml: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "marked.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\n")  # as Notepad saves it
    with pytest.raises(UserError, match=r"binary.yaml: not readable as YAML: not a text in UTF-8"):
        read_yaml(tmp_path / "binary.yaml")
    with pytest.raises(UserError, match=r"folder.yaml: a folder, not a YAML file"):
        read_yaml(tmp_path / "folder.yaml")
    assert read_yaml(tmp_path / "marked.yaml") == {"a": 1}


@pytest.mark.timeout(60)
def test_a_recipe_that_has_no_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    assert read_yaml(tmp_path / "fifo.yaml") is None  # empty: nobody writes to it
    with pytest.raises(OSError, match="not a regular file"):
        read_yaml(Path("/dev/zero"))
