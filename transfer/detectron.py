"""The real Detectron2, as this suite uses it: quiet, with the head that the papers add, or a line if it is missing."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from pretrain.architectures import resnet_depth, resnet_width
from transfer import narrow_resnet
from whitebench.errors import UserError

FULL_WIDTH = 64
FROZEN = 5
"""MODEL.BACKBONE.FREEZE_AT of a backbone that is not trained at all: stem to res5."""
INSTALL = (
    "Detectron2 is not installed: 'make env' installs it for a CPU or a GPU, but for its own compiled operators; with "
    "them, where there is a compiler (and CUDA's nvcc, for a GPU): "
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
)


@cache
def require_detectron2() -> None:
    """Imports Detectron2 without its warnings about other packages; registers `Res5ROIHeadsExtraNorm` and ViTs.

    Raises:
        UserError: it is not installed, or its own needs are not.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise UserError(INSTALL)
    for module in ("detectron2", "fvcore", "torch", "iopath"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
        warnings.filterwarnings("ignore", category=UserWarning, module=module)
    warnings.filterwarnings("ignore", category=FutureWarning, module="timm")  # Detectron2's ViT imports by an old name
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    try:
        import detectron2.modeling  # noqa: F401
    except ImportError as error:
        raise UserError(f"Detectron2 does not import ({error}); 'make doctor' says what is missing") from error
    from transfer.vit_backbones import register_backbones

    _register_extra_norm()
    register_backbones()


def _register_extra_norm() -> None:
    from detectron2.layers import get_norm
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads

    class Res5ROIHeadsExtraNorm(Res5ROIHeads):
        """C4's head with a norm after res5, as in MoCo's protocol (its section 4.2).

        Where the backbone is frozen as a whole (FREEZE_AT 5), so is res5, which C4 has in its head.
        """

        @classmethod
        def _build_res5_block(cls, cfg: Any) -> tuple[Any, int]:
            blocks, channels = super()._build_res5_block(cfg)
            if cfg.MODEL.BACKBONE.FREEZE_AT >= FROZEN:
                for block in blocks:
                    block.freeze()
            blocks.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
            return blocks, channels

    if "Res5ROIHeadsExtraNorm" not in ROI_HEADS_REGISTRY:
        ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)


def detectron2_resnet(arch: str) -> Any:
    """Detectron2's own ResNet of this depth, stem to res5."""
    require_detectron2()
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_backbone

    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if arch in ("resnet18", "resnet34") else 256
    set_resnet(cfg, arch)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = "BN", False
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return build_backbone(cfg, ShapeSpec(channels=3))


def set_resnet(cfg: Any, arch: str) -> None:
    """Depth and, of a narrow ResNet, channels and builder."""
    resnets, width = cfg.MODEL.RESNETS, resnet_width(arch)
    resnets.DEPTH = resnet_depth(arch)
    if width != FULL_WIDTH:
        narrow_resnet.register()
        resnets.STEM_OUT_CHANNELS = resnets.RES2_OUT_CHANNELS = width
        cfg.MODEL.BACKBONE.NAME = narrow_resnet.NAMES[cfg.MODEL.BACKBONE.NAME]


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Loggers of these names report errors only."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
