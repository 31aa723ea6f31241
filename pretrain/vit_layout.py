"""Vision transformers in checkpoints of others: their tensors by timm's names, and the network of timm that they are.

Names and shapes say the width, depth, patch, registers, layer scale and position embeddings. They do not say the number
of attention heads: it is taken from what the file states, or from the width as all published networks have it.
Each tensor is used, or listed as not used with the reason, or the file is refused.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.tensor_checks import check_plain, clean, dimensions
from pretrain.timm_layout import check_options, complete
from pretrain.vit_tensors import merged
from whitebench.errors import UserError

PATCHES, BLOCK = "patch_embed.proj.weight", "blocks.0.norm1.weight"
"""Tensors that every vision transformer has, by timm's names."""
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16, 4096: 32}
"""Attention heads by width; of rotary networks (DINOv3) one per 64 channels up to 1280."""
NAMES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
TRUNK = re.compile(r"(patch_embed|blocks|norm|fc_norm|norm_pre)\.|(cls_token|pos_embed|reg_token)$")
NOT_USED = (
    (r"(mask_token|masked_embed)$", "the token of masked patches, of pretraining only"),
    (r"rope(_embed)?\.(periods|freqs)|rope_embed\.", "fixed frequencies of rotary positions"),
    (r"decoder", "a decoder"),
    (r"local_cls_norm\.", "the norm of local crops, of pretraining only"),
    (r"(dino_|ibot_)?heads?(\.|_)|fc\.|classifier\.|pre_logits\.|pooler\.|last_layer\.", "a head"),
)
"""Beside the encoder's own tensors, and why features do not depend on them."""
REFUSED = (
    (r"(^|\.)relative_position_(bias_table|index)|(^|\.)rel_pos", "relative position biases (BEiT's)"),
    (r"dist_token$", "a distillation token (DeiT's)"),
    (r"attn_pool\.", "attention pooling"),
    (r"(^|\.)cls_norm\.", "a norm of its own for the class token"),
    (r"(^|\.)(ln_pre|ln_post)\.|class_embedding$", "CLIP's norms and tokens"),
    (r"blocks\.\d+\.(attn\.(gate|q_a)|cross)", "another attention"),
    (r"temporal|time_embed", "a temporal axis"),
)
"""Parts that change features, and that the networks here do not have."""


@dataclass(frozen=True)
class Recognised:
    architecture: str
    options: dict[str, Any]
    """Keyword arguments of `timm.create_model`."""
    tensors: dict[str, Tensor]
    remark: str
    """What was not used, or assumed; empty, or it begins with "; "."""


def is_vit(tensors: Mapping[str, Tensor]) -> bool:
    return PATCHES in tensors and any(name in tensors for name in (BLOCK, "blocks.0.0.norm1.weight"))


