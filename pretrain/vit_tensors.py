"""Tensors of vision transformers that other projects split or mask, put into timm's form."""

import re

import torch
from torch import Tensor

from pretrain.tensor_checks import dimensions
from whitebench.errors import UserError

Tensors = dict[str, Tensor]


def merged(trunk: Tensors, rotary: bool) -> Tensors:
    """With one `qkv` for queries, keys and values, timm's forms of their biases, and of gated layers.

    Args:
        trunk: by timm's names, but for what is merged here.
        rotary: DINOv3's form: biases of queries and values by themselves, none of keys, layer scales called gamma.
    Raises:
        UserError: a part is missing; a bias of keys where the network has none.
    """
    tensors = dict(trunk)
    blocks = sorted({match[0] for name in trunk if (match := re.match(r"blocks\.\d+\.", name))})
    biased = [block for block in blocks if f"{block}attn.k_proj.bias" in trunk]
    if biased and biased != blocks:
        raise UserError(f"{biased[0]}attn.k_proj has a bias, and that of another block has none")
    for block in blocks:
        _merge_projections(tensors, f"{block}attn.")
        _unmask(tensors, f"{block}attn.")
        _merge_biases(tensors, f"{block}attn.", rotary)
        _name_gates(tensors, f"{block}mlp.")
        for layer in (1, 2) if rotary else ():
            if f"{block}ls{layer}.gamma" in tensors:
                tensors[f"{block}gamma_{layer}"] = tensors.pop(f"{block}ls{layer}.gamma")
    if rotary:
        _drop_zero_biases(tensors, blocks)
    return tensors


def _merge_projections(tensors: Tensors, attention: str) -> None:
    """q_proj, k_proj, v_proj -> qkv; keys may be without a bias (BEiT, DINOv3), which is zero then."""
    parts = [tensors.pop(f"{attention}{part}_proj.weight", None) for part in "qkv"]
    biases = [tensors.pop(f"{attention}{part}_proj.bias", None) for part in "qkv"]
    if all(part is None for part in parts):
        return
    if any(part is None or part.ndim != 2 or part.shape != parts[0].shape for part in parts):  # type: ignore[union-attr]
        raise UserError(f"{attention}q_proj, k_proj and v_proj are not three matrices of one size")
    weights = [part for part in parts if part is not None]
    tensors[f"{attention}qkv.weight"] = torch.cat(weights)
    if any(bias is not None for bias in biases):
        if biases[0] is None or biases[2] is None:
            raise UserError(f"{attention}q_proj and v_proj: the bias of one of them is missing")
        zero = weights[0].new_zeros(weights[0].shape[0])
        if any(bias is not None and bias.shape != zero.shape for bias in biases):
            raise UserError(f"{attention}q_proj, k_proj and v_proj have biases of other sizes")
        tensors[f"{attention}qkv.bias"] = torch.cat([zero if bias is None else bias for bias in biases])


def _unmask(tensors: Tensors, attention: str) -> None:
    """DINOv3 multiplies the bias by a mask that is zero for keys; masks that were never filled are NaN."""
    mask, bias = tensors.pop(f"{attention}qkv.bias_mask", None), tensors.get(f"{attention}qkv.bias")
    if mask is None:
        return
    if bias is None or mask.shape != bias.shape:
        raise UserError(f"{attention}qkv.bias_mask is {dimensions(tuple(mask.shape))}, without a bias of that size")
    if mask.ndim != 1 or not mask.is_floating_point():
        raise UserError(f"{attention}qkv.bias_mask is not a vector of numbers")
    if mask.isnan().all():
        mask = torch.ones_like(mask)
        mask[len(mask) // 3 : 2 * len(mask) // 3] = 0
    tensors[f"{attention}qkv.bias"] = torch.where(mask == 0, torch.zeros_like(bias), bias * mask)


def _merge_biases(tensors: Tensors, attention: str, rotary: bool) -> None:
    """BEiT's q_bias and v_bias -> qkv.bias, and back for rotary networks, which have no bias of keys in timm."""
    q, v = (tensors.pop(f"{attention}{part}_bias", None) for part in "qv")
    if (q is None) is not (v is None):
        raise UserError(f"{attention}q_bias and v_bias: one of them is missing")
    if q is not None and v is not None:
        if f"{attention}qkv.bias" in tensors or q.shape != v.shape or q.ndim != 1:
            raise UserError(f"{attention}q_bias and v_bias beside a qkv.bias, or of two sizes")
        tensors[f"{attention}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    if not rotary or (bias := tensors.pop(f"{attention}qkv.bias", None)) is None:
        return
    if bias.ndim != 1 or len(bias) % 3:
        raise UserError(f"{attention}qkv.bias is {dimensions(tuple(bias.shape))}, not that of three matrices")
    q, k, v = bias.chunk(3)
    if k.any():
        raise UserError(f"{attention}qkv.bias is not zero for keys: DINOv3's networks have no such bias")
    tensors[f"{attention}q_bias"], tensors[f"{attention}v_bias"] = q, v


def _name_gates(tensors: Tensors, mlp: str) -> None:
    """Gated layers: DINOv2's w12, w3 -> fc1, fc2 (both halves in one); DINOv3's w1, w2, w3 -> fc1_g, fc1_x, fc2."""
    if f"{mlp}w12.weight" in tensors:
        names = {"w12": "fc1", "w3": "fc2"}
    elif f"{mlp}w1.weight" in tensors:
        names = {"w1": "fc1_g", "w2": "fc1_x", "w3": "fc2", "up_proj": "fc1_x", "down_proj": "fc2"}
    else:
        names = {"up_proj": "fc1", "down_proj": "fc2"}
    for old, new in names.items():
        for kind in ("weight", "bias"):
            if f"{mlp}{old}.{kind}" in tensors:
                tensors[f"{mlp}{new}.{kind}"] = tensors.pop(f"{mlp}{old}.{kind}")


def _drop_zero_biases(tensors: Tensors, blocks: list[str]) -> None:
    """Biases of queries and values that are zero in all blocks: timm has DINOv3's networks without them."""
    names = [f"{block}attn.{part}_bias" for block in blocks for part in "qv"]
    present = [name for name in names if name in tensors]
    if present and not any(tensors[name].any() for name in present):
        for name in present:
            del tensors[name]
