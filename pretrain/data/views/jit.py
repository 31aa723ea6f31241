"""How kernels are compiled: once per host and source, cached across processes, without Python's lock.

Floating-point arithmetic is left strict (no `fastmath`), so that pixels do not depend on the host's vector width.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock
from numba.core.caching import FunctionCache

DATA = Path(__file__).parents[1]
LOCK_TIMEOUT_S = 60.0
_njit: Any = numba.njit


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles `function` on its first call, or loads it from the cache."""
    compiled = _njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)(function)
    with _numba_setting("CACHE_DIR", str(cache_folder())):
        compiled._cache = _SharedCache(function)  # as `cache=True` does with numba's own
    return compiled


class _SharedCache(FunctionCache):
    """Numba's cache on disk, written by one process at a time.

    Of two that write at once, both take the next free number for their file: the index then names code for other
    types than it says.
    """

    def save_overload(self, sig: Any, data: Any) -> None:
        folder = Path(self.cache_path)
        # Where nothing can be written or locked (a full disk, a file system without locks), the next process compiles.
        with suppress(OSError, NotImplementedError):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock", timeout=LOCK_TIMEOUT_S):
                super().save_overload(sig, data)


def inner(function: Callable[..., Any]) -> Any:
    """As `kernel`, for a function that only kernels call: compiled into each of them, which compiles faster."""
    return _njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


@cache
def cache_folder() -> Path:
    """Next to the sources if they are writable, else among temporary files.

    Named by the sources of all kernels: numba looks only at a kernel's own file, so that a kernel would survive a
    change of one that it calls.
    """
    digest = hashlib.sha256()
    for source in sorted(DATA.rglob("*.py")):
        content = source.read_bytes()
        if b"numba" in content or b"pretrain.data.views.jit" in content:
            digest.update(content)
    name = f"kernels-{digest.hexdigest()[:16]}"
    cache = Path(__file__).parent / "__pycache__"
    try:
        cache.mkdir(exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    return cache / name if writable else Path(tempfile.gettempdir()) / f"whitebench-{os.getuid()}" / name


@contextmanager
def without_compilation() -> Iterator[None]:
    """Numba without its compiler, for code that would compile while it is imported."""
    with _numba_setting("DISABLE_JIT", True):
        yield


@contextmanager
def _numba_setting(name: str, value: Any) -> Iterator[None]:
    before = getattr(numba.config, name)
    setattr(numba.config, name, value)
    try:
        yield
    finally:
        setattr(numba.config, name, before)
