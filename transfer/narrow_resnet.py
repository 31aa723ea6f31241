"""Detectron2's ResNet with fewer channels than its own builder takes, out of its own blocks.

`build_resnet_backbone` insists on 64 channels for basic blocks; everything else is as there.
"""

from typing import Any

NAMES = {
    "build_resnet_backbone": "build_narrow_resnet_backbone",
    "build_resnet_fpn_backbone": "build_narrow_resnet_fpn_backbone",
}
"""Detectron2's builders, and those that take their place."""
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def build_narrow_resnet_backbone(cfg: Any, input_shape: Any) -> Any:
    """As Detectron2's `build_resnet_backbone` for basic blocks, RES2_OUT_CHANNELS of any size."""
    from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

    settings = cfg.MODEL.RESNETS
    stem = BasicStem(input_shape.channels, settings.STEM_OUT_CHANNELS, settings.NORM)
    stages, channels, width = [], settings.STEM_OUT_CHANNELS, settings.RES2_OUT_CHANNELS
    for number, blocks in enumerate(BLOCKS[settings.DEPTH]):
        strides = [1 if number == 0 else 2, *[1] * (blocks - 1)]
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                blocks,
                stride_per_block=strides,
                in_channels=channels,
                out_channels=width,
                norm=settings.NORM,
            )
        )
        channels, width = width, 2 * width
    return ResNet(stem, stages, out_features=settings.OUT_FEATURES).freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


def build_narrow_resnet_fpn_backbone(cfg: Any, input_shape: Any) -> Any:
    """As Detectron2's `build_resnet_fpn_backbone`, on the narrow ResNet."""
    from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

    return FPN(
        bottom_up=build_narrow_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def register() -> None:
    """Makes both builders known to Detectron2, once."""
    from detectron2.modeling.backbone import BACKBONE_REGISTRY

    for builder in (build_narrow_resnet_backbone, build_narrow_resnet_fpn_backbone):
        if builder.__name__ not in BACKBONE_REGISTRY:
            BACKBONE_REGISTRY.register(builder)
