"""A detector that knows the annotations, to test evaluation with."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from transfer.convert import Converted
from transfer.detection_set import read_data, register
from transfer.evaluation import Evaluation, evaluate
from transfer.protocol import build_cfg, load_protocol, resolve

WEIGHTS = Converted({}, {"arch": "resnet50", "mean": [0.5] * 3, "std": [0.2] * 3, "parent": "x"})


class Oracle(nn.Module):
    """A detector that finds every object, but for a share `lost`, with boxes moved by `blur` pixels."""

    def __init__(self, truths: list[dict[str, Any]], blur: float = 0.0, lost: float = 0.0, masks: bool = True) -> None:
        super().__init__()
        self.truths, self.masks = {truth["file_name"]: truth for truth in truths}, masks
        self.blur, self.lost = blur, lost

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"instances": self.detect(image)} for image in batch]

    def detect(self, image: dict[str, Any]) -> Any:
        from detectron2.structures import Boxes, BoxMode, Instances

        draw = np.random.default_rng(zlib.crc32(Path(image["file_name"]).name.encode()))  # alike in every process
        boxes, classes = [], []
        for item in self.truths[image["file_name"]]["annotations"]:
            box = np.array(BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS), dtype=float)
            for _ in range(2 if self.blur else 1):  # a second one is a false alarm, or the better of the two
                if draw.random() >= self.lost:
                    boxes.append(box + draw.normal(0, self.blur, 4) if self.blur else box)
                    classes.append(item["category_id"])
        instances = Instances((image["height"], image["width"]))
        instances.pred_boxes = Boxes(torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32))
        instances.pred_classes = torch.tensor(classes, dtype=torch.long)
        instances.scores = torch.tensor(draw.random(len(boxes)), dtype=torch.float32)
        if self.masks:
            filled = torch.zeros(len(boxes), image["height"], image["width"], dtype=torch.bool)
            for mask, (left, top, right, bottom) in zip(filled, instances.pred_boxes.tensor.round().int().clamp(min=0)):
                mask[top:bottom, left:right] = True
            instances.pred_masks = filled
        return instances


def evaluate_oracle(
    folder: Path, protocol: str = "c4-1x", count: int | None = None, **errors: float
) -> tuple[Evaluation, Any]:
    """The evaluation of an `Oracle` on a detection set; the images and the set's name in Detectron2.

    Args:
        count: this many images only. errors: `blur` and `lost` of the oracle.
    """
    evaluation, images_and_name = evaluate_oracle_in_group(folder, protocol, count, **errors)
    assert evaluation is not None
    return evaluation, images_and_name


def evaluate_oracle_in_group(
    folder: Path, protocol: str = "c4-1x", count: int | None = None, **errors: float
) -> tuple[Evaluation | None, Any]:
    """As `evaluate_oracle`, in one of several processes: the evaluation is None in those other than the first."""
    from transfer.trainer import dataset_images

    data = read_data(folder)
    cfg = build_cfg(load_protocol(protocol), resolve(load_protocol(protocol), image_size=64), WEIGHTS)
    _, name = register(data)
    images = dataset_images([name], False)[:count]
    oracle = Oracle(images, masks=cfg.MODEL.MASK_ON, **errors)
    return evaluate(oracle, cfg, data, name, images, pictures=3), (images, name)
