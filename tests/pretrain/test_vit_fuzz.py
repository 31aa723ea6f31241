"""Whatever is in a file that looks like a transformer's or a ConvNeXt's: it is read whole, or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.checkpoint import read_backbone
from tests.support.plain_vit import plain_vit
from tests.support.vit_formats import beit_biases, transformers, transformers_dinov3
from whitebench.errors import UserError

SMALL: dict[str, Any] = {"width": 64, "heads": 1, "depth": 2}
ROTARY: dict[str, Any] = {**SMALL, "registers": 4, "scale": "ls", "rotary": True}


def damages(tensor: Tensor) -> dict[str, Tensor]:
    flat = tensor.flatten()
    return {
        "scalar": torch.tensor(1.0),
        "empty": tensor[:0],
        "flat": flat,
        "one row less": tensor[: max(1, len(tensor) - 1)],
        "one axis more": tensor[None],
        "integers": tensor.long(),
        "complex": tensor.to(torch.complex64),
        "sparse": tensor.to_sparse(),
        "on no device": tensor.to("meta"),
        "claims more than it has": torch.zeros(()).expand(2**26 if tensor.ndim == 1 else (2**13, 2**13)),
        "not a number": torch.full_like(tensor, torch.nan),
    }


STATES: dict[str, dict[str, Tensor]] = {
    "plain": dict(plain_vit(**SMALL).state_dict()),
    "registers": dict(plain_vit(**SMALL, registers=4, scale="ls", gate="w12").state_dict()),
    "rotary": dict(plain_vit(**ROTARY).state_dict()),
    "q_bias": beit_biases(dict(plain_vit(**SMALL).state_dict())),
    "transformers": transformers(dict(plain_vit(**SMALL).state_dict())),
    "transformers, rotary": transformers_dinov3(dict(plain_vit(**ROTARY).state_dict())),
}


def reads(path: Path) -> bool:
    """Whether the file is read; any error other than the user's is a fault of the reader."""
    try:
        read_backbone(path)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("name", STATES)
def test_a_damaged_tensor_is_refused(name: str, tmp_path: Path) -> None:
    state, path = STATES[name], tmp_path / "ckpt.pth"
    silent = []
    for tensor_name, tensor in state.items():
        if "norm2" in tensor_name or "layernorm_after" in tensor_name or ".1." in tensor_name:
            continue  # as the first norm, and as the first block
        for damage, damaged in damages(tensor).items():
            whole = damaged.layout == torch.strided and damaged.device == tensor.device
            if (
                whole
                and damaged.shape == tensor.shape
                and damaged.dtype == tensor.dtype
                and torch.equal(damaged, tensor)
            ):
                continue
            torch.save({**state, tensor_name: damaged}, path)
            if reads(path):
                silent.append((tensor_name.rpartition(".")[2], damage))
    assert set(silent) <= HARMLESS


HARMLESS = {("bias_mask", "not a number")}
"""A mask that was never filled is DINOv3's own form of one."""


@pytest.mark.parametrize("name", STATES)
def test_a_missing_tensor_is_refused(name: str, tmp_path: Path) -> None:
    path, read = tmp_path / "ckpt.pth", []
    for missing in STATES[name]:
        torch.save({key: tensor for key, tensor in STATES[name].items() if key != missing}, path)
        if reads(path):
            read.append(missing.rpartition(".")[2])
    assert set(read) <= {"cls_token", "register_tokens", "storage_tokens", "periods"}, read
