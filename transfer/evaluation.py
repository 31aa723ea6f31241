"""Evaluates a detector by Detectron2's own evaluators; keeps its detections and the curves behind the AP.

On VOC, box_AP, box_AP50 and box_AP75 are those of Detectron2's PascalVOCDetectionEvaluator, as in MoCo's protocol (on
VOC 2007: 11 points of recall, here for each of COCO's ten overlaps); coco_box_AP and so on are COCO's metric of the
same detections, by pycocotools, with difficult objects ignored.
"""

import contextlib
import io
import itertools
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pretrain.repeatable import derive_seed
from transfer.cityscapes_content import truth_of
from transfer.cityscapes_evaluation import cityscapes_evaluator
from transfer.detection_set import DetectionSet
from transfer.detectron import quiet
from transfer.lvis_evaluation import RARITY, lvis_evaluator, lvis_values, nothing_found
from transfer.voc_set import VocSet
from transfer.voc_truth import voc_by_coco, write_truths
from transfer.voc_xml import VocImage
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
    examples: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    """Some images and their detections, for pictures."""

    def write(self, folder: Path) -> Path:
        """Writes the detections to `folder`, as pycocotools' `loadRes` takes them."""
        write_atomically(folder / DETECTIONS, json.dumps(self.detections).encode())
        return folder / DETECTIONS


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    cfg: "CfgNode",
    data: DetectionSet,
    name: str,
    images: list[dict[str, Any]],
    workers: int = 0,
    pictures: int = 0,
    after_each: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation | None:
    """Runs `model` on the images and evaluates its detections. Of several processes each takes its part.

    Args:
        name: of the validation part, as registered with Detectron2; images: of it, or a part of them.
        pictures: this many images, evenly spread, are kept with their detections.
        after_each: called after each image with the number that are done and their total.
    Returns:
        None in processes other than the first.
    """
    from detectron2.data import DatasetMapper, build_detection_test_loader
    from detectron2.utils import comm

    spread = images[:: max(1, len(images) // pictures)][:pictures] if pictures else []
    examples_of = {image["file_name"] for image in spread}
    with quiet("detectron2", "fvcore"):
        evaluator = _evaluator(data, name, images, cfg.MODEL.MASK_ON)
    loader = build_detection_test_loader(images, mapper=DatasetMapper(cfg, is_train=False), num_workers=workers)
    examples = []
    torch.manual_seed(derive_seed(cfg.SEED, "evaluation"))
    model.eval()
    evaluator.reset()
    for done, batch in enumerate(loader, 1):
        outputs = model(batch)
        evaluator.process(batch, outputs)
        examples += [
            (image, output["instances"].to("cpu"))
            for image, output in zip(batch, outputs)
            if image["file_name"] in examples_of
        ]
        after_each(done, len(loader))
    silent = np.errstate(divide="ignore", invalid="ignore")  # VOC's metric divides by the objects of a class: 0 of some
    with quiet("detectron2", "fvcore"), contextlib.redirect_stdout(io.StringIO()), silent:
        evaluation: Evaluation | None = evaluator.evaluation()
    if evaluation is None or not comm.is_main_process():
        return None
    evaluation.examples = examples
    return evaluation


def _evaluator(data: DetectionSet, name: str, images: list[dict[str, Any]], masks: bool) -> Any:
    if isinstance(data, VocSet):
        return _voc_evaluator(name, images, data)
    tasks = tuple(TASKS) if masks else ("bbox",)
    if data.form == "LVIS":
        return lvis_evaluator(name, images, tasks, _lvis_evaluation)
    if data.form == "Cityscapes" and masks:
        truths = [truth_of(data.folder, "val", Path(image["file_name"])) for image in images]
        return cityscapes_evaluator(_coco_evaluator(name, images, tasks), truths, data.categories, _with_official)
    return _coco_evaluator(name, images, tasks)


def _coco_evaluator(name: str, images: list[dict[str, Any]], tasks: tuple[str, ...]) -> Any:
    from detectron2.evaluation import COCOEvaluator
    from detectron2.utils import comm

    class Evaluator(COCOEvaluator):
        """Detectron2's, which keeps what its metrics are counted from."""

        def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
            self.coco_evals: dict[str, Any] = {}
            super()._eval_predictions(predictions, img_ids=img_ids)
            self.detections = list(itertools.chain(*(each["instances"] for each in predictions)))

        def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: Any = None) -> Any:
            self.coco_evals[iou_type] = coco_eval
            return super()._derive_coco_results(coco_eval, iou_type, class_names=class_names)

        def evaluation(self) -> Evaluation | None:
            image_ids = sorted(image["image_id"] for image in images)
            results = self.evaluate(img_ids=image_ids)
            if not comm.is_main_process():
                return None
            values = {(task, metric): results[task][metric] for task in tasks for metric in METRICS}
            if all(math.isnan(value) for value in values.values()):  # a model that finds nothing at all has AP 0
                evaluated = set(image_ids)
                areas = [a["area"] for a in self._coco_api.dataset["annotations"] if a["image_id"] in evaluated]
                values = {key: 0.0 if _occurs(key[1], areas) else math.nan for key in values}
            metrics = {f"{TASKS[task]}_{metric}": _or_none(value) for (task, metric), value in values.items()}
            curves = {TASKS[task]: _curves(coco_eval) for task, coco_eval in self.coco_evals.items()}
            return Evaluation(metrics, self.detections, curves)

    return Evaluator(name, tasks, distributed=comm.get_world_size() > 1, use_fast_impl=False)


def _with_official(evaluation: Evaluation, official: dict[str, float]) -> Evaluation:
    """Cityscapes' own values under the names of masks; COCO's of masks get a prefix."""
    for metric in METRICS:
        evaluation.metrics[f"coco_mask_{metric}"] = evaluation.metrics.pop(f"mask_{metric}")
    evaluation.metrics |= {f"mask_{metric}": _or_none(value) for metric, value in official.items()}
    return evaluation


def _lvis_evaluation(evaluator: Any) -> Evaluation:
    metrics: Metrics = {}
    curves: Curves = {}
    for task, kind in ((task, TASKS[task]) for task in evaluator.tasks):
        judged = evaluator.evaluations.get(task)
        names = (*METRICS, *RARITY)
        values = lvis_values(judged, names) if judged else nothing_found(evaluator.truth, _occurs, METRICS)
        metrics |= {f"{kind}_{metric}": _or_none(values[metric]) for metric in names}
        curves[kind] = _mean_curves(judged.eval["precision"][:, :, :, 0]) if judged else {}
    return Evaluation(metrics, evaluator.detections, curves)


def _voc_evaluator(name: str, images: list[dict[str, Any]], data: VocSet) -> Any:
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json
    from detectron2.utils import comm

    truths = [data.by_name[image["image_id"]] for image in images]
    counted = _counted_classes(data, truths)

    class Evaluator(PascalVOCDetectionEvaluator):
        """Detectron2's, over these images, and COCO's metric of the same detections.

        It reads annotations that are written for it, with the same objects: its parser stops at a missing pose or a
        decimal.
        """

        def __init__(self) -> None:
            super().__init__(name)
            self._is_2007 = data.is_2007
            self._class_names = [f"class{number}" for number in counted]

        def reset(self) -> None:
            super().reset()
            self.detections: list[dict[str, Any]] = []

        def process(self, inputs: Any, outputs: Any) -> None:
            super().process(inputs, outputs)
            for image, output in zip(inputs, outputs):
                self.detections += instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])

        def evaluation(self) -> Evaluation | None:
            with tempfile.TemporaryDirectory() as folder:
                self._anno_file_template = str(Path(folder) / "{}.xml")
                self._image_set_path = str(Path(folder) / "images.txt")
                if comm.is_main_process():
                    write_truths(Path(folder), truths, data.categories)
                by_class = self.__dict__["_predictions"]
                self.__dict__["_predictions"] = {new: by_class[old] for new, old in enumerate(counted)}
                gathered = comm.gather(self.detections, dst=0)
                results = self.evaluate() if counted else {"bbox": dict.fromkeys(("AP", "AP50", "AP75"), math.nan)}
            if not comm.is_main_process():
                return None
            detections = list(itertools.chain(*gathered))
            coco_eval = voc_by_coco(truths, detections, data.categories)
            metrics = {f"box_{key}": _or_none(float(value)) for key, value in results["bbox"].items()}
            for metric, value in zip(METRICS, coco_eval.stats if coco_eval else [math.nan] * len(METRICS)):
                metrics[f"coco_box_{metric}"] = _or_none(100 * float(value)) if value >= 0 else None
            return Evaluation(metrics, detections, {"box": _curves(coco_eval)})

    return Evaluator()


def _counted_classes(data: VocSet, truths: list[VocImage]) -> list[int]:
    """Classes over which VOC's metric is a mean.

    Of VOC 2007 all, as published. The metric of later years is not defined for a class without objects, which other
    sets, or parts of one, may have.
    """
    occurring = {item.name for image in truths for item in image.objects if not item.difficult}
    return [number for number, name in enumerate(data.categories) if data.is_2007 or name in occurring]


def _curves(coco_eval: Any) -> dict[str, list[float]]:
    """Precision at 101 recalls, means over classes that occur: of the mean over overlaps, and at 0.5 and 0.75."""
    if coco_eval is None:
        return {}
    return _mean_curves(coco_eval.eval["precision"][:, :, :, 0, -1])


def _mean_curves(precision: Any) -> dict[str, list[float]]:
    """Of precision by [10 overlaps, 101 recalls, classes]; -1: none of a class."""
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
