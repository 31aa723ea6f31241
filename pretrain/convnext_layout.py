"""ConvNeXts in checkpoints: their tensors by timm's names, and the network of timm that they are."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pretrain.tensor_checks import check_plain, clean, dimensions
from pretrain.timm_layout import check_options, complete
from pretrain.vit_layout import Recognised
from whitebench.errors import UserError

STEM, BLOCK = "stem.0.weight", "stages.0.blocks.0.conv_dw.weight"
TRUNK = re.compile(r"(stem|stages|head\.norm)\.")
NAMES = {(9, 96): "tiny", (27, 96): "small", (27, 128): "base", (27, 192): "large", (27, 256): "xlarge"}
"""By the blocks of the third stage and the width of the first."""


def is_convnext(tensors: Mapping[str, Tensor]) -> bool:
    return STEM in tensors and BLOCK in tensors


def recognise_convnext(tensors: Mapping[str, Tensor]) -> Recognised:
    """The ConvNeXt (version 1 or 2) of which `tensors` are, by timm's names, complete and as float32.

    Raises:
        UserError: another network; tensors missing or left over.
    """
    trunk = {name: _flat(name, tensor) for name, tensor in tensors.items() if TRUNK.match(name)}
    check_plain(trunk)
    depths, dims = _depths(trunk), _dims(trunk)
    gated, scaled = "stages.0.blocks.0.mlp.grn.weight" in trunk, "stages.0.blocks.0.gamma" in trunk
    options: dict[str, Any] = {
        "depths": depths,
        "dims": dims,
        "use_grn": gated,
        "ls_init_value": 1e-6 if scaled else None,
    }
    check_options(options)
    size = NAMES.get((depths[2] if len(depths) > 2 else 0, dims[0]), "tiny")
    architecture = f"timm:convnext{'v2' if gated else ''}_{'huge' if gated and size == 'xlarge' else size}"
    if gated and size == "small":
        architecture = "timm:convnextv2_tiny"
    remark = _not_used(tensors)
    return Recognised(architecture, options, complete(architecture, options, trunk), remark)


def _flat(name: str, tensor: Tensor) -> Tensor:
    """Scales as vectors: torchvision has layer scales [C, 1, 1], the authors of version 2 norms [1, 1, 1, C]."""
    scale = name.endswith((".gamma", ".grn.weight", ".grn.bias"))
    return tensor.flatten() if scale and tensor.ndim > 1 and tensor.numel() == max(tensor.shape) else tensor


def _depths(trunk: Mapping[str, Tensor]) -> list[int]:
    """Blocks of each stage."""
    stages: dict[int, set[int]] = {}
    for name in trunk:
        match = re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name)
        if match:
            stages.setdefault(int(match[1]), set()).add(int(match[2]))
    depths = [len(stages[number]) for number in sorted(stages)]
    if sorted(stages) != list(range(len(stages))) or len(stages) != 4 or max(depths) > 128:
        raise UserError(
            f"a ConvNeXt of {len(stages)} stages ({depths} blocks): only those of four stages are supported"
        )
    return depths


def _dims(trunk: Mapping[str, Tensor]) -> list[int]:
    """Channels of each stage."""
    if trunk[STEM].ndim != 4 or trunk[STEM].shape[1] != 3:
        raise UserError(f"{STEM} is {dimensions(tuple(trunk[STEM].shape))}: not a convolution from RGB")
    weights = [trunk.get(f"stages.{stage}.blocks.0.conv_dw.weight") for stage in range(4)]
    if any(weight is None or weight.ndim != 4 for weight in weights):
        raise UserError("a ConvNeXt without the first block of a stage")
    return [int(weight.shape[0]) for weight in weights if weight is not None]


def _not_used(tensors: Mapping[str, Tensor]) -> str:
    heads = [name for name in tensors if re.match(r"head\.(?!norm\.)|classifier\.|fc\.", name)]
    return f"; not used: {clean(heads[0])} and {len(heads) - 1} more (a head)" if heads else ""
