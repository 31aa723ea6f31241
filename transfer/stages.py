"""Two stages with a record each: `convert` (Detectron2's names, proven) and `detect` (fine-tuned and evaluated).

Their configs and ids follow from plain values, so that a sweep knows them before anything has run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.command import UserError
from results.content import canonical, content_hash, run_id
from results.record import Record, Run, stage_folder

if TYPE_CHECKING:
    from transfer.convert import Converted

CONVERT, DETECT = "convert", "detect"
D2_FORMAT = 1
"""Counts up when the content of d2.pkl changes."""


@dataclass(frozen=True)
class Options:
    """How a backbone is judged by detection. All of it determines the result, but `workers`."""

    protocol: str
    """Of `transfer/protocols`, or a path."""
    coco: str | Path
    """A folder in COCO's layout, or its name in $WHITEBENCH_DATA."""
    seed: int = 0
    iterations: int | None = None
    image_size: int | None = None
    batch: int | None = None
    lr: float | None = None
    """These four: None is what the protocol says."""
    device: str = "auto"
    threads: int = 1
    workers: int = 0
    subset: int | None = None
    """For trials: train with, and judge by, only so many images of each part; None: all."""
    processes: int = 1
    """That share every batch: a GPU each."""


def convert_config(parent: str, encoder: str | None = None) -> dict[str, Any]:
    """Config of the conversion of `parent`: the id of a pretraining, or "sha256:<hex>" of another checkpoint's file."""
    return {"parent": parent, "encoder": encoder, "format": D2_FORMAT}


def convert_id(parent: str, encoder: str | None = None) -> str:
    return run_id(_label(parent), convert_config(parent, encoder))


def detect_config(parent: str, options: Options, encoder: str | None = None) -> dict[str, Any]:
    """Config of a fine-tuning: parent, protocol, what it is scaled to, the data, seed, device and threads.

    Raises:
        UserError: an unknown protocol, settings that cannot work, a folder without its annotations.
    """
    from pretrain.repeatable import resolve_device
    from transfer.data import annotation_hashes, find_folder
    from transfer.protocol import load_protocol, resolve

    protocol = load_protocol(options.protocol)
    settings = resolve(protocol, options.iterations, options.image_size, options.batch, options.lr)
    if (options.subset is not None and options.subset < 2) or options.processes < 1:
        raise UserError("subset: at least 2 images; processes: at least 1")
    return {
        "parent": parent,
        "encoder": encoder,
        "protocol": protocol.determines,
        **canonical(settings),
        "data": annotation_hashes(find_folder(options.coco)),
        "seed": options.seed,
        "device": resolve_device(options.device),
        "threads": options.threads,
        "world_size": options.processes,
        **({"subset": options.subset} if options.subset is not None else {}),
    }


def detect_id(parent: str, options: Options, encoder: str | None = None) -> str:
    return run_id(_detect_label(parent, options), detect_config(parent, options, encoder))


def convert_stage(
    ckpt: Path,
    encoder: str | None = None,
    unsafe_pickle: bool = False,
    cell: dict[str, Any] | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> Record:
    """Converts a checkpoint, proves it in Detectron2's own ResNet and leaves `d2.pkl`; at once where that is done.

    Args:
        out: folder for records, instead of $WHITEBENCH_RUNS.
    Raises:
        UserError: see `pretrain.checkpoint.read_backbone` and `transfer.convert`.
    """
    from pretrain.checkpoint import read_backbone
    from transfer import convert
    from transfer.detectron import detectron2_resnet
    from transfer.maps import compare_maps

    backbone = read_backbone(ckpt, encoder, unsafe_pickle)
    content = convert.converted(backbone, ckpt.name)
    say(f"{ckpt}: {backbone.arch}, {backbone.origin}")
    config, label = convert_config(content.parent, encoder), _label(content.parent)
    with Run(
        CONVERT,
        label,
        config,
        cell={**_cell(content.metadata), **(cell or {})},
        parents=_parents(content.parent),
        folder=record_folder(out, CONVERT, run_id(label, config)),
    ) as run:
        if not run.already_done:
            path, network = run.folder / convert.D2_FILE, detectron2_resnet(content.arch)
            convert.write_d2(path, content)
            try:
                proof = convert.load_proven(network, path, content)
                maps = compare_maps(backbone, network, content)
            except UserError:
                path.unlink()
                raise
            run.metrics.update(proof.metrics, maps=maps)
            run.artifact("detectron2", path)
        _say_proof(run.record, say)
    return run.record


def _say_proof(record: Record, say: Callable[[str], None]) -> None:
    """Of a conversion, done now or before."""
    found = record.metrics
    count = f"{found['tensors']} of {found['tensors_expected']} tensors"
    say(f"{count} in Detectron2's ResNet, all equal and finite, none left over")
    if "maps" in found:  # conversions of earlier versions were proven by their tensors alone
        maps = found["maps"].items()
        shown = ", ".join(f"{stage} {'all zero' if value is None else format(value, '.1g')}" for stage, value in maps)
        say(f"feature maps of two photos, Detectron2's less the original, in parts of a map's largest value: {shown}")


def detect_stage(
    converted: Path,
    options: Options,
    cell: dict[str, Any] | None = None,
    encoder: str | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> Record:
    """Fine-tunes and evaluates; goes on where it stopped, and returns at once where it is done.

    Args:
        converted: the folder of a conversion (or its d2.pkl).
    Raises:
        UserError: data or settings that cannot work. Interrupted: asked to stop; the place is saved.
    """
    from transfer.convert import D2_FILE, read_d2
    from transfer.detect import detect, detect_in_processes
    from transfer.protocol import check_fit, load_protocol

    d2_file = converted / D2_FILE if converted.is_dir() else converted
    content = read_d2(d2_file)
    check_fit(load_protocol(options.protocol), content.arch)
    run = detection_run(content, options, cell, encoder, out)
    if options.processes > 1:
        return detect_in_processes(run, d2_file, options, cell, encoder, out)
    with run:
        if not run.already_done:
            detect(run.folder, run, content, d2_file, options, say)
    return run.record


def detection_run(
    content: "Converted", options: Options, cell: dict[str, Any] | None, encoder: str | None, out: Path | None
) -> Run:
    """The record of a fine-tuning, not yet opened."""
    config, label = detect_config(content.parent, options, encoder), _detect_label(content.parent, options)
    return Run(
        DETECT,
        label,
        config,
        cell={**_cell(content.metadata), **_detection_cell(config, options), **(cell or {})},
        hashes={"protocol": content_hash(config["protocol"]), "data": content_hash(config["data"])},
        parents=[*_parents(content.parent), convert_id(content.parent, encoder)],
        gpus=options.processes * int(config["device"] == "cuda"),
        folder=record_folder(out, DETECT, run_id(label, config)),
    )


def _label(parent: str) -> str:
    """For ids: "intl-s0" of "intl-s0-<hash>"; of another's checkpoint, what begins its hash."""
    if parent.startswith("sha256:"):
        return f"foreign-{parent.removeprefix('sha256:')[:8]}"
    return parent.rpartition("-")[0] or parent


def _detect_label(parent: str, options: Options) -> str:
    return f"{_label(parent)}-{Path(options.protocol).stem}-d{options.seed}"


def _parents(parent: str) -> list[str]:
    return [] if parent.startswith("sha256:") else [parent]


def record_folder(out: Path | None, stage: str, name: str) -> Path:
    return out / stage / name if out else stage_folder(stage, name)


def _cell(metadata: dict[str, Any]) -> dict[str, Any]:
    """What the pretraining was; another's checkpoint goes by the name of its file."""
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
