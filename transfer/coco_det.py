"""python transfer/coco_det.py --ckpt PATH: a backbone in, AP out.

Two stages with a record each: `convert` (Detectron2's names, proven) and `detect` (fine-tuned and evaluated). Their
configs and ids follow from plain values, so that a sweep knows them before anything has run.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.command import UserError, parse_seeds, run_command
from results.content import canonical, content_hash, run_id
from results.record import Record, Run, stage_folder

CONVERT, DETECT = "convert", "detect"
D2_FORMAT = 1
"""Counts up when the content of d2.pkl changes."""
SAMPLE, SAMPLE_DATA = "sample", "sample-det"


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
    from transfer.coco_data import annotation_hashes, find_coco
    from transfer.protocol import load_protocol, resolve

    protocol = load_protocol(options.protocol)
    settings = resolve(protocol, options.iterations, options.image_size, options.batch, options.lr)
    return {
        "parent": parent,
        "encoder": encoder,
        "protocol": canonical(protocol),
        **canonical(settings),
        "data": annotation_hashes(find_coco(options.coco)),
        "seed": options.seed,
        "device": resolve_device(options.device),
        "threads": options.threads,
        "world_size": 1,
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
        folder=_folder(out, CONVERT, run_id(label, config)),
    ) as run:
        if not run.already_done:
            path, network = run.folder / convert.D2_FILE, _resnet(content.arch)
            convert.write_d2(path, content)
            try:
                proof = convert.load_proven(network, path, content)
            except UserError:
                path.unlink()
                raise
            run.metrics.update(tensors=proof.matched, tensors_expected=proof.expected)
            run.artifact("detectron2", path)
            say(str(proof))
    return run.record


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
    from transfer.protocol import check_fit, load_protocol

    d2_file = converted / D2_FILE if converted.is_dir() else converted
    content = read_d2(d2_file)
    check_fit(load_protocol(options.protocol), content.arch)
    config, label = detect_config(content.parent, options, encoder), _detect_label(content.parent, options)
    with Run(
        DETECT,
        label,
        config,
        cell={**_cell(content.metadata), **_detection_cell(config, options), **(cell or {})},
        hashes={"protocol": content_hash(config["protocol"]), "data": content_hash(config["data"])},
        parents=[*_parents(content.parent), convert_id(content.parent, encoder)],
        gpus=int(config["device"] == "cuda"),
        folder=_folder(out, DETECT, run_id(label, config)),
    ) as run:
        if not run.already_done:
            _detect(run, d2_file, options, say)
    return run.record


def _detect(run: Run, d2_file: Path, options: Options, say: Callable[[str], None]) -> None:
    from pretrain import resume
    from transfer.coco_data import find_coco, read_coco
    from transfer.convert import read_d2
    from transfer.protocol import build_cfg, deviations, load_protocol, resolve

    protocol, content, coco = load_protocol(options.protocol), read_d2(d2_file), read_coco(find_coco(options.coco))
    settings = resolve(protocol, options.iterations, options.image_size, options.batch, options.lr)
    cfg = build_cfg(
        protocol, settings, content, len(coco.categories), coco.mask_format, run.record.config["device"], options.seed
    )
    differences = deviations(cfg, protocol)
    say(f"{run.id}: {protocol.title}; {len(coco.train.names)} + {len(coco.val.names)} images, seed {options.seed}")
    for difference in differences:
        say(f"  deviates: {difference}")

    from transfer.trainer import FineTuning

    tuning = FineTuning(cfg, content, d2_file, coco, protocol.optimizer, options.threads, options.workers, say)
    say(str(tuning.proof))
    tuning.fit(run)
    run.metrics.update(
        tuning.evaluate(run),
        tensors=tuning.proof.matched,
        tensors_expected=tuning.proof.expected,
        iterations=settings.iterations,
        deviations=differences,
    )
    resume.forget_previous(run.folder)
    run.artifact("model", run.folder / resume.CHECKPOINT)


def _resnet(arch: str) -> Any:
    """Detectron2's own ResNet of this depth, stem to res5."""
    from transfer.detectron import require_detectron2

    require_detectron2()
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone

    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = int(arch.removeprefix("resnet"))
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if arch in ("resnet18", "resnet34") else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = "BN", False
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def _label(parent: str) -> str:
    """For ids: "intl-s0" of "intl-s0-<hash>"; of another's checkpoint, what begins its hash."""
    if parent.startswith("sha256:"):
        return f"foreign-{parent.removeprefix('sha256:')[:8]}"
    return parent.rpartition("-")[0] or parent


