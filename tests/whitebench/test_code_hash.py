"""The hash of a stage's code changes with what its numbers depend on, and with nothing else."""

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from whitebench import code_hash
from whitebench.code_hash import DISPLAY_ONLY, ROOT, STAGES, code_files

SHARED_LOSS = "pretrain/losses/whitening.py"


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Replaces text of a file in a copy of the suite, whose code is hashed from then on."""
    for package in ("pretrain", "transfer"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "recipes"))
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)

    def edit(name: str, old: str, new: str) -> None:
        text = (tmp_path / name).read_text()
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new, 1))

    return edit


Edit = Callable[[str, str, str], None]


def changed(before: dict[str, str], stage: str, method: str | None = None) -> list[str]:
    after = code_files(stage, method)
    return [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]


def test_a_shared_loss_counts_for_the_methods_that_import_it_and_for_no_others(edit: Edit) -> None:
    windows = "pretrain/losses/windows.py"
    before = {method: code_files("pretrain", method) for method in ("cwrgp", "wmse", "simclr")}
    edit(windows, "import torch", "EXTRA = 1\nimport torch")
    for method, names in (("cwrgp", [windows]), ("wmse", [windows]), ("simclr", [])):
        assert changed(before[method], "pretrain", method) == names


def test_every_stage_depends_on_what_it_computes_with() -> None:
    networks, crops = "pretrain/networks.py", "pretrain/data/views/crop.py"
    expected = {
        "pretrain": {"pretrain/train.py", networks, crops, "pretrain/optim.py", "pretrain/methods/simclr.py"},
        "linear": {"pretrain/evaluate/linear.py", "pretrain/evaluate/features.py", "pretrain/checkpoint.py", crops},
        "knn": {"pretrain/evaluate/knn.py", "pretrain/evaluate/features.py", "pretrain/encoders.py"},
        "semi": {"pretrain/evaluate/semi.py", "pretrain/evaluate/finetune.py", "pretrain/evaluate/subset.py", crops},
        "finetune": {
            "pretrain/evaluate/finetune.py",
            "pretrain/evaluate/mixing.py",
            "pretrain/evaluate/layer_decay.py",
        },
        "fewshot": {"pretrain/evaluate/fewshot.py", "pretrain/evaluate/features.py"},
        "voc07": {"pretrain/evaluate/voc07.py", "pretrain/evaluate/image_files.py"},
        "retrieval": {"pretrain/evaluate/retrieval.py", "pretrain/evaluate/whole_images.py"},
        "robust": {"pretrain/evaluate/robust.py", "pretrain/evaluate/linear.py"},
        "convert": {"transfer/convert.py", "transfer/feature_maps.py", "pretrain/checkpoint.py"},
        "detect": {"transfer/detect.py", "transfer/trainer.py", "transfer/evaluation.py", "transfer/convert.py"},
    }
    assert expected.keys() == STAGES.keys()
    for stage, names in expected.items():
        assert names <= code_files(stage, "simclr" if stage == "pretrain" else None).keys()
    assert "pretrain/methods/intl.py" not in code_files("pretrain", "simclr")
    others = {"linear", "semi", "finetune", "fewshot", "voc07", "retrieval", "robust", "grid"}
    assert not {f"pretrain/evaluate/{name}.py" for name in others} & code_files("knn").keys()
    assert "transfer/detect.py" not in code_files("convert")


def test_everything_a_stage_imports_when_it_runs_is_hashed() -> None:
    """Against grimp's graph: all of `pretrain` and `transfer` that the training loop reaches."""
    import grimp
    import networkx

    graph = grimp.build_graph("pretrain", "transfer", "whitebench", cache_dir=None, exclude_type_checking_imports=True)
    edges = [(name, target) for name in graph.modules for target in graph.find_modules_directly_imported_by(name)]
    display = {name.removesuffix(".py").replace("/", ".") for name in DISPLAY_ONLY}
    numbers = networkx.DiGraph([(name, target) for name, target in edges if not {name, target} & display])
    reached = networkx.descendants(numbers, "pretrain.train") | {"pretrain.train"}
    expected = {name for name in reached if name.startswith(("pretrain.", "transfer."))}
    assert len(expected) > 30
    hashed = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in code_files("pretrain")}
    assert expected <= hashed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import torch", "# a comment\nimport torch"),
        ("import torch", "import   torch"),
        ('"""', '"""Other words. ', ),
        ("raise ValueError(", 'raise ValueError("other words", '),
    ],
)  # fmt: skip
def test_comments_docstrings_layout_and_messages_change_no_hash(edit: Edit, old: str, new: str) -> None:
    if old.startswith("raise") and old not in (ROOT / SHARED_LOSS).read_text():
        edit(SHARED_LOSS, "import torch", "import torch\n\n\ndef fail():\n    raise ValueError('words')")
        old, new = "ValueError('words')", "ValueError('other words')"
    before = code_files("pretrain", "cwrgp")
    edit(SHARED_LOSS, old, new)
    assert changed(before, "pretrain", "cwrgp") == []


