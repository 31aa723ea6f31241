"""Ids and records of the stages `convert` and `detect`.

Their configs and ids follow from plain values, so that a sweep knows them before anything has run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer.coco_layout import Files
from whitebench.errors import UserError
from whitebench.hashing import canonical, content_hash, run_id
from whitebench.records import Run, stage_folder

if TYPE_CHECKING:
    from transfer.convert import Converted

CONVERT, DETECT = "convert", "detect"
D2_FORMAT = 1
"""Counts up when the content of d2.pkl changes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a backbone is evaluated by detection. All of it determines the result, except `workers`."""

    protocol: str
    """Of `transfer/protocols`, or a path."""
    coco: str | Path
    """A folder in COCO's or VOC's layout, or its name in $WHITEBENCH_DATA."""
    seed: int = 0
    iterations: int | None = None
    image_size: int | None = None
    batch: int | None = None
    lr: float | None = None
    """These four: None is what the protocol says; see `transfer.protocol.resolve`."""
    device: str = "auto"
    threads: int = 1
    workers: int = 0
    subset: int | None = None
    """For trials: train and evaluate with this many images of each part; None: all."""
    processes: int = 1
    """That share every batch: a GPU each."""
    train_json: str | None = None
    train_images: str | None = None
    val_json: str | None = None
    val_images: str | None = None
    """These four: names of COCO's files that are not the usual ones; see `transfer.coco_set.Files`."""
    skip_faulty: bool = False
    """Leave out every faulty annotation, and list them."""

    @property
    def files(self) -> Files:
        return Files(self.train_json, self.train_images, self.val_json, self.val_images)


def convert_config(parent: str, encoder: str | None = None) -> dict[str, Any]:
    """Config of the conversion of `parent`: the id of a pretraining, or "sha256:<hex>" of another checkpoint's file."""
    return {"parent": parent, "encoder": encoder, "format": D2_FORMAT}


def convert_id(parent: str, encoder: str | None = None) -> str:
    return run_id(run_label(parent), convert_config(parent, encoder))


def detect_config(parent: str, options: Options, encoder: str | None = None) -> dict[str, Any]:
    """Config of a fine-tuning: parent, protocol, what it is scaled to, the data, seed, device and threads.

    Raises:
        UserError: an unknown protocol, settings that cannot work, a folder without its annotations.
    """
    from pretrain.repeatable import resolve_device
    from transfer.detection_set import annotation_hashes, find_folder
    from transfer.protocol import load_protocol, resolve

    protocol = load_protocol(options.protocol)
    settings = resolve(
        protocol, iterations=options.iterations, image_size=options.image_size, batch=options.batch, lr=options.lr
    )
    if (options.subset is not None and options.subset < 2) or options.processes < 1:
        raise UserError("subset: at least 2 images; processes: at least 1")
    return {
        "parent": parent,
        "encoder": encoder,
        "protocol": protocol.determines,
        **canonical(settings),
        "data": annotation_hashes(find_folder(options.coco), options.files),
        "seed": options.seed,
        "device": resolve_device(options.device),
        "threads": options.threads,
        "world_size": options.processes,
        **({"subset": options.subset} if options.subset is not None else {}),
        **({"skip_faulty": True} if options.skip_faulty else {}),
    }


def detect_id(parent: str, options: Options, encoder: str | None = None, config: dict[str, Any] | None = None) -> str:
    """The id that a fine-tuning will have.

    Args:
        config: of the same options with any parent, where it is at hand: making one reads the data's annotations.
    """
    config = {**config, "parent": parent} if config else detect_config(parent, options, encoder)
    return run_id(_detect_label(parent, options), config)


def detection_run(
    content: "Converted", options: Options, cell: dict[str, Any] | None, encoder: str | None, out: Path | None
) -> Run:
    """The record of a fine-tuning, not yet opened."""
    config, label = detect_config(content.parent, options, encoder), _detect_label(content.parent, options)
    return Run(
        DETECT,
        label,
        config,
        cell={**pretraining_cell(content.metadata), **_detection_cell(config, options), **(cell or {})},
        hashes={"protocol": content_hash(config["protocol"]), "data": content_hash(config["data"])},
        parents=[*parent_ids(content.parent), convert_id(content.parent, encoder)],
        gpus=options.processes * int(config["device"] == "cuda"),
        folder=record_folder(out, DETECT, run_id(label, config)),
    )


def run_label(parent: str) -> str:
    """For ids: "intl-s0" of "intl-s0-<hash>"; of a foreign checkpoint, the start of its hash."""
    if parent.startswith("sha256:"):
        return f"foreign-{parent.removeprefix('sha256:')[:8]}"
    return parent.rpartition("-")[0] or parent


def _detect_label(parent: str, options: Options) -> str:
    return f"{run_label(parent)}-{Path(options.protocol).stem}-d{options.seed}"


def parent_ids(parent: str) -> list[str]:
    return [] if parent.startswith("sha256:") else [parent]


def record_folder(out: Path | None, stage: str, name: str) -> Path:
    return out / stage / name if out else stage_folder(stage, name)


def pretraining_cell(metadata: dict[str, Any]) -> dict[str, Any]:
    """What the pretraining was; a foreign checkpoint is named by its file."""
    return {
        "recipe": metadata["recipe"],
        "method": metadata.get("method", "foreign"),
        "seed": metadata.get("seed", 0),
        "pretrained_on": metadata.get("dataset"),
    }


def _detection_cell(config: dict[str, Any], options: Options) -> dict[str, Any]:
    return {
        "protocol": config["protocol"]["name"],
        "dataset": Path(options.coco).resolve().name,
        "detect_seed": options.seed,
    }
