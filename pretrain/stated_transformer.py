"""What a checkpoint says of its vision transformer or ConvNeXt, beside the tensors that it holds."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.convnext_layout import is_convnext, recognise_convnext
from pretrain.stated_architecture import CONFIG, holders, next_config, stated_names
from pretrain.timm_networks import import_timm
from pretrain.vit_layout import Recognised, is_vit, recognise_vit
from whitebench.errors import UserError

HEAD_KEYS = ("num_heads", "num_attention_heads", "heads")
SIZES = {"tiny": 192, "small": 384, "base": 768, "large": 1024}


def recognise_transformer_or_convnext(
    tensors: Mapping[str, Tensor], prefix: str, content: Any, path: Path
) -> Recognised | None:
    """The network of which `tensors` (of the file's `content`, below `prefix`) are; None for a ResNet.

    Raises:
        UserError: see `recognise_vit` and `recognise_convnext`; the file states another network.
    """
    if is_convnext(tensors):
        return recognise_convnext(tensors)
    if not is_vit(tensors):
        return None
    names = list(stated_names(content, path))
    patches = tensors["patch_embed.proj.weight"]
    width = int(patches.shape[0]) if patches.ndim else 0
    for key, name in names:
        _check_name(key, name.lower(), width)
    activation = next_config(path).get("hidden_act", "gelu")
    if activation not in ("gelu", "silu"):
        raise UserError(
            f"states {CONFIG} hidden_act={json.dumps(activation)[:60]}: its features differ from a plain ViT's"
        )
    stated = next(_stated_heads(content, path), None) or _heads_of_timm(names, width)
    return recognise_vit(tensors, prefix, stated)


def _check_name(key: str, name: str, width: int) -> None:
    """Of a name such as vit_small, as DINO's and MoCo v3's trainings state it."""
    size = re.search(r"(?<![a-z])(?:vit|deit)[_-](tiny|small|base|large)(?![a-z])", name)
    if size and SIZES[size[1]] != width:
        stated = SIZES[size[1]]
        raise UserError(f"its tensors are of width {width}, but it states {key}: '{name[:80]}' (width {stated})")


def _stated_heads(content: Any, path: Path) -> Iterator[int]:
    for holder in [*(holder for _, holder in holders(content)), next_config(path)]:
        for key in HEAD_KEYS:
            value = holder.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                yield value


def _heads_of_timm(names: list[tuple[str, str]], width: int) -> int | None:
    """Attention heads of a network of timm that the file names in full, as timm's own trainings do.

    Raises:
        UserError: its features differ from those of a plain vision transformer with the same tensors.
    """
    for key, name in names:
        network = _timm_network(name)
        if network is None or getattr(network, "embed_dim", width) != width:
            continue
        block = next(iter(getattr(network, "blocks", [None])))
        activation = getattr(getattr(block, "mlp", None), "act", None)
        if type(network).__name__ == "Eva" and "dinov3" in name:
            return int(block.attn.num_heads)
        if (type(network).__name__, type(block).__name__) != ("VisionTransformer", "Block") or (
            type(activation).__name__ not in ("GELU", "SiLU")
        ):
            raise UserError(f"states {key}: '{name[:80]}', whose features differ from a plain vision transformer's")
        return int(block.attn.num_heads)
    return None


def _timm_network(name: str) -> Any:
    """timm's transformer of this name, without values; None where it has no such network."""
    import torch

    timm, plain = import_timm(), name.partition(".")[0]
    if not re.fullmatch(r"\w+_patch\d+\w*", plain) or not timm.is_model(plain):
        return None
    with torch.device("meta"):
        return timm.create_model(plain, pretrained=False)