@pytest.mark.parametrize("statement", ["EXTRA = 1", "'text'.strip()", "raise ValueError", "import math as torch_math"])
def test_a_statement_changes_the_hash(edit: Edit, statement: str) -> None:
    before = code_files("pretrain", "cwrgp")
    edit(SHARED_LOSS, "import torch", f"{statement}\nimport torch")
    assert changed(before, "pretrain", "cwrgp") == [SHARED_LOSS]


def test_the_kind_of_an_error_changes_the_hash() -> None:
    """It may be caught, so it may change a result; its words cannot."""
    one, words, other = ("raise ValueError('a')", "raise ValueError('b')", "raise KeyError('a')")
    hashes = [code_hash._text(ast.parse(source)) for source in (one, words, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_new_file_counts_as_soon_as_it_is_imported(edit: Edit, tmp_path: Path) -> None:
    before = code_files("pretrain", "cwrgp")
    (tmp_path / "pretrain" / "losses" / "new.py").write_text("X = 1\n")
    assert changed(before, "pretrain", "cwrgp") == []
    edit(SHARED_LOSS, "import torch", "from pretrain.losses import new\nimport torch")
    assert changed(before, "pretrain", "cwrgp") == ["pretrain/losses/new.py", SHARED_LOSS]


def test_imports_for_type_checkers_do_not_count_and_relative_ones_do(edit: Edit, tmp_path: Path) -> None:
    for name in ("only_typed", "relative"):
        (tmp_path / "pretrain" / "losses" / f"{name}.py").write_text("X = 1\n")
    typed = "if TYPE_CHECKING:\n    from pretrain.losses import only_typed\n"
    edit(SHARED_LOSS, "import torch", f"{typed}from .relative import X\nimport torch")
    names = code_files("pretrain", "cwrgp")
    assert "pretrain/losses/relative.py" in names
    assert "pretrain/losses/only_typed.py" not in names


def test_a_method_outside_of_the_suite_counts_with_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.py"
    file.write_text("from pretrain.losses import windows\n")
    monkeypatch.setenv("WHITEBENCH_METHODS", str(tmp_path))
    before = code_files("pretrain", "own")
    assert {"$WHITEBENCH_METHODS/own.py", "pretrain/losses/windows.py", "pretrain/train.py"} <= before.keys()
    file.write_text("from pretrain.losses import windows\nX = 1\n")
    assert changed(before, "pretrain", "own") == ["$WHITEBENCH_METHODS/own.py"]
    monkeypatch.delenv("WHITEBENCH_METHODS")
    assert "$WHITEBENCH_METHODS/own.py" not in code_files("pretrain", "own")


def test_stages_of_others_and_unknown_methods_have_no_files_of_ours() -> None:
    assert code_files("own-stage") == {}
    assert code_files("pretrain", "no-such-method") == code_files("pretrain")
    assert code_files("pretrain", "../train") == code_files("pretrain")


def test_named_files_exist() -> None:
    names = [*DISPLAY_ONLY, *(stage.entry for stage in STAGES.values())]
    assert all((ROOT / name).is_file() for name in [*names, *(name for s in STAGES.values() for name in s.without)])
