"""Detectron2's ViTDet backbone, and a plain frozen one, built from a config in Detectron2's usual form.

Detectron2 configures its ViT and SimpleFeaturePyramid by Python files; the suite's protocols are in its YAML form, so
the arguments have keys here: MODEL.VIT, INPUT.LSJ and SOLVER.LAYER_DECAY. Both give the same model (tested).
"""

import json
from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from transfer.vit_structure import VitStructure, timm_vit

if TYPE_CHECKING:
    from detectron2.config import CfgNode

VITDET, FROZEN_VIT = "build_vitdet_backbone", "build_frozen_vit_backbone"
"""Values of MODEL.BACKBONE.NAME."""
STRUCTURE_KEYS = tuple(
    f"MODEL.VIT.{key}"
    for key in (
        "NAME",
        "HEADS",
        "DIM",
        "DEPTH",
        "MLP_RATIO",
        "QKV_BIAS",
        "NORM_EPS",
        "PATCH",
        "GRID",
        "PREFIX_POSITIONS",
    )
)
"""The checkpoint's; a protocol may state what its source had."""
LARGEST_STRIDE, SMALLEST_STRIDE = 32, 4
"""Of the pyramid, before its last level."""
IN_FEATURE = "last_feat"


def has_vit(settings: Mapping[str, Any]) -> bool:
    """Whether a protocol's settings (`Protocol.detectron2`) are of a detector with a vision transformer."""
    return "VIT" in (settings.get("MODEL") or {})


def cfg_has_vit(cfg: "CfgNode") -> bool:
    return "VIT" in cfg.MODEL


def add_vit_keys(cfg: "CfgNode") -> None:
    """Adds the keys of vision transformers with the values of Detectron2's projects/ViTDet for ViT-B."""
    from detectron2.config import CfgNode

    cfg.MODEL.VIT = CfgNode({
        "NAME": "",                # timm's name of the network; of FROZEN_VIT, what is built
        "OPTIONS": [],             # of timm.create_model: key=value, with the value as JSON
        "HEADS": 12,               # of attention
        "DIM": 768,
        "DEPTH": 12,
        "MLP_RATIO": 4.0,
        "QKV_BIAS": True,
        "NORM_EPS": 1e-6,
        "PATCH": 16,               # pixels
        "GRID": 14,                # side of the square of position embeddings, patches
        "PREFIX_POSITIONS": 1,     # entries of pos_embed before the patches'
        "DROP_PATH": 0.1,          # of the last block; from 0 in the first
        "WINDOW": 14,              # patches; 0: global attention everywhere
        "GLOBAL_BLOCKS": 4,        # blocks with global attention, evenly spread, the last one among them
        "REL_POS": True,
        "IMAGE_SIZE": 1024,        # for which relative positions are made, pixels
        "SQUARE_PAD": 1024,        # every image is padded to this square; 0: to multiples of 32 alone
    })  # fmt: skip
    cfg.INPUT.LSJ = CfgNode({"ENABLED": False, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0, "SIZE": 1024})
    cfg.SOLVER.LAYER_DECAY = 1.0


def set_structure(cfg: "CfgNode", arch: str, options: Mapping[str, Any], structure: VitStructure) -> None:
    """Enters the checkpoint's network, and its sizes."""
    node = cfg.MODEL.VIT
    node.NAME = arch
    node.OPTIONS = [f"{key}={json.dumps(value)}" for key, value in sorted(options.items())]
    node.DIM, node.DEPTH, node.HEADS = structure.dim, structure.depth, structure.heads
    node.MLP_RATIO, node.QKV_BIAS, node.NORM_EPS = structure.mlp_ratio, structure.qkv_bias, structure.norm_eps
    node.PATCH, node.GRID = structure.detection_patch, structure.grid
    node.PREFIX_POSITIONS = structure.prefix_positions


def global_blocks(depth: int, count: int) -> list[int]:
    """Indices of the blocks with global attention: (12, 4) -> 2, 5, 8, 11, as published; (24, 4) -> 5, 11, 17, 23."""
    return sorted({round(depth * (number + 1) / count) - 1 for number in range(count)}) if count else []


@cache
def register_backbones() -> None:
    """Makes `VITDET` and `FROZEN_VIT` known to Detectron2."""
    from detectron2.modeling import BACKBONE_REGISTRY

    def build_vitdet_backbone(cfg: Any, input_shape: Any) -> Any:
        """Detectron2's ViT with window attention, under its SimpleFeaturePyramid."""
        return _pyramid(cfg, detectron2_vit(cfg))

    def build_frozen_vit_backbone(cfg: Any, input_shape: Any) -> Any:
        """timm's ViT, not trained, under Detectron2's SimpleFeaturePyramid."""
        return _pyramid(cfg, frozen_vit(cfg))

    for build in (build_vitdet_backbone, build_frozen_vit_backbone):
        BACKBONE_REGISTRY.register(build)


