"""How a fine-tuning differs from its published protocol: key by key, and in the number of images that it sees."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transfer.protocol import Protocol, published_cfg
from transfer.scaling import Settings
from transfer.vit_backbones import STRUCTURE_KEYS

if TYPE_CHECKING:
    from detectron2.config import CfgNode

NOT_OF_THE_PROTOCOL = (
    "OUTPUT_DIR", "VERSION", "SEED", "VIS_PERIOD", "CUDNN_BENCHMARK", "MODEL.WEIGHTS", "MODEL.DEVICE",
    "DATASETS.TRAIN", "DATASETS.TEST", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD",
)  # fmt: skip
"""Keys that say where files are and which device is used; they change no result."""
NORMS = ("MODEL.RESNETS.NORM", "MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM")
RESNET = (
    "MODEL.RESNETS.DEPTH",
    "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "MODEL.BACKBONE.NAME",
)
REASONS = {
    "MODEL.PIXEL_MEAN": "as the checkpoint was trained",
    "MODEL.PIXEL_STD": "as the checkpoint was trained",
    **dict.fromkeys(RESNET, "the checkpoint's"),
    "MODEL.ROI_HEADS.NUM_CLASSES": "the data's",
    "INPUT.MASK_FORMAT": "the data's",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": "the data's",
    "SOLVER.AMP.ENABLED": "a CPU has no fp16 training",
    **dict.fromkeys(STRUCTURE_KEYS, "the checkpoint's"),
    **dict.fromkeys(NORMS, "the same statistics, over the whole batch"),
}


def deviations(cfg: "CfgNode", protocol: Protocol) -> list[str]:
    """How `cfg` differs from the published protocol: `KEY: value, published value (reason)`, sorted by key.

    Of a protocol that is no paper's, each of its `backbones` is as published as another.
    """
    actual, published = dict(_flat(cfg)), dict(_flat(published_cfg(protocol)))
    stated = {f"MODEL.VIT.{key}" for key in (protocol.detectron2.get("MODEL") or {}).get("VIT") or ()}
    ignored = {*NOT_OF_THE_PROTOCOL, *(key for key in STRUCTURE_KEYS if key not in stated)}
    if not protocol.papers_rules:
        ignored.update(RESNET)
    lines = []
    for key in sorted(actual.keys() | published.keys()):
        if key not in ignored and actual.get(key) != published.get(key):
            reason = f" ({REASONS[key]})" if key in REASONS else ""
            lines.append(f"{key}: {_text(actual.get(key))}, published {_text(published.get(key))}{reason}")
    return lines


def schedule_lines(protocol: Protocol, settings: Settings) -> list[str]:
    """What a run's batch and iterations make of the published schedule, where they are others."""
    solver = protocol.detectron2["SOLVER"]
    published, images = solver["MAX_ITER"] * solver["IMS_PER_BATCH"], settings.iterations * settings.batch
    if abs(images - published) < solver["IMS_PER_BATCH"] + settings.batch:
        if settings.batch == solver["IMS_PER_BATCH"]:
            return []
        return [
            f"schedule: {settings.iterations} iterations of {settings.batch} images see as many images as the "
            f"published {solver['MAX_ITER']} of {solver['IMS_PER_BATCH']}"
        ]
    share, whole = images / published, round(published / settings.batch)
    return [f"images seen: {images}, {share:.3g} of the published {published}; --iterations {whole} sees as many"]


def _flat(node: "CfgNode", prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: Any) -> Any:
    """Lists and tuples alike: Detectron2's files use either."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"'{value}'" if value == "" else str(value)
