"""A vision transformer by timm's names -> the tensors of a detector, with nothing lost silently.

The converted file holds timm's names, which are Detectron2's, too. LayerScale is folded into the layer before it, which
is exact: gamma * (W x + b) = (gamma W) x + gamma b. A patch embedding of 14 pixels is resampled to 16 by timm.
Detectron2's ViT has neither class token nor final norm; the frozen form (timm's module) has all of them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfer.vit_structure import HEAD_TENSORS, VitStructure, read_structure
from whitebench.errors import UserError

FOLDED = (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2"))
"""LayerScale's factors, and the layer whose output each scales."""
PATCH_WEIGHT = "patch_embed.proj.weight"
LEFT_OUT = ("cls_token", "norm.weight", "norm.bias")
"""Tensors without a place in Detectron2's ViT, as in ViTDet."""


def convert_vit(
    arch: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, np.ndarray], VitStructure, list[str]]:
    """Tensors for a detector, the checkpoint's structure, and one line per change that was made.

    Raises:
        UserError: see `read_structure`; a tensor that is missing.
    """
    without_head = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD_TENSORS)}
    for end in ("weight", "bias"):  # a final norm that timm has after pooling
        if f"fc_norm.{end}" in tensors and f"norm.{end}" not in tensors:
            without_head[f"norm.{end}"] = tensors[f"fc_norm.{end}"]
    structure = read_structure(arch, options, {name: tuple(tensor.shape) for name, tensor in without_head.items()})
    changes = []
    if structure.layer_scale:
        without_head = fold_layer_scale(without_head, structure.depth)
        changes.append("LayerScale: folded into the layers before it, which is exact")
    if structure.patch != structure.detection_patch:
        without_head[PATCH_WEIGHT] = resample_patches(without_head[PATCH_WEIGHT], structure.detection_patch)
        changes.append(
            f"patch embedding: resampled from {structure.patch} to {structure.detection_patch} pixels (timm's "
            "resample_patch_embed), so that the pyramid's strides are powers of two"
        )
    return {name: tensor.numpy() for name, tensor in without_head.items()}, structure, changes


def fold_layer_scale(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The same function without LayerScale: each gamma is multiplied into weight and bias of the layer before it.

    Raises:
        UserError: a factor, or its layer, is missing.
    """
    folded = dict(tensors)
    for block in range(depth):
        for gamma_name, layer in FOLDED:
            try:
                gamma = folded.pop(f"blocks.{block}.{gamma_name}").double()
                weight, bias = (f"blocks.{block}.{layer}.{end}" for end in ("weight", "bias"))
                folded[weight] = (gamma[:, None] * folded[weight].double()).float()
                folded[bias] = (gamma * folded[bias].double()).float()
            except KeyError as error:
                raise UserError(f"LayerScale of block {block}: {error.args[0]} is missing") from error
    return folded


def resample_patches(weight: Tensor, patch: int) -> Tensor:
    """[D, 3, P, P] -> [D, 3, patch, patch], by timm's pseudo-inverse of resizing (FlexiViT, arXiv 2212.08013)."""
    from timm.layers import resample_patch_embed

    resampled: Tensor = resample_patch_embed(weight, new_size=[patch, patch])
    return resampled.contiguous()


def vitdet_tensors(tensors: Mapping[str, np.ndarray], structure: VitStructure) -> dict[str, np.ndarray]:
    """Those that Detectron2's ViT takes: all but `LEFT_OUT`.

    Raises:
        UserError: Detectron2's ViT cannot compute what this transformer does.
    """
    if structure.refusal:
        raise UserError(
            f"Detectron2's ViT cannot take this transformer: {structure.refusal}; sfp-frozen can, by timm's module"
        )
    return {name: array for name, array in tensors.items() if name not in LEFT_OUT}


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
