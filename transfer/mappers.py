"""What prepares images for Detectron2's models: its own mapper, with large-scale jittering if asked for."""

import importlib.util
from typing import TYPE_CHECKING, Any

from whitebench.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def training_mapper(cfg: "CfgNode") -> Any:
    """Detectron2's DatasetMapper for training."""
    from detectron2.data import DatasetMapper

    if not ("LSJ" in cfg.INPUT and cfg.INPUT.LSJ.ENABLED):
        return DatasetMapper(cfg, is_train=True)
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon" and importlib.util.find_spec("shapely") is None:
        raise UserError(
            "large-scale jittering cuts polygons, for which Detectron2 needs the package shapely: pip install shapely"
        )
    arguments = DatasetMapper.from_config(cfg, is_train=True)
    arguments["augmentations"] = jittering(cfg)
    arguments["recompute_boxes"] = cfg.MODEL.MASK_ON  # of objects that the crop cuts
    return DatasetMapper(**arguments)


def jittering(cfg: "CfgNode") -> list[Any]:
    """Large-scale jittering as in Detectron2's projects/ViTDet: flip, resize by a random factor, crop, without padding.

    Source: Detectron2's projects/ViTDet/configs/common/coco_loader_lsj.py; arXiv 2012.07177.
    """
    from detectron2.data import transforms

    node, size = cfg.INPUT.LSJ, cfg.INPUT.LSJ.SIZE
    steps: list[Any] = []
    if cfg.INPUT.RANDOM_FLIP != "none":
        vertical = cfg.INPUT.RANDOM_FLIP == "vertical"
        steps.append(transforms.RandomFlip(horizontal=not vertical, vertical=vertical))
    steps.append(transforms.ResizeScale(node.MIN_SCALE, node.MAX_SCALE, target_height=size, target_width=size))
    steps.append(transforms.FixedSizeCrop(crop_size=(size, size), pad=False))
    return steps
