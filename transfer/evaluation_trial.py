"""Tries, before training, what evaluation will read: in a process of its own that can be ended.

pycocotools' C code loops for ever on some broken masks, and neither Ctrl-C nor SIGTERM ends it. Our checks find the
kinds that are known; this is for the others.

python -m transfer.evaluation_trial ANNOTATIONS.json     prints the number of each annotation before it is tried
python -m transfer.evaluation_trial FOLDER               the same for a folder of VOC's annotations
"""

import contextlib
import io
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from transfer.detection_set import DetectionSet
from transfer.trial_process import SECONDS, announce_ready, attempt, run_trial
from transfer.voc_set import VocSet
from whitebench.errors import UserError

MODULE = "transfer.evaluation_trial"


def try_annotations(data: DetectionSet, name: str, masks: bool) -> None:
    """Reads the annotations of val as Detectron2's evaluators will.

    Args:
        name: of val, as registered with Detectron2.
        masks: whether masks are evaluated.
    Raises:
        UserError: one cannot be read, or not in time.
    """
    if isinstance(data, VocSet):
        _try_voc(data)
    elif masks:
        from detectron2.data import MetadataCatalog

        try_masks(Path(MetadataCatalog.get(name).json_file))


def _try_voc(data: VocSet, seconds: float = SECONDS) -> None:
    """Reads the annotations that evaluation will have by Detectron2's parser, in another process."""
    from transfer.voc_truth import write_truths

    with tempfile.TemporaryDirectory() as folder:
        write_truths(Path(folder), list(data.by_name.values()), data.categories)
        fault = run_trial(MODULE, Path(folder), "Detectron2's parser", seconds)
    if fault is not None:
        path = data.by_name[fault.item].annotation if fault.item in data.by_name else data.folder
        raise UserError(f"{path}: evaluation cannot read it ({fault.message})")


def try_masks(path: Path, seconds: float = SECONDS) -> None:
    """Decodes every mask of an annotation file by pycocotools, in another process; raises as `try_annotations`."""
    fault = run_trial(MODULE, path.resolve(), "pycocotools", seconds)
    if fault is not None:
        where = f"annotation {fault.item}" if fault.item else "the file"
        raise UserError(f"{path}: evaluation cannot read {where} ({fault.message})")


def _try_file(path: str) -> None:
    from pycocotools.coco import COCO

    announce_ready()
    with open(path) as file:
        content: dict[str, Any] = json.load(file)
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    for number, item in enumerate(content["annotations"]):
        attempt(item.get("id", number), partial(coco.annToRLE, item))


def _try_folder(path: str) -> None:
    from detectron2.evaluation.pascal_voc_evaluation import parse_rec

    announce_ready()
    for annotation in sorted(Path(path).glob("*.xml")):
        attempt(annotation.stem, partial(parse_rec.__wrapped__, str(annotation)))


if __name__ == "__main__":
    (_try_folder if Path(sys.argv[1]).is_dir() else _try_file)(sys.argv[1])
