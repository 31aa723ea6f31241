"""The cache of compiled kernels, shared by processes that start at the same time."""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import Timeout
from numba import types
from numba.core.caching import FunctionCache, IndexDataCacheFile

from pretrain.data.views import jit


def total(values: Any) -> Any:
    result = values[0]
    for value in values[1:]:
        result += value
    return result


SIGNATURES = [(types.Array(types.int64, 1, "C"),), (types.Array(types.float64, 1, "C"),)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)
    return tmp_path


def compiled_without_saving(signature: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    function = jit.kernel(total)
    with monkeypatch.context() as patch:
        patch.setattr(function._cache, "save_overload", lambda sig, data: None)
        function.compile(signature)
    return function


def write_at_once(monkeypatch: pytest.MonkeyPatch, patience_s: float) -> None:
    """Two writers: both read the index before either writes it, and the first to write it is the last with its data.

    Neither waits longer than `patience_s` for the other, who may be waiting for the lock.
    """
    functions = [compiled_without_saving(signature, monkeypatch) for signature in SIGNATURES]
    both_have_read, other_is_done, one_at_a_time = threading.Barrier(2), threading.Event(), threading.Lock()
    indices_written: list[Any] = []
    load_index, save_index = IndexDataCacheFile._load_index, IndexDataCacheFile._save_index
    save_data = IndexDataCacheFile._save_data

    def load_index_together(self: Any) -> Any:
        index = load_index(self)
        with suppress(threading.BrokenBarrierError):
            both_have_read.wait(timeout=patience_s)
        return index

    def save_index_noting_order(self: Any, overloads: Any) -> None:
        with one_at_a_time:
            indices_written.append(self)
            save_index(self, overloads)

    def save_data_in_reverse_order(self: Any, name: str, data: Any) -> None:
        if self is indices_written[0]:
            other_is_done.wait(timeout=patience_s)
        save_data(self, name, data)
        other_is_done.set()

    with monkeypatch.context() as patch:
        patch.setattr(IndexDataCacheFile, "_load_index", load_index_together)
        patch.setattr(IndexDataCacheFile, "_save_index", save_index_noting_order)
        patch.setattr(IndexDataCacheFile, "_save_data", save_data_in_reverse_order)
        writers = [
            threading.Thread(target=function._cache.save_overload, args=(signature, function.overloads[signature]))
            for function, signature in zip(functions, SIGNATURES, strict=True)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()


def test_writers_at_once_do_not_take_the_same_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_at_once(monkeypatch, patience_s=1.0)
    fresh = jit.kernel(total)
    assert fresh(np.array([1, 2])) == 3
    assert fresh(np.array([0.5, 0.25])) == 0.75
    assert [list(fresh.stats.cache_hits), list(fresh.stats.cache_misses)] == [SIGNATURES, []]


def test_numbas_own_cache_mixes_them_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the test above can fail."""
    monkeypatch.setattr(jit._SharedCache, "save_overload", FunctionCache.save_overload)
    write_at_once(monkeypatch, patience_s=60.0)
    fresh = jit.kernel(total)
    for signature in SIGNATURES:
        fresh.compile(signature)
    assert len(fresh.overloads) == 1


@pytest.mark.parametrize(
    ("kind", "method", "error"),
    [
        (IndexDataCacheFile, "save", OSError(28, "No space left on device")),
        (jit.FileLock, "acquire", NotImplementedError("FileSystem does not appear to support flock")),
        (jit.FileLock, "acquire", Timeout("lock")),
    ],
)
def test_a_cache_that_cannot_be_written_costs_only_the_compilation(
    kind: type, method: str, error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = []

    def fail(*arguments: Any, **options: Any) -> None:
        failures.append(error)
        raise error

    monkeypatch.setattr(kind, method, fail)
    assert jit.kernel(total)(np.array([1, 2])) == 3
    assert failures == [error]
    assert not list(folder.rglob("*.nbc"))
