"""Any folder, list of classes or file of labels: a sound dataset, or one line and nothing written."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.data.betons.write import WRITING, verify_dataset, write_dataset
from pretrain.data.sources.class_lists import read_class_list
from tests.support.photos import jpeg, photo
from whitebench.errors import UserError

IMAGE = jpeg(photo(1, 9, 12))
T = TypeVar("T")
QUICK, LONG = 150, 10_000
COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}

FOLDERS = st.sampled_from(
    [
        *("train", "val", "test", "Train", "validation", "unlabeled", "images", "ILSVRC", "Data", "@eaDir", "__MACOSX"),
        *("a", "b", "c", "n01440764", "golden retriever", "a#b", "-1", "no\nline", ".hidden", "é"),
    ]
)
FILES = st.sampled_from(
    [
        *("1.jpg", "2.JPEG", "3.png", "none", "x.txt", "x.tar", "y.tar.gz", "z.parquet", "._1.jpg", "data_batch_1"),
        *("train_X.bin", "val_annotations.txt", "LOC_val_solution.csv", "meta.mat", "train.bin", "0", '"q".jpg'),
    ]
)
CONTENTS = st.one_of(
    st.sampled_from([IMAGE] * 6 + [b"", b"x", IMAGE[:60], b"PAR1", b"val_1.jpg\ta\n", b"1 a\n2 b\n", b"1\n2\n"]),
    st.binary(max_size=60),
)
PATHS = st.tuples(st.lists(FOLDERS, max_size=4), FILES).map(lambda parts: [*parts[0], parts[1]])
TREES = st.lists(st.tuples(PATHS, CONTENTS), max_size=14)
LINKS = st.lists(st.tuples(st.lists(FOLDERS, max_size=2), st.lists(FOLDERS, max_size=2)), max_size=2)
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(["1.jpg", "2", "a", "b", ",", "\t", " ", "\n", "\r", '"', "#", "é", "\ufeff", "7"])).map(
        "".join
    ),
)


@contextmanager
def workplace() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build(source: Path, tree: list[tuple[list[str], bytes]], links: list[tuple[list[str], list[str]]]) -> None:
    source.mkdir()
    for parts, content in tree:
        path = source.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:  # a file is where another's folder would be
            continue
    for number, (place, target) in enumerate(links):
        path = source.joinpath(*place) / f"link{number}"
        if path.parent.is_dir():
            os.symlink(source.joinpath(*target), path)


def outcome(work: Callable[[], T]) -> tuple[T | None, str]:
    """What `work` returns, or its message for the user."""
    try:
        return work(), ""
    except UserError as error:
        return None, str(error)


def written_or_refused(source: Path, data: Path, **options: Any) -> None:
    manifest, message = outcome(lambda: write_dataset(source, data / "set", **options))
    if manifest is None:
        assert message.isprintable()
        assert not data.exists()
        return
    assert verify_dataset(data / "set").content_hash == manifest.content_hash
    assert not (data / "set" / WRITING).exists()
    for name, split in manifest.splits.items():
        assert len(manifest.file_names(name)) == split.count > 0


def check_tree(tree: Any, links: Any, skip_bad: bool) -> None:
    with workplace() as folder:
        build(folder / "source", tree, links)
        written_or_refused(folder / "source", folder / "data", skip_bad=skip_bad)


def check_labels(text: str, encoding: str) -> None:
    """Labels of val, and a list of classes, from the same text."""
    with workplace() as folder:
        named = [
            *((["train", name, "x.jpg"], IMAGE) for name in "ab"),
            (["val", "1.jpg"], IMAGE),
            (["val", "2.jpg"], IMAGE),
        ]
        build(folder / "source", named, [])
        listed = folder / "list.txt"
        listed.write_bytes(text.encode(encoding, errors="replace"))
        written_or_refused(folder / "source", folder / "data", labels={"val": listed})
        shutil.rmtree(folder / "data", ignore_errors=True)
        lines, message = outcome(lambda: read_class_list(listed))
        assert message.isprintable()
        if lines is None:
            return
        written_or_refused(folder / "source" / "train", folder / "data", classes=lines)


@given(tree=TREES, links=LINKS, skip_bad=st.booleans())
@settings(max_examples=QUICK, **COMMON)
def test_any_folder_is_written_or_refused(tree: Any, links: Any, skip_bad: bool) -> None:
    check_tree(tree, links, skip_bad)


@given(text=TEXTS, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
@settings(max_examples=QUICK, **COMMON)
def test_any_list_is_read_or_refused(text: str, encoding: str) -> None:
    check_labels(text, encoding)


@pytest.mark.long
@pytest.mark.timeout(7200)
@given(tree=TREES, links=LINKS, skip_bad=st.booleans())
@settings(max_examples=LONG, **COMMON)
def test_ten_thousand_folders_are_written_or_refused(tree: Any, links: Any, skip_bad: bool) -> None:
    check_tree(tree, links, skip_bad)


@pytest.mark.long
@pytest.mark.timeout(7200)
@given(text=TEXTS, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
@settings(max_examples=LONG, **COMMON)
def test_ten_thousand_lists_are_read_or_refused(text: str, encoding: str) -> None:
    check_labels(text, encoding)