def recognise_vit(tensors: Mapping[str, Tensor], prefix: str = "", heads: int | None = None) -> Recognised:
    """The vision transformer of which `tensors` are, by timm's names, complete and as float32.

    Args:
        tensors: below one prefix of a file, which other parts of the file may share.
        prefix: that prefix; MoCo v3's tells its ViT-S from others'.
        heads: attention heads, where the file states them.
    Raises:
        UserError: another network; tensors missing or left over; parts that change features and are not known.
    """
    unchunked = {re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", name): tensor for name, tensor in tensors.items()}
    for name in unchunked:
        for pattern, meaning in REFUSED:
            if re.search(pattern, name):
                raise UserError(f"holds a vision transformer with {meaning} ({clean(name)}), which is not supported")
    own = {_plain(name): tensor for name, tensor in unchunked.items() if TRUNK.match(_plain(name))}
    check_plain(own)
    rotary = _check_rotary(unchunked)
    trunk = merged(own, rotary)
    remarks = _not_used(unchunked, _width(trunk))
    options, assumed = _options(trunk, prefix, heads, rotary)
    check_options(options)
    architecture = _architecture(trunk, options, rotary)
    remarks += assumed
    complete_tensors = complete(architecture, options, trunk)
    return Recognised(architecture, options, complete_tensors, "".join(f"; {remark}" for remark in remarks))


def _plain(name: str) -> str:
    """Register tokens and layer scales by timm's names."""
    name = re.sub(r"^(register_tokens|storage_tokens|registers)$", "reg_token", name)
    return re.sub(r"(blocks\.\d+)\.(?:gamma_|ls)([12])(?:\.gamma|\.weight)?$", r"\1.ls\2.gamma", name)


def _width(trunk: Mapping[str, Tensor]) -> int:
    weight = trunk[PATCHES]
    if weight.ndim != 4 or weight.shape[1] != 3 or weight.shape[2] != weight.shape[3] or not weight.numel():
        raise UserError(f"{PATCHES} is {dimensions(tuple(weight.shape))}: not a convolution of square patches of RGB")
    return int(weight.shape[0])


def _not_used(tensors: Mapping[str, Tensor], width: int) -> list[str]:
    """Tensors beside the trunk by the reason why features do not depend on them."""
    reasons: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if TRUNK.match(_plain(name)):
            continue
        reason = next((reason for pattern, reason in NOT_USED if re.match(pattern, name)), None)
        if reason is None and "." not in name and tensor.ndim >= 2 and tensor.shape[-1] == width:
            raise UserError(
                f"{clean(name)} is {dimensions(tuple(tensor.shape))}: an unknown token or table of the encoder"
            )
        if reason is not None:
            reasons.setdefault(reason, []).append(name)
    return [f"not used: {clean(names[0])}{_more(names)} ({reason})" for reason, names in reasons.items()]


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _check_rotary(tensors: Mapping[str, Tensor]) -> bool:
    """Whether positions are rotary, as DINOv3 has them.

    Raises:
        UserError: by other frequencies than its own.
    """
    periods = next((t for name, t in tensors.items() if name.endswith("rope_embed.periods")), None)
    names = set(map(_plain, tensors))
    if periods is None:
        return "pos_embed" not in names and "reg_token" in names
    check_plain({"rope_embed.periods": periods})
    count = periods.numel()
    expected = 100.0 ** (torch.arange(min(count, 4096), dtype=torch.float64) / max(1, count))
    if not count or periods.shape != expected.shape or not torch.allclose(periods.double(), expected, rtol=1e-2):
        raise UserError("rope_embed.periods are not DINOv3's (base 100): rotary positions of another kind")
    return True


def _options(
    trunk: dict[str, Tensor], prefix: str, stated_heads: int | None, rotary: bool
) -> tuple[dict[str, Any], list[str]]:
    """Options of timm's network, and remarks on what had to be assumed. Splits off what positions a token has."""
    width, patch = _width(trunk), int(trunk[PATCHES].shape[2])
    depth = _depth(trunk)
    hidden = trunk.get("blocks.0.mlp.fc1.weight", trunk.get("blocks.0.mlp.fc1_g.weight"))
    rows = int(hidden.shape[0]) if hidden is not None and hidden.ndim == 2 else 4 * width
    options: dict[str, Any] = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "mlp_ratio": _ratio(width, rows),
        "dynamic_img_size": True,
    }
    options["num_heads"], remarks = _heads(trunk, width, prefix, stated_heads, rotary)
    class_token, registers = "cls_token" in trunk, _registers(trunk, width)
    options["class_token"] = class_token
    options["qk_norm"] = "blocks.0.attn.q_norm.weight" in trunk
    options["num_reg_tokens" if rotary else "reg_tokens"] = registers
    options["global_pool"] = "token" if class_token else "avg"
    if rotary:
        options["qkv_bias"] = "blocks.0.attn.q_bias" in trunk
        # timm has gate and value apart only where the width is to be a multiple of something
        options |= {"swiglu_mlp": "blocks.0.mlp.fc1_g.weight" in trunk, "swiglu_align_to": 1}
    else:
        options["qkv_bias"] = "blocks.0.attn.qkv.bias" in trunk
        options["init_values"] = 1e-5 if "blocks.0.ls1.gamma" in trunk else None
        options["pre_norm"] = "norm_pre.weight" in trunk
        options["fc_norm"] = "fc_norm.weight" in trunk
        options["final_norm"] = "norm.weight" in trunk or "fc_norm.weight" in trunk
        if options["fc_norm"]:
            options["global_pool"] = "avg"
        options |= _positions(trunk, patch, class_token, registers)
    return options, remarks


def _registers(trunk: Mapping[str, Tensor], width: int) -> int:
    tokens = trunk.get("reg_token")
    if tokens is None:
        return 0
    if tokens.ndim != 3 or tokens.shape[0] != 1 or tokens.shape[2] != width:
        raise UserError(f"its registers are {dimensions(tuple(tokens.shape))}, not 1 x R x {width}")
    return int(tokens.shape[1])


def _depth(trunk: Iterable[str]) -> int:
    numbers = {int(match[1]) for name in trunk if (match := re.match(r"blocks\.(\d+)\.", name))}
    if numbers != set(range(len(numbers))):
        raise UserError(f"its blocks are numbered {sorted(numbers)[:4]}...: some of them are missing")
    return len(numbers)


