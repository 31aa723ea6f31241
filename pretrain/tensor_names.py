"""Tensor names of other libraries' networks, translated to torchvision's (ResNets) or timm's (all others).

Detectron2 (and the converters of MoCo and others) say `stem.conv1.norm`, `res2.0.shortcut`; transformers says
`embedder.embedder.convolution`, `encoder.stages.0.layers.0.layer.1.normalization`. Vision transformers of torchvision
and transformers, and ConvNeXts of their authors and of torchvision, get timm's names. What a file holds as several
tensors where timm has one (queries, keys, values) is put together in `pretrain.vit_layout`.
"""

import re
from collections.abc import Callable

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
DETECTRON2: tuple[Rule, ...] = (
    (r"(^|\.)roi_heads\.res5\.", r"\1backbone.res5."),  # of a C4 detector: the stage belongs to its head
    (r"(^|\.)stem\.((?:conv1|bn1)\.)", r"\1\2"),
    (r"(^|\.)res([2-5])\.(?=\d)", lambda match: f"{match[1]}layer{int(match[2]) - 1}."),
    (r"(^|\.)conv([123])\.norm\.", r"\1bn\2."),
    (r"(^|\.)shortcut\.norm\.", r"\1downsample.1."),
    (r"(^|\.)shortcut\.(weight|bias)$", r"\1downsample.0.\2"),
)
TRANSFORMERS: tuple[Rule, ...] = (
    (r"(^|\.)embedder\.embedder\.convolution\.", r"\1conv1."),
    (r"(^|\.)embedder\.embedder\.normalization\.", r"\1bn1."),
    (r"(^|\.)encoder\.stages\.(\d)\.layers\.", lambda match: f"{match[1]}layer{int(match[2]) + 1}."),
    (r"\.layer\.(\d)\.convolution\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda match: f".bn{int(match[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)
TORCHVISION_VIT: tuple[Rule, ...] = (
    (r"(^|\.)conv_proj\.", r"\1patch_embed.proj."),
    (r"(^|\.)class_token$", r"\1cls_token"),
    (r"(^|\.)encoder\.pos_embedding$", r"\1pos_embed"),
    (r"(^|\.)encoder\.layers\.encoder_layer_(\d+)\.", r"\1blocks.\2."),
    (r"(^|\.)encoder\.ln\.", r"\1norm."),
    (r"(\bblocks\.\d+)\.ln_([12])\.", r"\1.norm\2."),
    (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"(\bblocks\.\d+\.mlp)\.(?:0|linear_1)\.", r"\1.fc1."),
    (r"(\bblocks\.\d+\.mlp)\.(?:3|linear_2)\.", r"\1.fc2."),
)
TRANSFORMERS_VIT: tuple[Rule, ...] = (
    (r"(^|\.)embeddings\.cls_token$", r"\1cls_token"),
    (r"(^|\.)embeddings\.mask_token$", r"\1mask_token"),
    (r"(^|\.)embeddings\.register_tokens$", r"\1register_tokens"),
    (r"(^|\.)embeddings\.position_embeddings$", r"\1pos_embed"),
    (r"(^|\.)embeddings\.patch_embeddings\.(?:projection\.)?(weight|bias)$", r"\1patch_embed.proj.\2"),
    (r"(^|\.)(?:encoder\.|model\.)?layer\.(\d+)\.", r"\1blocks.\2."),
    (r"(^|\.)layernorm\.", r"\1norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", lambda match: f".attn.{match[1][0]}_proj."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1_proj."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(\bblocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
)
CONVNEXT: tuple[Rule, ...] = (
    (r"(^|\.)downsample_layers\.0\.", r"\1stem."),
    (r"(^|\.)downsample_layers\.([1-3])\.", r"\1stages.\2.downsample."),
    (r"(^|\.)stages\.(\d)\.(?=\d)", r"\1stages.\2.blocks."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.(gamma|beta)$", lambda match: f".mlp.grn.{'weight' if match[1] == 'gamma' else 'bias'}"),
    (r"(?<!\d)(^|\.)norm\.(weight|bias)$", r"\1head.norm.\2"),  # the final one: those of blocks follow a number
)
TORCHVISION_CONVNEXT: tuple[Rule, ...] = (
    (r"(^|\.)features\.0\.", r"\1stem."),
    (r"(^|\.)features\.([246])\.", lambda match: f"{match[1]}stages.{int(match[2]) // 2}.downsample."),
    (r"(^|\.)features\.([1357])\.(\d+)\.", lambda match: f"{match[1]}stages.{int(match[2]) // 2}.blocks.{match[3]}."),
    (r"\.block\.0\.", ".conv_dw."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".mlp.fc1."),
    (r"\.block\.5\.", ".mlp.fc2."),
    (r"\.layer_scale$", ".gamma"),
    (r"(^|\.)classifier\.0\.", r"\1head.norm."),
    (r"(^|\.)classifier\.2\.", r"\1head.fc."),
)
LAYOUTS: tuple[tuple[str, tuple[Rule, ...]], ...] = (
    (r"(^|\.)res2\.0\.conv1\.weight$|(^|\.)stem\.conv1\.weight$", DETECTRON2),
    (r"embedder\.embedder\.convolution\.weight", TRANSFORMERS),
    (r"(^|\.)encoder\.layers\.encoder_layer_0\.", TORCHVISION_VIT),
    (r"(^|\.)embeddings\.patch_embeddings\.(projection\.)?weight$", TRANSFORMERS_VIT),
    (r"(^|\.)downsample_layers\.0\.0\.weight$", CONVNEXT),
    (r"(^|\.)features\.1\.0\.block\.0\.weight$", TORCHVISION_CONVNEXT),
)
"""A name that only this layout has, and its rules."""


def common_names(names: list[str]) -> dict[str, str]:
    """Each name, with torchvision's or timm's in place of another library's; as it is where that is not known."""
    for sign, rules in LAYOUTS:
        if any(re.search(sign, name) for name in names):
            return {name: _translated(name, rules) for name in names}
    return {name: name for name in names}


def _translated(name: str, rules: tuple[Rule, ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
