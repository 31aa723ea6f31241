"""Judges a detector that was trained before, without training: `python transfer/coco_det.py --eval-only RUN`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transfer.evaluation import Metrics
from whitebench.errors import UserError
from whitebench.files import write_atomically
from whitebench.records import read_record

CONFIG = "detectron2.yaml"
"""The whole config of a run in Detectron2's form, in its folder."""


def evaluate_only(
    folder: Path,
    data: str | Path | None = None,
    subset: int | None = None,
    device: str = "auto",
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> tuple[Metrics, Path]:
    """Evaluates the trained model of a `detect` run; its record stays as it is.

    Args:
        folder: of the run. data: a detection set; by default the one it was trained on, by its name.
    Returns:
        Metrics as the record has them, and the folder inside the run's where detections and pictures are.
    Raises:
        UserError: it is no such run, or is not trained yet; the data have other classes.
    """
    from pretrain import resume
    from pretrain.repeatable import make_repeatable, resolve_device
    from transfer.data import annotation_hashes, find_folder, part_of, read_data, register
    from transfer.evaluation import evaluate
    from transfer.pictures import leave
    from transfer.trainer import PICTURES, dataset_images

    record = read_record(folder)
    state = resume.load(folder) if record is not None else None
    if record is None or record.stage != "detect" or not (folder / CONFIG).exists():
        raise UserError(f"{folder}: not the folder of a fine-tuning (runs/detect/<id>) with its {CONFIG}")
    if state is None or not state["trained"]:
        raise UserError(f"{folder}: its model is not trained to the end; start the run again first")
    place = find_folder(data or record.cell.get("dataset", ""))
    detection, cfg = read_data(place), _config(folder / CONFIG, resolve_device(device))
    if len(detection.categories) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise UserError(
            f"{place}: has {len(detection.categories)} classes, the model knows {cfg.MODEL.ROI_HEADS.NUM_CLASSES}"
        )
    make_repeatable(record.config["threads"])
    model = _model(cfg, state["model"])
    _, name = register(detection)
    images = part_of(dataset_images([name], False), subset or record.config.get("subset"))
    out = folder / "evaluations" / f"{place.resolve().name}-{len(images)}"
    out.mkdir(parents=True, exist_ok=True)
    say(f"{record.id}: {len(images)} images of {place}")
    found = evaluate(model, cfg, detection, name, images, out, workers, PICTURES)
    assert found is not None
    leave(found, out, images, name)
    write_atomically(out / "metrics.json", json.dumps(found.metrics, indent=1).encode())
    same = record.config["data"] == annotation_hashes(place) and subset in (None, record.config.get("subset"))
    if same and record.status == "done":
        differs = [key for key, value in found.metrics.items() if value != record.metrics.get(key)]
        say("as the record says" if not differs else f"otherwise than the record says: {', '.join(differs)}")
    return found.metrics, out


def _config(path: Path, device: str) -> Any:
    from transfer.detectron import require_detectron2

    require_detectron2()
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(str(path), allow_unsafe=False)
    cfg.MODEL.DEVICE = device
    return cfg


def _model(cfg: Any, weights: dict[str, Any]) -> Any:
    from detectron2.modeling import build_model

    from transfer.detectron import quiet

    with quiet("detectron2", "fvcore"):
        model = build_model(cfg)
    model.load_state_dict(weights)
    return model