def _detect_label(parent: str, options: Options) -> str:
    return f"{_label(parent)}-{Path(options.protocol).stem}-d{options.seed}"


def _parents(parent: str) -> list[str]:
    return [] if parent.startswith("sha256:") else [parent]


def _folder(out: Path | None, stage: str, name: str) -> Path:
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


def _shown(metrics: dict[str, Any]) -> str:
    def line(kind: str) -> str:
        values = ((name, metrics.get(f"{kind}_{name}")) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"))
        return "  ".join(f"{name} {'-' if value is None else format(value, '.2f')}" for name, value in values)

    return f"box {line('box')} | mask {line('mask')}"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="transfer/coco_det.py",
        description="Fine-tune a backbone on a COCO-format detection set with Detectron2 and leave its AP in a record.",
        epilog="Interrupted, the same command goes on where it was. Options that scale a protocol down are recorded.",
    )
    add = top.add_argument
    add(
        "--ckpt",
        type=Path,
        required=True,
        help="a checkpoint (ours, torchvision's, other projects'), or a run's folder",
    )
    add("--encoder", metavar="NAME", help="which encoder to take where the checkpoint holds several, e.g. momentum")
    add(
        "--protocol",
        help="c4-1x, c4-2x, fpn-1x, r18-fpn-1x, sample, or a path (default: c4-1x; the sample's for its own)",
    )
    add(
        "--coco",
        metavar="DIR",
        help="folder, or its name in $WHITEBENCH_DATA (default: coco; the sample's for its own)",
    )
    seeds = top.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, help="of the fine-tuning (default: %(default)s)")
    seeds.add_argument("--seeds", type=parse_seeds, metavar="0,1,2", help="repeat with each of these seeds")
    add("--out", type=Path, metavar="DIR", help="folder for the records (default: $WHITEBENCH_RUNS, or ./runs)")
    add("--iterations", type=int, metavar="N", help="scales the schedule")
    add(
        "--image-size", type=int, metavar="PIXELS", help="shorter side at test time; sizes in training keep their ratio"
    )
    add("--batch", type=int, metavar="B", help="images an iteration; the learning rate follows in proportion")
    add("--lr", type=float, metavar="X", help="learning rate at this batch")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=1, metavar="N", help="intra-op threads, part of the run's identity (default: 1)")
    add("--workers", type=int, default=0, metavar="N", help="processes that prepare images (default: 0, this one)")
    add("--convert-only", action="store_true", help="write the file for Detectron2 and stop")
    add(
        "--unsafe-pickle", action="store_true", help="load a pickle that may run its author's code with all your rights"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    if given.threads < 1 or given.workers < 0 or given.seed < 0:
        raise UserError("--threads is at least 1; --workers and --seed are not negative")
    conversion = convert_stage(given.ckpt, given.encoder, given.unsafe_pickle, out=given.out)
    folder = _folder(given.out, CONVERT, conversion.id)
    if given.convert_only:
        print(folder / conversion.artifacts["detectron2"]["path"])
        return
    ours = conversion.cell["pretrained_on"] == "sample"
    records = [
        detect_stage(
            folder,
            Options(
                given.protocol or (SAMPLE if ours else "c4-1x"),
                given.coco or (SAMPLE_DATA if ours else "coco"),
                seed,
                given.iterations,
                given.image_size,
                given.batch,
                given.lr,
                given.device,
                given.threads,
                given.workers,
            ),
            encoder=given.encoder,
            out=given.out,
        )
        for seed in given.seeds or [given.seed]
    ]
    _summarise(records, given.out)


def _summarise(records: list[Record], out: Path | None) -> None:
    for record in records:
        print(f"{record.id}: {_shown(record.metrics)}  ({_folder(out, DETECT, record.id)})")
    for name in ("box_AP", "mask_AP"):
        values = [record.metrics[name] for record in records if record.metrics[name] is not None]
        if len(values) > 1:
            mean, spread = statistics.mean(values), statistics.stdev(values)
            print(f"{name}: {mean:.2f} +- {spread:.2f} (mean and sd over {len(values)} fine-tunings of one backbone)")


if __name__ == "__main__":
    run_command(main)
