"""Whether the tensors of a file are those of a network, whoever wrote the file."""

from collections.abc import Mapping

import torch
from torch import Tensor

from whitebench.errors import UserError

LARGEST = 2**28
"""Elements of a tensor: four times those of the largest in a network of 7 billion parameters."""


def check_shapes(
    arch: str, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], hint: str = ""
) -> None:
    """Raises `UserError` if tensors of the network `arch` are missing, left over or of another shape.

    Args:
        hint: ends the message about the shape of a convolution.
    """
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    if missing:
        raise UserError(f"{len(missing)} of a {arch}'s {len(expected)} tensors are missing, e.g. {missing[0]}")
    if extra:
        raise UserError(f"{len(extra)} tensors have no place in a {arch}, e.g. {clean(extra[0])}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            stated = dimensions(tuple(tensors[name].shape))
            end = hint if ".conv2." in name or ".conv1." in name else ""
            raise UserError(f"{name} is {stated}, in a {arch} it is {dimensions(shape)}{end}")


def check_plain(tensors: Mapping[str, Tensor]) -> None:
    """Raises `UserError` for tensors without numbers of their own, or larger than any of a known network."""
    for name, tensor in tensors.items():
        _check_values(clean(name), tensor)
        if tensor.numel() > LARGEST or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{clean(name)} is {dimensions(tuple(tensor.shape))}: more than the file has values for")


def as_float32(name: str, tensor: Tensor) -> Tensor:
    """An own, contiguous copy: a view into a file would change with the file.

    Raises:
        UserError: not floating point, without values, or with values that are not finite.
    """
    _check_values(name, tensor)
    copy = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    if not copy.isfinite().all():
        raise UserError(f"{name} has values that are not finite (NaN or infinite)")
    return copy


def _check_values(name: str, tensor: Tensor) -> None:
    if not has_values(tensor):
        kind = tensor.device if tensor.layout == torch.strided else tensor.layout
        raise UserError(f"{name} holds no plain values (it is a {str(kind).removeprefix('torch.')} tensor)")
    if not tensor.is_floating_point():
        raise UserError(f"{name} is of type {str(tensor.dtype).removeprefix('torch.')}, not floating point")


def has_values(tensor: Tensor) -> bool:
    """On whichever device: a network that trains on a GPU is written from there."""
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def dimensions(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a scalar"


def clean(name: str) -> str:
    """A name from a file that anyone may have written, fit for one line of a terminal."""
    text = name if name.isprintable() else repr(name)[1:-1]
    return text if len(text) <= 120 else f"{text[:117]}..."
