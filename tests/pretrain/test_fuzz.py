# ruff: noqa: PT017 (an answer is as good as an error here)
"""Whatever a recipe, an override or a checkpoint holds: an answer or one line, no traceback, nothing written."""

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.checkpoint import read_backbone
from pretrain.recipe import Recipe, load, recipe_names
from pretrain.recipe_files import RECIPES
from whitebench.config import parse_overrides
from whitebench.errors import UserError, describe
from whitebench.yaml import parse_yaml

QUICK, LONG = 150, 10_000
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


def examples(count: int) -> Any:
    return settings(max_examples=count, deadline=None, suppress_health_check=SUPPRESSED)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 1e308, -0.0, 1e-320]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["1:30", "on", "1e3", "012", "~", "../x", "a/b", "\x00", "\ud800", "x" * 5000, "nan", "inf", "auto"]
    ),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3)), max_size=5),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


def paths(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every entry of nested mappings and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, value in items for path in [(*prefix, key), *paths(value, (*prefix, key))]]


CONTENTS = {name: RECIPES.read(name) for name in recipe_names()}


@st.composite
def mutated_recipes(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe of the suite in which some entries have other values, are gone, or have others next to them."""
    content = copy.deepcopy(CONTENTS[draw(st.sampled_from(sorted(CONTENTS)))])
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(paths(content) or [("x",)]))
        holder: Any = content
        for key in parents:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "replace":
            holder[last] = draw(VALUES)
        elif change == "remove" and isinstance(holder, dict):
            holder.pop(last, None)
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = draw(VALUES)
    return content


def _check_recipe(content: dict[str, Any], folder: Path) -> None:
    path = folder / "mine.yaml"
    try:
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", errors="replace")
    except yaml.YAMLError:  # PyYAML itself cannot write it
        return
    try:
        recipe = load(str(path))
    except (UserError, OSError) as error:  # OSError: a name that is too long for the file system
        message = describe(error) or ""
        assert message
        assert "\n" not in message
        assert len(message) < 2000
        return
    assert isinstance(recipe, Recipe)
    assert json.dumps(recipe.identity(), allow_nan=False)
    assert os.sep not in recipe.label


def _check_overrides(texts: list[str]) -> None:
    try:
        recipe = load("sample/pcl", parse_overrides(texts))
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert json.dumps(recipe.identity(), allow_nan=False)


def _check_yaml(text: str) -> None:
    try:
        value = parse_yaml(text, "x.yaml")
    except UserError as error:
        assert "\n" not in str(error)
        return
    json.dumps(value, allow_nan=False, default=str, skipkeys=True)


KEYS = st.sampled_from(
    [".".join(map(str, path)) for path in paths(CONTENTS["sample/pcl"])] + ["seed", "batch", "threads"]
)
OVERRIDES = st.lists(
    st.one_of(
        st.builds("{}={}".format, KEYS, VALUES),
        st.builds("{}={}".format, KEYS, st.text(max_size=10)),
        st.text(max_size=20),
    ),
    max_size=3,
)
TEXTS = st.one_of(st.text(max_size=60), st.text(alphabet="[]{}:,-&*!?|>'\"%@`#.<= \n\tab01e~", max_size=40))


@given(mutated_recipes())
@examples(QUICK)
def test_a_mutated_recipe_loads_or_is_refused_in_one_line(tmp_path: Path, content: dict[str, Any]) -> None:
    _check_recipe(content, tmp_path)


@given(OVERRIDES)
@examples(QUICK)
def test_overrides_are_taken_or_refused_in_one_line(texts: list[str]) -> None:
    _check_overrides(texts)


@given(TEXTS)
@examples(2 * QUICK)
def test_any_text_is_yaml_or_refused_in_one_line(text: str) -> None:
    _check_yaml(text)


@pytest.mark.long
@pytest.mark.timeout(7200)
@given(mutated_recipes())
@examples(LONG)
def test_mutated_recipes_at_length(tmp_path: Path, content: dict[str, Any]) -> None:
    _check_recipe(content, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(7200)
@given(OVERRIDES, TEXTS)
@examples(LONG)
def test_overrides_and_texts_at_length(texts: list[str], text: str) -> None:
    _check_overrides(texts)
    _check_yaml(text)


def _small_files() -> dict[str, bytes]:
    """Whole checkpoints of a few bytes, of every form, for damage."""
    import io

    from safetensors.torch import save

    content = {"state_dict": {"conv1.weight": torch.ones(2), "layer1.0.conv1.weight": torch.ones(2)}, "epoch": 3}
    files = {"safetensors": save(content["state_dict"], metadata={"whitebench": "{}"})}  # type: ignore[arg-type]
    for protocol in (2, 4):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            files[f"torch-{protocol}-{zipped}"] = buffer.getvalue()
        files[f"pickle-{protocol}"] = pickle.dumps({"model": {"x": 1.0}}, protocol=protocol)
    return files


FILES = _small_files()


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Bytes of a checkpoint, some of them changed, cut, repeated or inserted; or any bytes."""
    content = bytearray(FILES[draw(st.sampled_from(sorted(FILES)))])
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.integers(0, max(0, len(content) - 1)))
        change = draw(st.sampled_from(["byte", "cut", "insert", "repeat"]))
        if change == "byte" and content:
            content[position] = draw(st.integers(0, 255))
        elif change == "cut":
            del content[position:]
        elif change == "insert":
            content[position:position] = draw(st.binary(max_size=8))
        else:
            content[position:position] = content[position : position + draw(st.integers(0, 64))]
    return draw(st.one_of(st.just(bytes(content)), st.binary(max_size=64))) if not content else bytes(content)


def _check_file(content: bytes, folder: Path) -> None:
    path = folder / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:  # none of them holds a whole ResNet
        read_backbone(path)
    assert "\n" not in str(error.value)
    assert [file.name for file in folder.iterdir()] == ["x.pth"]


@given(damaged_files())
@examples(QUICK)
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, content: bytes) -> None:
    _check_file(content, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(7200)
@given(damaged_files())
@examples(LONG)
def test_damaged_checkpoints_at_length(tmp_path: Path, content: bytes) -> None:
    _check_file(content, tmp_path)
