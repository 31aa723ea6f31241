"""What a plain vision transformer of timm looks like, and whether Detectron2's own ViT can hold its tensors.

Sizes come from timm's module of that name (built without memory) and from the tensors; nothing is guessed from names.
"""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from whitebench.errors import UserError, nearest

TIMM = "timm:"
PATCHES = (4, 8, 16)
"""Sides of patches, pixels, from which a feature pyramid with strides 4 to 32 can be made."""
RESAMPLED = {14: 16}
"""Other patches, and the ones to which their embedding is resampled (DINOv2's)."""
HEAD_TENSORS = ("head.", "head_dist.", "fc_norm.", "attn_pool.")
"""timm's tensors after the last block and the final norm; detection uses none of them."""
NOT_OF_THE_STRUCTURE = (
    "img_size", "patch_size", "global_pool", "fc_norm", "drop_path_rate", "weight_init", "zero_init_last",
)  # fmt: skip
"""Options of timm that the tensors do not need, or that say the same as their shapes."""
Shapes = Mapping[str, tuple[int, ...]]
"""Of the tensors, by timm's names."""


@dataclass(frozen=True)
class VitStructure:
    """Sizes of a plain vision transformer, and where it differs from Detectron2's."""

    patch: int
    """Side of the patches that the checkpoint has, pixels."""
    dim: int
    depth: int
    heads: int
    mlp_ratio: float
    qkv_bias: bool
    norm_eps: float
    grid: int
    """Side of the square of position embeddings, in patches; 0: it has none (rotary positions)."""
    prefix: int
    """Tokens before those of the patches: class token and registers."""
    registers: int
    prefix_positions: int
    """How many of the prefix tokens have an entry in pos_embed."""
    layer_scale: bool
    refusal: str | None
    """Why Detectron2's ViT cannot compute the same; None: it can, without the class token."""

    @property
    def detection_patch(self) -> int:
        """Side of the patches in a detector."""
        return RESAMPLED.get(self.patch, self.patch)

    @property
    def metadata(self) -> dict[str, Any]:
        return asdict(self)


def is_vit(arch: str) -> bool:
    """Whether a backbone is a network of timm rather than torchvision's ResNet."""
    return arch.startswith(TIMM)


def timm_network(arch: str, options: Mapping[str, Any], *, on_meta: bool = False) -> Any:
    """timm's module `arch` without head, randomly initialised.

    Args:
        options: keyword arguments of `timm.create_model`, such as patch_size, img_size, num_heads.
        on_meta: without memory, for its structure.
    Raises:
        UserError: timm is not installed, has no such network, or it does not take these options.
    """
    if importlib.util.find_spec("timm") is None:
        raise UserError("vision transformers need the package timm: pip install timm")
    import timm

    name = arch.removeprefix(TIMM)
    if not timm.is_model(name):
        raise UserError(f"{arch}: timm {timm.__version__} has no such network{nearest(name, timm.list_models())}")
    arguments = {**options, **({"device": "meta"} if on_meta else {})}
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{arch}: timm cannot build it with {dict(options)}: {text[:160]}") from error


def timm_vit(arch: str, options: Mapping[str, Any], *, grid: int, patch: int, layer_scale: bool = True) -> Any:
    """timm's module of a vision transformer without head, with its final norm, for images of any size.

    Args:
        options: the checkpoint's, of `timm.create_model`.
        grid: side of the square of position embeddings, in patches; 0: there are none.
        patch: side of the patches, pixels.
        layer_scale: as the network has it; False: without.
    """
    from timm.models.vision_transformer import VisionTransformer

    kinds = {key: value for key, value in options.items() if key not in NOT_OF_THE_STRUCTURE}
    kinds |= {"patch_size": patch, "dynamic_img_size": True}
    if kinds.get("class_token") is False:
        kinds["global_pool"] = ""  # timm's usual one is the class token
    if grid:
        kinds["img_size"] = grid * patch
    if isinstance(timm_network(arch, {}, on_meta=True), VisionTransformer):
        kinds["fc_norm"] = False
        if not layer_scale:
            kinds["init_values"] = 0.0  # timm ignores None
    return timm_network(arch, kinds)


def read_structure(arch: str, options: Mapping[str, Any], shapes: Shapes) -> VitStructure:
    """The structure of a backbone of timm.

    Args:
        options: with which timm builds it.
        shapes: of its tensors; empty: those that timm gives it.
    Raises:
        UserError: not a plain vision transformer; positions that do not form a square; patches of another size than
            those from which a pyramid can be made.
    """
    plain = tuple(sorted((key, value) for key, value in options.items() if isinstance(value, int | float | str)))
    return _structure(arch, plain, tuple(sorted(shapes.items())))