def detectron2_vit(cfg: "CfgNode") -> Any:
    """Detectron2's ViT of MODEL.VIT: [B, 3, H, W] -> {"last_feat": [B, D, H / P, W / P]}."""
    from detectron2.modeling import ViT
    from torch import nn

    node = cfg.MODEL.VIT
    everywhere = set(global_blocks(node.DEPTH, node.GLOBAL_BLOCKS))
    return ViT(
        img_size=node.IMAGE_SIZE,
        patch_size=node.PATCH,
        embed_dim=node.DIM,
        depth=node.DEPTH,
        num_heads=node.HEADS,
        mlp_ratio=node.MLP_RATIO,
        qkv_bias=node.QKV_BIAS,
        drop_path_rate=node.DROP_PATH,
        norm_layer=partial(nn.LayerNorm, eps=node.NORM_EPS),
        use_rel_pos=node.REL_POS,
        window_size=node.WINDOW,
        window_block_indexes=[block for block in range(node.DEPTH) if block not in everywhere] if node.WINDOW else [],
        pretrain_img_size=node.GRID * node.PATCH,
        pretrain_use_cls_token=bool(node.PREFIX_POSITIONS),
        out_feature=IN_FEATURE,
    )


def frozen_vit(cfg: "CfgNode") -> Any:
    """timm's own module as a Detectron2 backbone, as it was pretrained: all tokens, global attention, final norm."""
    node = cfg.MODEL.VIT
    options = {key: json.loads(value) for key, _, value in (line.partition("=") for line in node.OPTIONS)}
    network = timm_vit(node.NAME, options, grid=node.GRID, patch=node.PATCH, layer_scale=False)
    return frozen_backbone(network)


def frozen_backbone(network: Any) -> Any:
    """Wraps a module of timm: its weights are not trained, and it stays in evaluation mode (no drop path)."""
    import torch
    from detectron2.modeling import Backbone

    class FrozenVit(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.network = network.requires_grad_(False)
            self._out_features = [IN_FEATURE]
            self._out_feature_channels = {IN_FEATURE: network.embed_dim}
            self._out_feature_strides = {IN_FEATURE: int(network.patch_embed.patch_size[0])}

        def train(self, mode: bool = True) -> Any:
            return super().train(False)

        @torch.no_grad()
        def forward(self, images: Any) -> Any:
            rows, columns = (side // self._out_feature_strides[IN_FEATURE] for side in images.shape[-2:])
            tokens = self.network.forward_features(images)[:, self.network.num_prefix_tokens :]
            return {IN_FEATURE: tokens.transpose(1, 2).reshape(len(images), -1, rows, columns)}

    return FrozenVit()


def _pyramid(cfg: "CfgNode", net: Any) -> Any:
    """Detectron2's SimpleFeaturePyramid with levels p2 to p6 (strides 4 to 64), whatever the patches are.

    Patches of 16 pixels have the published scales 4, 2, 1, 0.5 and one level by max-pooling. Smaller patches need no
    scale above patch / 4; SimpleFeaturePyramid has none below 0.5, and what is missing comes by max-pooling, too.
    """
    from detectron2.modeling import SimpleFeaturePyramid
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    class Pyramid(SimpleFeaturePyramid):
        """Detectron2's, but for images that are no multiple of its largest stride: it pads squares alone."""

        @property
        def size_divisibility(self) -> int:
            return LARGEST_STRIDE

        @property
        def padding_constraints(self) -> dict[str, int]:
            return {"size_divisibility": LARGEST_STRIDE, "square_size": self._square_pad}

    class MaxPoolLevels(LastLevelMaxPool):
        def __init__(self, level: int, count: int) -> None:
            super().__init__()
            self.num_levels, self.in_feature = count, f"p{level}"

        def forward(self, x: Any) -> list[Any]:
            levels = []
            for _ in range(self.num_levels):
                (x,) = super().forward(x)
                levels.append(x)
            return levels

    patch = net.output_shape()[IN_FEATURE].stride
    scales = [scale for scale in (4.0, 2.0, 1.0, 0.5) if SMALLEST_STRIDE <= patch / scale <= LARGEST_STRIDE]
    last = int(patch / scales[-1]).bit_length() - 1
    return Pyramid(
        net=net,
        in_feature=IN_FEATURE,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=scales,
        top_block=MaxPoolLevels(last, 6 - last),
        norm=cfg.MODEL.FPN.NORM,
        square_pad=cfg.MODEL.VIT.SQUARE_PAD,
    )
