"""Evaluates a detector that was trained before, without training: `python transfer/coco_det.py --eval-only RUN`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer.coco_layout import USUAL_FILES, Files
from transfer.evaluation import Metrics
from transfer.vit_backbones import add_vit_keys
from whitebench.errors import UserError
from whitebench.files import write_atomically
from whitebench.records import Record, read_record
from whitebench.yaml import read_yaml

if TYPE_CHECKING:
    from transfer.detection_set import DetectionSet

FEDERATED_WEIGHTS = ".fed_loss_cls_weights"
CONFIG = "detectron2.yaml"
"""The whole config of a run in Detectron2's form, in its folder."""


def evaluate_only(
    folder: Path,
    data: str | Path | None = None,
    files: Files = USUAL_FILES,
    *,
    subset: int | None = None,
    device: str = "auto",
    workers: int = 0,
    skip_faulty: bool = False,
    say: Callable[[str], None] = print,
) -> tuple[Metrics, Path]:
    """Evaluates the trained model of a `detect` run; its record stays as it is.

    Args:
        folder: of the run. data: a detection set; by default the one it was trained on, by its name.
        files, skip_faulty: see `transfer.records.Options`.
    Returns:
        Metrics as the record has them, and the folder inside the run's where detections and pictures are.
    Raises:
        UserError: it is not such a run, or is not trained yet; the data have other classes.
    """
    from pretrain.repeatable import make_repeatable, resolve_device
    from transfer.detection_set import annotation_hashes, check_image_files, find_folder, register, subset_of
    from transfer.evaluation import evaluate
    from transfer.evaluation_trial import try_annotations
    from transfer.pictures import write_pictures
    from transfer.trainer import PICTURES, dataset_images

    record, weights = _trained(folder)
    cfg = _config(folder / CONFIG, resolve_device(device))
    data_folder = find_folder(data or record.cell.get("dataset", ""))
    detection = _read(data_folder, files, record, cfg, skip_faulty)
    make_repeatable(record.config["threads"])
    model = _model(cfg, weights)
    count = subset or record.config.get("subset")
    out = folder / "evaluations" / f"{data_folder.resolve().name}-{count or detection.counts['val_images']}"
    out.mkdir(parents=True, exist_ok=True)
    _, name = register(detection, out)
    images = subset_of(dataset_images([name], False), count)
    for line in (f"{record.id}: {len(images)} images of {data_folder}", *(f"  {note}" for note in detection.notes)):
        say(line)
    check_image_files(detection)
    try_annotations(detection, name, cfg.MODEL.MASK_ON)
    evaluation = evaluate(model, cfg, detection, name, images, workers=workers, pictures=PICTURES)
    assert evaluation is not None
    evaluation.write(out)
    write_atomically(out / "metrics.json", json.dumps(evaluation.metrics, indent=1).encode())
    write_pictures(evaluation, out, images, name, say)
    same = record.config["data"] == annotation_hashes(data_folder, files)
    if same and subset in (None, record.config.get("subset")) and record.status == "done":
        changed = [key for key, value in evaluation.metrics.items() if value != record.metrics.get(key)]
        say("as the record says" if not changed else f"differs from the record: {', '.join(changed)}")
    return evaluation.metrics, out


def _trained(folder: Path) -> tuple[Record, dict[str, Any]]:
    """The record of a run that is trained, and its model's weights."""
    from pretrain import resume

    record = read_record(folder)
    state = resume.load(folder) if record is not None else None
    if record is None or record.stage != "detect" or not (folder / CONFIG).exists():
        raise UserError(f"{folder}: not the folder of a fine-tuning (runs/detect/<id>) with its {CONFIG}")
    if state is None or not state["trained"]:
        raise UserError(f"{folder}: its model is not trained to the end; start the run again first")
    return record, state["model"]


def _read(folder: Path, files: Files, record: Record, cfg: Any, skip: bool) -> "DetectionSet":
    """The data, with the categories in the order in which the detector was trained on them.

    Records of earlier versions hold no categories: their number alone is compared.
    """
    from transfer.detection_set import read_data

    names = record.metrics.get("categories")
    data = read_data(
        folder, files, masks=cfg.MODEL.MASK_ON, skip=skip, categories=tuple(names) if names is not None else None
    )
    if cfg.MODEL.MASK_ON and not data.has_masks:
        raise UserError(f"{folder}: has boxes alone, and the detector was trained with masks")
    if len(data.categories) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise UserError(f"{folder}: has {len(data.categories)} classes, the detector {cfg.MODEL.ROI_HEADS.NUM_CLASSES}")
    return data


def _config(path: Path, device: str) -> Any:
    from transfer.detectron import require_detectron2

    require_detectron2()
    from detectron2.config import get_cfg

    cfg = get_cfg()
    if "VIT" in read_yaml(path).get("MODEL", {}):
        add_vit_keys(cfg)
    cfg.merge_from_file(str(path), allow_unsafe=False)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False  # which only training needs, with its data
    return cfg


def _model(cfg: Any, weights: dict[str, Any]) -> Any:
    from detectron2.modeling import build_model

    from transfer.detectron import quiet

    with quiet("detectron2", "fvcore"):
        model = build_model(cfg)
    model.load_state_dict({name: tensor for name, tensor in weights.items() if not name.endswith(FEDERATED_WEIGHTS)})
    return model