@lru_cache
def _structure(
    arch: str, options: tuple[tuple[str, Any], ...], shapes: tuple[tuple[str, tuple[int, ...]], ...]
) -> VitStructure:
    kinds = dict(options)
    structural = {key: kinds[key] for key in kinds if key not in NOT_OF_THE_STRUCTURE}
    pooling = {"global_pool": ""} if structural.get("class_token") is False else {}
    network = timm_network(arch, {**structural, **pooling}, on_meta=True)
    _check_plain(arch, network)
    sizes = dict(shapes) or {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    prefix, block = int(network.num_prefix_tokens), network.blocks[0]
    grid, prefix_positions = _positions(arch, sizes.get("pos_embed"), prefix)
    patch = int(sizes["patch_embed.proj.weight"][-1]) if "patch_embed.proj.weight" in sizes else 0
    if patch not in (*PATCHES, *RESAMPLED):
        raise UserError(
            f"{arch}: patches of {patch} pixels; a feature pyramid needs {', '.join(map(str, PATCHES))} "
            f"(or 14, which are resampled to 16)"
        )
    return VitStructure(
        patch=patch,
        dim=int(network.embed_dim),
        depth=len(network.blocks),
        heads=int(block.attn.num_heads),
        mlp_ratio=sizes["blocks.0.mlp.fc1.weight"][0] / network.embed_dim
        if "blocks.0.mlp.fc1.weight" in sizes
        else 4.0,
        qkv_bias="blocks.0.attn.qkv.bias" in sizes,
        norm_eps=float(block.norm1.eps),
        grid=grid,
        prefix=prefix,
        registers=int(getattr(network, "num_reg_tokens", 0) or max(0, prefix - 1)),
        prefix_positions=prefix_positions,
        layer_scale="blocks.0.ls1.gamma" in sizes,
        refusal=_refusal(network, sizes),
    )


def _check_plain(arch: str, network: Any) -> None:
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(network, VisionTransformer | Eva):
        raise UserError(
            f"{arch}: not a plain vision transformer ({type(network).__name__} of timm); detection takes ResNets and "
            "plain vision transformers"
        )


def _positions(arch: str, shape: tuple[int, ...] | None, prefix: int) -> tuple[int, int]:
    """Side of the square of positions, and the entries before it."""
    if shape is None:
        return 0, 0
    for extra in (prefix, 0, 1):
        side = math.isqrt(max(0, shape[1] - extra))
        if side and side * side + extra == shape[1]:
            return side, extra
    raise UserError(f"{arch}: its {shape[1]} position embeddings do not form a square")


def _refusal(network: Any, sizes: dict[str, tuple[int, ...]]) -> str | None:
    """The first reason why Detectron2's ViT, which has patches' tokens alone, cannot compute what `network` does."""
    from timm.models.vision_transformer import Block, VisionTransformer
    from torch import nn

    block = network.blocks[0]
    if type(network) is not VisionTransformer or type(block) is not Block:
        return f"its blocks are not plain ones ({type(network).__name__}, {type(block).__name__} of timm)"
    attention, mlp = block.attn, block.mlp
    checks = (
        (network.num_reg_tokens > 0, f"it has {network.num_reg_tokens} register tokens, and its maps depend on them"),
        ("pos_embed" not in sizes, "it has no absolute position embeddings"),
        (not isinstance(network.norm_pre, nn.Identity), "it has a norm before its blocks"),
        ("patch_embed.proj.bias" not in sizes, "its patch embedding has no bias"),
        (any(name.endswith(("q_norm.weight", "k_norm.weight")) for name in sizes), "it normalises queries and keys"),
        ("blocks.0.attn.qkv.weight" not in sizes, "its attention has no joint qkv layer"),
        ("blocks.0.attn.proj.bias" not in sizes, "its attention's projection has no bias"),
        (not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity), "it has a norm within its attention"),
        (not _is_gelu(getattr(mlp, "act", None)), f"its MLP's activation is {type(getattr(mlp, 'act', mlp)).__name__}"),
        (not isinstance(getattr(mlp, "norm", nn.Identity()), nn.Identity), "it has a norm within its MLP"),
        (not {"blocks.0.mlp.fc1.bias", "blocks.0.mlp.fc2.bias"} <= sizes.keys(), "its MLP is not two layers with bias"),
    )
    return next((reason for failed, reason in checks if failed), None)


def _is_gelu(activation: Any) -> bool:
    from torch import nn

    return isinstance(activation, nn.GELU) and activation.approximate == "none"
