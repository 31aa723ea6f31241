"""Tensors of a network that timm builds: all of them are there, and no others."""

from collections.abc import Mapping
from functools import lru_cache
from json import dumps, loads
from typing import Any

import torch
from torch import Tensor

from pretrain.tensor_checks import as_float32, check_shapes
from pretrain.timm_networks import build_timm
from whitebench.errors import UserError

COUNTER = "num_batches_tracked"
LARGEST = 16384
"""Of a number among the options of a file that anyone may have written: no network of this size is built."""
HEADS = ("head.", "head_dist.", "classifier.", "fc.")
"""Classifiers, by timm's names; a backbone has none."""


def complete(architecture: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the backbone `timm:NAME` with these options, float32, without classifier and batch counters.

    Raises:
        UserError: tensors are missing or left over, of other shapes, not floating point, not finite.
    """
    shapes = tensor_shapes(architecture, options)
    trunk = {n: t for n, t in tensors.items() if n in shapes or (not n.startswith(HEADS) and not n.endswith(COUNTER))}
    check_shapes(architecture, shapes, trunk)
    return {name: as_float32(name, trunk[name]) for name in shapes}


def tensor_shapes(architecture: str, options: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the backbone, in timm's order.

    Raises:
        UserError: see `build_timm`.
    """
    return _tensor_shapes(architecture, dumps(dict(options), sort_keys=True))


@lru_cache
def _tensor_shapes(architecture: str, options: str) -> Mapping[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = build_timm(architecture, loads(options))
    return {name: tuple(t.shape) for name, t in network.state_dict().items() if not name.endswith(COUNTER)}


def check_options(options: Any) -> None:
    """Raises `UserError` unless `options` are plain settings of a network of a size that can be built."""
    if not isinstance(options, dict):
        raise UserError("its options are not a mapping")
    for key, value in options.items():
        numbers = value if isinstance(value, list) else [value]
        plain = all(
            n is None or isinstance(n, str | bool) or (isinstance(n, int | float) and abs(n) <= LARGEST)
            for n in numbers
        )
        if not key.isidentifier() or not plain or len(numbers) > 64 or (key == "depth" and value > 128):
            raise UserError(f"its options state an impossible {key}")
