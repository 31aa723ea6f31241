"""How kernels are compiled: once per host and source, cached across processes, without Python's lock.

Floating-point arithmetic is left strict (no `fastmath`), so that pixels do not depend on the host's vector width.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba

DATA = Path(__file__).parents[1]
_njit: Any = numba.njit


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles `function` on its first call, or loads it from the cache."""
    with _numba_setting("CACHE_DIR", str(cache_folder())):
        return _njit(cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True)(function)


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
