"""Unpickling without running code: checkpoints by torch.save, and pickles of numpy arrays as Detectron2 reads them.

Only names on a list are looked up: what rebuilds tensors and arrays, and plain values that training scripts save with
the weights (argparse.Namespace, numpy scalars, paths, ...). None of them does more than to hold its arguments.
"""

import argparse
import collections
import datetime
import importlib
import inspect
import pathlib
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NEWEST_OF_TORCH = 2
"""The pickle protocol of torch.save, and the only one that torch's own safe unpickler reads."""
TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""The number with which torch.save's old form begins, as a pickle holds it."""
VALUES: tuple[Any, ...] = (
    argparse.Namespace, SimpleNamespace, collections.OrderedDict, collections.defaultdict, collections.Counter,
    collections.deque, datetime.date, datetime.datetime, datetime.timedelta, datetime.timezone,
    pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath,
    set, frozenset, list, dict, tuple, int, float, str, bool, complex, slice,
)  # fmt: skip
"""Without those that make much out of little (range, bytes): a file of some bytes should not fill the memory."""
FOREIGN = (
    ("yacs.config", "CfgNode"),
    ("fvcore.common.config", "CfgNode"),
    ("detectron2.config.config", "CfgNode"),
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.base", "ContainerMetadata"),
    ("omegaconf.base", "Metadata"),
    ("omegaconf.nodes", "AnyNode"),
    ("omegaconf.nodes", "StringNode"),
    ("omegaconf.nodes", "IntegerNode"),
    ("omegaconf.nodes", "FloatNode"),
    ("omegaconf.nodes", "BooleanNode"),
    ("typing", "Any"),
    ("easydict", "EasyDict"),
    ("addict.addict", "Dict"),
)
"""Configuration types of packages that may be installed."""
NUMPY = ("ndarray", "dtype")
NUMPY_CORE = (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
TORCH = (
    ("torch._utils", ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state",
                      "_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage")),
    ("torch", ("Size", "device", "Tensor")),
    ("torch.nn.parameter", ("Parameter", "Buffer")),
)  # fmt: skip


class RefusedError(Exception):
    """A pickle asks for a name that is not on the list."""


_InPython: Any = vars(pickle)["_Unpickler"]
"""Of the one in C, BUILD cannot be refused."""


class Unpickler(_InPython):
    """Of any protocol, by the list of this file; torch.load takes this module as its `pickle_module`."""

    dispatch = dict(_InPython.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        value = allowed().get((module, name))
        if value is None:
            raise RefusedError(f"{module}.{name}")
        return value

    def load_build(self) -> None:
        """Sets the state of an object; never that of a class or function, which all of this process shares."""
        target = self.stack[-2]
        if isinstance(target, type) or inspect.isroutine(target):
            raise RefusedError(f"a change of {target.__qualname__}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def load(file: Any, **_: Any) -> Any:
    """As `pickle.load`, but by `Unpickler`; see `torch.load`."""
    return Unpickler(file).load()


def read_torch(path: Path, protocol: int, mmap: bool) -> Any:
    """What torch.save wrote, in its zip form or its old one.

    Raises:
        RefusedError: it asks for more than values. Any other exception: it is damaged.
    """
    import warnings

    import torch

    with warnings.catch_warnings(action="ignore"):  # of the pickle's protocol
        if protocol <= NEWEST_OF_TORCH:
            with suppress(pickle.UnpicklingError), torch.serialization.safe_globals(harmless()):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        this: Any = importlib.import_module(__name__)  # torch's own does not fill containers beyond plain dicts
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=this, mmap=mmap)


def read_plain(path: Path) -> Any:
    """What pickle.dump wrote. Raises as `read_torch`."""
    with open(path, "rb") as file:
        return load(file)


def protocol_of_zip(path: Path) -> int:
    """The pickle protocol of the file that torch.save's zip form holds; 2 if that cannot be determined."""
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        head = archive.open(name).read(2) if name else b""
    return head[1] if len(head) == 2 and head[0] == 0x80 else NEWEST_OF_TORCH


@cache
def harmless() -> list[Any]:
    """Classes and functions beyond torch's own list that rebuild values; for `torch.serialization.safe_globals`."""
    return [*VALUES, *(value for _, value in _numpy()), *(value for _, value in _foreign())]


@cache
def allowed() -> dict[tuple[str, str], Any]:
    """By module and name as pickles write them."""
    import torch

    names: dict[tuple[str, str], Any] = {(value.__module__, value.__qualname__): value for value in VALUES}
    names |= dict(_numpy()) | dict(_foreign())
    names |= {("__builtin__", value.__name__): value for value in VALUES if value.__module__ == "builtins"}
    names[("_codecs", "encode")] = _latin1
    for module, members in TORCH:
        holder = importlib.import_module(module)
        names |= {(module, name): getattr(holder, name) for name in members if hasattr(holder, name)}
    storages = (name for name in dir(torch) if name.endswith("Storage"))
    names |= {("torch", name): getattr(torch, name) for name in storages}
    names |= {(module, "UntypedStorage"): torch.UntypedStorage for module in ("torch", "torch.storage")}
    dtypes = (name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))
    return names | {("torch", name): getattr(torch, name) for name in dtypes}


def _numpy() -> Iterator[tuple[tuple[str, str], Any]]:
    import numpy as np

    for name in NUMPY:
        yield ("numpy", name), getattr(np, name)
    for part, name in NUMPY_CORE:
        value = getattr(importlib.import_module(f"numpy._core.{part}"), name)
        for core in ("numpy._core", "numpy.core"):
            yield (f"{core}.{part}", name), value
    for kind in {type(np.dtype(code)) for code in "?bhilqBHILQefdFDSUmM"}:  # classes of dtypes, in newer pickles
        yield ("numpy.dtypes", kind.__name__), kind


def _foreign() -> Iterator[tuple[tuple[str, str], Any]]:
    for module, name in FOREIGN:
        try:
            yield (module, name), getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode` of the one encoding in which old pickles hold bytes: others may be programs."""
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"_codecs.encode to {encoding}")
    return text.encode("latin1")
