"""Configs hash alike where they mean the same, and files are written whole or not at all."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whitebench.errors import describe
from whitebench.files import write_atomically
from whitebench.hashing import added, canonical, content_hash, file_hash, plain_hash, run_id

ROOT = Path(__file__).parents[2]
CONFIG = {"epochs": 2, "method": {"name": "intl"}}

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


# --- identity -------------------------------------------------------------------------------------------------------


@given(trees)
def test_a_hash_survives_being_written_and_read_again(tree: Any) -> None:
    plain = canonical(tree)
    assert (
        content_hash(tree) == content_hash(json.loads(json.dumps(plain))) == plain_hash(json.loads(json.dumps(plain)))
    )


@given(st.dictionaries(st.text(), trees, min_size=2))
def test_a_hash_does_not_depend_on_the_order_of_keys(tree: dict[str, Any]) -> None:
    assert content_hash(tree) == content_hash(dict(reversed(tree.items())))


@given(trees, trees)
def test_different_contents_have_different_hashes(a: Any, b: Any) -> None:
    same = json.dumps(canonical(a), sort_keys=True) == json.dumps(canonical(b), sort_keys=True)
    assert (content_hash(a) == content_hash(b)) == same


def test_values_that_mean_the_same_in_json_hash_alike() -> None:
    @dataclass
    class Section:
        sizes: tuple[int, ...]
        path: Path

    assert content_hash(Section((1, 2), Path("a/b"))) == content_hash({"sizes": [1, 2], "path": "a/b"})
    assert content_hash({"x": math.nan}) == content_hash({"x": None}) == content_hash({"x": math.inf})
    assert content_hash({1: 2}) == content_hash({"1": 2})


def test_numbers_that_are_written_differently_are_different_settings() -> None:
    """A config is text: whoever writes 1 or 1.0, 0.0 or -0.0 gets the hash of what is written."""
    assert len({content_hash(x) for x in (1, 1.0, True, 0, 0.0, -0.0, False, None, "1")}) == 9


def test_numpy_and_torch_scalars_are_plain_numbers_and_other_objects_are_refused() -> None:
    import numpy as np

    assert canonical({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True)}) == {"a": 0.5, "b": 3, "c": True}
    with pytest.raises(TypeError, match="cannot be stored in a record"):
        canonical({"x": object()})


def test_the_id_is_a_label_and_the_hash_of_the_config() -> None:
    assert run_id("intl-s0", CONFIG) == f"intl-s0-{content_hash(CONFIG)[:12]}"
    assert run_id("a", {"epochs": 1}) != run_id("a", {"epochs": 2})


def test_a_key_that_is_added_later_leaves_the_ids_of_older_runs_as_they_were() -> None:
    @dataclass
    class Older:
        width: int = 8

    @dataclass
    class Newer:
        width: int = 8
        norm: bool = added(True)

    assert content_hash(Newer()) == content_hash(Older())
    assert canonical(Newer(norm=False)) == {"width": 8, "norm": False}


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    script = """
        import os, sys
        from pathlib import Path
        from whitebench import files as content
        os.fsync = lambda number: os.kill(os.getpid(), 9)  # written, not yet renamed
        content.write_atomically(Path(sys.argv[1]), b"new" * 100_000)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir() if p.is_file()] == [("run.json", "old")]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "store" / "run.json", tmp_path / "runs" / "run.json"
    target.parent.mkdir()
    link.parent.mkdir()
    if exists:
        target.write_text("old")
    link.symlink_to(Path("../store/run.json"))
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]
    assert list(link.parent.iterdir()) == [link]


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_only_regular_files_are_replaced(tmp_path: Path, kind: str, linked: bool) -> None:
    path = tmp_path / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = Path("/dev/full")  # as root, a rename would replace it
    if linked:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    before, entries = path.stat(), sorted(tmp_path.iterdir())
    with pytest.raises(OSError) as refused:
        write_atomically(path, b"new")
    assert refused.value.errno == (errno.EISDIR if kind == "folder" else errno.ENXIO)
    reason = "is a folder, not a file" if kind == "folder" else "not a regular file"
    assert describe(refused.value) == f"{path}: {reason}"
    assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)
    assert sorted(tmp_path.iterdir()) == entries


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.symlink_to(path)
    with pytest.raises(OSError, match=r"run\.json") as refused:
        write_atomically(path, b"new")
    assert refused.value.errno == errno.ELOOP
    assert path.is_symlink()


def test_readers_and_other_writers_always_see_a_whole_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "table.csv", [letter.encode() * 50_000 for letter in "abcd"]
    write_atomically(path, contents[0])

    def write(content: bytes) -> None:
        for _ in range(20):
            write_atomically(path, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["table.csv"]


def test_file_hash_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
