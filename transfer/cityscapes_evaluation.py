"""Cityscapes' own metric of masks, by its package, next to COCO's of the same detections.

mask_AP and mask_AP50 are those of `cityscapesscripts`, as Detectron2's CityscapesInstanceEvaluator has them; box_* and
coco_mask_* are COCO's. Cityscapes has no metric of boxes.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transfer.old_numpy import OldNumpy
from whitebench.errors import UserError

OFFICIAL = ("AP", "AP50")


def _write_nothing(content: Any, name: str) -> None:
    """In place of what writes `matches.json` to the working folder, and fails on today's numpy."""


def cityscapes_evaluator(coco: Any, truths: list[Path], classes: tuple[str, ...], add: Callable[..., Any]) -> Any:
    """An evaluator that runs both.

    Args:
        coco: the evaluator by COCO's metric.
        truths: files of instance ids of the images that are evaluated.
        classes: in the order of the detector's.
        add: takes COCO's evaluation and the official values by their names, in per cent; what `evaluation` returns.
    Raises:
        UserError: the package is not installed.
    """
    try:
        import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as official
    except ImportError as error:
        raise UserError(
            "Cityscapes' metric needs its package: pip install --no-deps cityscapesscripts pyquaternion"
        ) from error
    official.np = OldNumpy()
    official.writeDict2JSON = _write_nothing
    from detectron2.evaluation import CityscapesInstanceEvaluator
    from detectron2.utils import comm

    class Evaluator(CityscapesInstanceEvaluator):
        def __init__(self) -> None:
            super().__init__("cityscapes")
            self._metadata = SimpleNamespace(thing_classes=classes)

        def reset(self) -> None:
            super().reset()
            coco.reset()

        def process(self, inputs: Any, outputs: Any) -> None:
            super().process(inputs, outputs)
            coco.process(inputs, outputs)

        def evaluation(self) -> Any:
            with tempfile.TemporaryDirectory() as folder:
                for path in truths:  # Detectron2's evaluator takes all that there are in a folder
                    (Path(folder) / path.parent.name).mkdir(exist_ok=True)
                    (Path(folder) / path.parent.name / path.name).symlink_to(path.resolve())
                self._metadata.gt_dir = folder
                results = self.evaluate()
            whole = coco.evaluation()
            if not comm.is_main_process():
                return None
            return add(whole, {name: float(results["segm"][name]) for name in OFFICIAL})

    return Evaluator()
