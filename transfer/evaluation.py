"""Judges a detector by Detectron2's own evaluators; keeps its detections and the curves behind the AP.

On VOC, box_AP, box_AP50 and box_AP75 are those of Detectron2's PascalVOCDetectionEvaluator, as in MoCo's protocol (on
VOC 2007: 11 points of recall, here for each of COCO's ten overlaps); coco_box_AP and so on are COCO's metric of the
same detections, by pycocotools, with difficult objects ignored.
"""

import contextlib
import io
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pretrain.repeatable import derive_seed
from transfer.data import DetectionSet
from transfer.detectron import quiet
from transfer.voc_data import VocSet
from whitebench.files import write_atomically

if TYPE_CHECKING:
    from detectron2.config import CfgNode

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SIZES = {"APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, math.inf)}
"""COCO's areas of small, medium and large objects, square pixels."""
TASKS = {"bbox": "box", "segm": "mask"}
DETECTIONS = "detections.json"
Metrics = dict[str, float | None]
Curves = dict[str, dict[str, list[float]]]


@dataclass
class Evaluation:
    metrics: Metrics
    """In per cent: box_AP, box_AP50, ..., mask_APl; None where there is nothing to find."""
    detections: list[dict[str, Any]]
    """In COCO's form of results: image_id, category_id, bbox [x, y, w, h], score, segmentation."""
    curves: Curves
    """{"box": {"AP": precision at recall 0, 0.01, ..., 1, ...}}, means over classes; AP is the mean over overlaps."""
    shown: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    """Some images and what was found in them, for pictures."""

    def write(self, folder: Path) -> Path:
        """Leaves the detections in `folder`, as pycocotools' `loadRes` takes them."""
        write_atomically(folder / DETECTIONS, json.dumps(self.detections).encode())
        return folder / DETECTIONS


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    cfg: "CfgNode",
    data: DetectionSet,
    name: str,
    images: list[dict[str, Any]],
    folder: Path,
    workers: int = 0,
    pictures: int = 0,
    each: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation | None:
    """Shows `model` the images, and judges what it finds. With several processes each sees its share.

    Args:
        name: of the validation part, as registered with Detectron2; images: of it, or a part of them.
        folder: for files on the way.
        pictures: so many images, evenly spread, are kept with their detections.
        each: told after each image how many are done, and of how many.
    Returns:
        None in processes other than the first.
    """
    from detectron2.data import DatasetMapper, build_detection_test_loader
    from detectron2.utils import comm

    kept = (
        {image["file_name"] for image in images[:: max(1, len(images) // pictures)][:pictures]} if pictures else set()
    )
    judge = _judge(data, name, images, folder, cfg.MODEL.MASK_ON)
    loader = build_detection_test_loader(images, mapper=DatasetMapper(cfg, is_train=False), num_workers=workers)
    shown = []
    torch.manual_seed(derive_seed(cfg.SEED, "evaluation"))
    model.eval()
    judge.reset()
    for done, batch in enumerate(loader, 1):
        found = model(batch)
        judge.process(batch, found)
        shown += [(i, f["instances"].to("cpu")) for i, f in zip(batch, found) if i["file_name"] in kept]
        each(done, len(loader))
    with quiet("detectron2", "fvcore"), contextlib.redirect_stdout(io.StringIO()):
        whole: Evaluation | None = judge.judged()
    if whole is None or not comm.is_main_process():
        return None
    whole.shown = shown
    return whole


def _judge(data: DetectionSet, name: str, images: list[dict[str, Any]], folder: Path, masks: bool) -> Any:
    with quiet("detectron2", "fvcore"):
        if isinstance(data, VocSet):
            return _voc_judge(name, images, folder)
        return _coco_judge(name, images, tuple(TASKS) if masks else ("bbox",))


def _coco_judge(name: str, images: list[dict[str, Any]], tasks: tuple[str, ...]) -> Any:
    from detectron2.evaluation import COCOEvaluator
    from detectron2.utils import comm

    class Judge(COCOEvaluator):
        """Detectron2's, which keeps what it counted with."""

        def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
            self.counted: dict[str, Any] = {}
            super()._eval_predictions(predictions, img_ids=img_ids)
            self.found = list(itertools.chain(*(each["instances"] for each in predictions)))

        def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: Any = None) -> Any:
            self.counted[iou_type] = coco_eval
            return super()._derive_coco_results(coco_eval, iou_type, class_names=class_names)

        def judged(self) -> Evaluation | None:
            numbers = sorted(image["image_id"] for image in images)
            results = self.evaluate(img_ids=numbers)
            if not comm.is_main_process():
                return None
            values = {(task, metric): results[task][metric] for task in tasks for metric in METRICS}
            if all(math.isnan(value) for value in values.values()):  # a model that finds nothing at all has AP 0
                wanted = set(numbers)
                areas = [a["area"] for a in self._coco_api.dataset["annotations"] if a["image_id"] in wanted]
                values = {key: 0.0 if _occurs(key[1], areas) else math.nan for key in values}
            metrics = {f"{TASKS[task]}_{metric}": _or_none(value) for (task, metric), value in values.items()}
            curves = {TASKS[task]: _curves(counted) for task, counted in self.counted.items()}
            return Evaluation(metrics, self.found, curves)

    return Judge(name, tasks, distributed=comm.get_world_size() > 1, use_fast_impl=False)


def _voc_judge(name: str, images: list[dict[str, Any]], folder: Path) -> Any:
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json
    from detectron2.utils import comm

    class Judge(PascalVOCDetectionEvaluator):
        """Detectron2's, over these images, and COCO's beside it."""

        def reset(self) -> None:
            super().reset()
            self.found: list[dict[str, Any]] = []

        def process(self, inputs: Any, outputs: Any) -> None:
            super().process(inputs, outputs)
            for given, output in zip(inputs, outputs):
                self.found += instances_to_coco_json(output["instances"].to("cpu"), given["image_id"])

        def judged(self) -> Evaluation | None:
            listed = folder / ".images.txt"
            if comm.is_main_process():
                listed.write_text("\n".join(str(image["image_id"]) for image in images))
            self._image_set_path = str(listed)
            everything = comm.gather(self.found, dst=0)
            results = self.evaluate()
            if not comm.is_main_process():
                return None
            listed.unlink()
            found = list(itertools.chain(*everything))
            counted = _voc_by_coco(images, found, Path(self._anno_file_template), self._class_names)
            metrics = {f"box_{key}": _or_none(float(value)) for key, value in results["bbox"].items()}
            for metric, value in zip(METRICS, counted.stats if counted else [math.nan] * len(METRICS)):
                metrics[f"coco_box_{metric}"] = _or_none(100 * float(value)) if value >= 0 else None
            return Evaluation(metrics, found, {"box": _curves(counted)})

    return Judge(name)


def _voc_by_coco(images: list[dict[str, Any]], found: list[dict[str, Any]], annotations: Path, classes: Any) -> Any:
    """pycocotools' evaluation of boxes on VOC, with difficult objects as crowds: found or not, they do not count."""
    from detectron2.evaluation.pascal_voc_evaluation import parse_rec
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not found:
        return None
    truth = COCO()
    objects: list[dict[str, Any]] = []
    for image in images:
        for item in parse_rec(str(annotations).format(image["image_id"])):
            left, top, right, bottom = item["bbox"]
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            objects.append({
                "id": len(objects) + 1, "image_id": image["image_id"], "category_id": classes.index(item["name"]),
                "bbox": box, "area": box[2] * box[3], "iscrowd": int(item["difficult"]),
            })  # fmt: skip
    truth.dataset = {
        "images": [{"id": image["image_id"]} for image in images],
        "annotations": objects,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
    }
    truth.createIndex()
    counted = COCOeval(truth, truth.loadRes(found), "bbox")
    counted.evaluate()
    counted.accumulate()
    counted.summarize()
    return counted


def _curves(counted: Any) -> dict[str, list[float]]:
    """Precision at 101 recalls, means over classes that occur: of the mean over overlaps, and at 0.5 and 0.75."""
    if counted is None:
        return {}
    precision = counted.eval["precision"][:, :, :, 0, -1]  # [10 overlaps, 101 recalls, classes]; -1 where there is none
    occurring = precision[:, :, (precision >= 0).all(axis=(0, 1))]
    if not occurring.size:
        return {}
    rows = {"AP": occurring.mean(axis=0), "AP50": occurring[0], "AP75": occurring[5]}
    return {name: np.round(row.mean(axis=1), 6).tolist() for name, row in rows.items()}


def _occurs(metric: str, areas: list[float]) -> bool:
    """Whether there are objects that the metric is about."""
    low, high = SIZES.get(metric, (0, math.inf))
    return any(low <= area < high for area in areas)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