def _ratio(width: int, hidden: int) -> float:
    """The ratio from which timm computes `hidden` = int(width * ratio)."""
    ratio = hidden / width
    while int(width * ratio) < hidden:
        ratio *= 1 + 1e-12
    return ratio


def _heads(
    trunk: Mapping[str, Tensor], width: int, prefix: str, stated: int | None, rotary: bool
) -> tuple[int, list[str]]:
    if stated is not None:
        if stated < 1 or width % stated:
            raise UserError(f"states {stated} attention heads, by which its width {width} cannot be divided")
        return stated, []
    norm = trunk.get("blocks.0.attn.q_norm.weight")
    if norm is not None and norm.ndim == 1 and 0 < norm.shape[0] <= width and width % norm.shape[0] == 0:
        return width // int(norm.shape[0]), []
    if width == 384 and (
        "base_encoder" in prefix or ("momentum_encoder" in prefix and _is_moco(trunk)) or _is_moco(trunk)
    ):
        return 12, ["12 attention heads, as MoCo v3's ViT-S has them"]
    heads = width // 64 if rotary and width <= 1280 else HEADS.get(width, width // 64 if width % 64 == 0 else 0)
    if not heads:
        raise UserError(
            f"a vision transformer of width {width}: its number of attention heads is neither stated nor that of a "
            "published network; put num_attention_heads into a config.json next to it"
        )
    return heads, [f"{heads} attention heads, as networks of width {width} have: the file does not state them"]


def _is_moco(trunk: Mapping[str, Tensor]) -> bool:
    """Whether positions are fixed as MoCo v3 has them: zero for the class token, sines of the row first."""
    table = trunk.get("pos_embed")
    if table is None or table.ndim != 3 or table.shape[1] < 5 or table.shape[2] % 4 or not table.is_floating_point():
        return False
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side != table.shape[1] - 1 or table[0, 0].any():
        return False
    angles = torch.arange(side) * 1.0
    return bool(torch.allclose(table[0, 1:, 0].float(), angles.sin().repeat_interleave(side), atol=1e-3))


def _positions(trunk: dict[str, Tensor], patch: int, class_token: bool, registers: int) -> dict[str, Any]:
    """The grid of the position embeddings, and which tokens beside the patches have any.

    DINOv2 adds its registers after the positions, timm's form of it has a class token that holds its position.
    """
    table = trunk.get("pos_embed")
    if table is None:
        raise UserError("a vision transformer without position embeddings is not supported")
    if table.ndim != 3 or table.shape[0] != 1 or table.shape[2] != trunk[PATCHES].shape[0]:
        raise UserError(f"pos_embed is {dimensions(tuple(table.shape))}, not one row per token")
    count, no_embed_class = int(table.shape[1]), False
    if class_token and tuple(trunk["cls_token"].shape) != (1, 1, table.shape[2]):
        raise UserError(f"cls_token is {dimensions(tuple(trunk['cls_token'].shape))}, not one token")
    if registers and class_token and _is_square(count - 1) and not _is_square(count):
        trunk["cls_token"] = trunk["cls_token"] + table[:, :1]
        trunk["pos_embed"], count, no_embed_class = table[:, 1:], count - 1, True
    elif _is_square(count):
        no_embed_class = class_token or registers > 0
    elif _is_square(count - class_token - registers):
        count -= class_token + registers
    else:
        raise UserError(
            f"pos_embed has {count} rows, not those of a square grid of patches with {int(class_token)} class tokens "
            f"and {registers} registers; position embeddings of other grids are not supported"
        )
    return {"img_size": patch * round(count**0.5), "no_embed_class": no_embed_class}


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _architecture(trunk: Mapping[str, Tensor], options: dict[str, Any], rotary: bool) -> str:
    """timm's name of the nearest network; the options say the rest."""
    if rotary:
        return "timm:vit_small_patch16_dinov3" + ("_qkvb" if options["qkv_bias"] else "")
    fc1, fc2 = trunk.get("blocks.0.mlp.fc1.weight"), trunk.get("blocks.0.mlp.fc2.weight")
    if fc1 is not None and fc2 is not None and fc1.ndim == fc2.ndim == 2 and fc1.shape[0] == 2 * fc2.shape[1]:
        return "timm:vit_giant_patch14_dinov2"  # SwiGLU
    size = NAMES.get((options["embed_dim"], options["depth"]), "base")
    return f"timm:vit_{size}_patch{14 if size == 'huge' else 16}_224"
