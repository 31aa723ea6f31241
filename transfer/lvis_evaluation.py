"""Evaluates by the `lvis` package, as Detectron2's evaluator does: AP, also of rare, common and frequent classes."""

import itertools
from collections.abc import Sequence
from typing import Any

from transfer.old_numpy import OldNumpy

MOST_DETECTIONS = 300
"""Per image, as LVIS says."""
RARITY = ("APr", "APc", "APf")


def lvis_api() -> Any:
    """The package lvis, able to run on today's numpy.

    Raises:
        UserError: it is not installed.
    """
    try:
        import lvis
        import lvis.eval
    except ImportError as error:
        from whitebench.errors import UserError

        raise UserError("LVIS's annotations need the package lvis: pip install --no-deps lvis") from error
    lvis.eval.np = OldNumpy()
    return lvis


def lvis_evaluator(name: str, images: list[dict[str, Any]], tasks: tuple[str, ...], finish: Any) -> Any:
    """Detectron2's evaluator over these images alone.

    Args:
        name: of the annotations, as registered with Detectron2.
        tasks: "bbox", "segm".
        finish: takes the evaluator, when its results are there; what `evaluation` returns.
    """
    api = lvis_api()
    from detectron2.evaluation import LVISEvaluator
    from detectron2.utils import comm

    ids = {image["image_id"] for image in images}

    class Evaluator(LVISEvaluator):
        def __init__(self) -> None:
            super().__init__(name, tasks, distributed=comm.get_world_size() > 1, max_dets_per_image=MOST_DETECTIONS)
            self.tasks = tasks
            self.truth = self.__dict__["_lvis_api"]
            content = self.truth.dataset
            content["images"] = [image for image in content["images"] if image["id"] in ids]
            content["annotations"] = [item for item in content["annotations"] if item["image_id"] in ids]
            self.truth._create_index()

        def _eval_predictions(self, predictions: Any) -> None:
            self.detections = list(itertools.chain(*(each["instances"] for each in predictions)))
            for item in self.detections:
                item["category_id"] += 1  # LVIS counts from 1
            self.evaluations = {task: self._judge(task) for task in tasks} if self.detections else {}

        def _judge(self, task: str) -> Any:
            """As Detectron2 does: masks are judged by their own areas, without boxes."""
            keys = ("image_id", "category_id", "score", "bbox" if task == "bbox" else "segmentation")
            detections = [{key: item[key] for key in keys} for item in self.detections]
            judged = api.LVISEval(self.truth, api.LVISResults(self.truth, detections, max_dets=MOST_DETECTIONS), task)
            judged.run()
            return judged

        def evaluation(self) -> Any:
            self.evaluate()
            return finish(self) if comm.is_main_process() else None

    return Evaluator()


def lvis_values(evaluation: Any, metrics: Sequence[str]) -> dict[str, float]:
    """In per cent; NaN where there is nothing to find."""
    results = evaluation.get_results()
    return {metric: 100 * float(results[metric]) if results[metric] >= 0 else float("nan") for metric in metrics}


def nothing_found(truth: Any, occurs: Any, metrics: Sequence[str]) -> dict[str, float]:
    """Metrics of a detector that finds nothing: 0 where there is something to find, NaN where not.

    Args:
        occurs: takes a metric and the areas of all objects.
    """
    areas = [item["area"] for item in truth.dataset["annotations"]]
    classes = {item["category_id"] for item in truth.dataset["annotations"]}
    frequencies = {item["frequency"] for item in truth.dataset["categories"] if item["id"] in classes}
    values = {metric: 0.0 if occurs(metric, areas) else float("nan") for metric in metrics}
    return values | {rarity: 0.0 if rarity[-1] in frequencies else float("nan") for rarity in RARITY}
