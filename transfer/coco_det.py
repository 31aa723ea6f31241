"""python transfer/coco_det.py --ckpt PATH: a backbone in, AP out. This is the command; the stages are in stages.py."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfer.records import CONVERT, DETECT, Options, record_folder
from transfer.stages import convert_stage, detect_stage
from whitebench.errors import UserError, parse_seeds, run_command
from whitebench.records import Record

PROTOCOLS, DATA = ("c4-1x", "vitdet-b-100ep", "vitdet-s-100ep", "vitdet-l-100ep"), "coco"
SAMPLE_PROTOCOLS = ("sample", "sample-full", "sample-r50", "sample-vitdet", "sample-sfp-frozen")
SAMPLE_DATA = "sample-det"
"""Of a backbone that was pretrained on the sample, or is tried on its scenes."""


def _metrics_line(metrics: dict[str, Any]) -> str:
    def line(kind: str) -> str:
        values = ((name, metrics.get(f"{kind}_{name}")) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"))
        return "  ".join(f"{name} {'-' if value is None else format(value, '.2f')}" for name, value in values)

    return f"box {line('box')} | mask {line('mask')}"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="transfer/coco_det.py",
        description="Fine-tune a backbone on a COCO-format detection set with Detectron2 and leave its AP in a record.",
        epilog="After an interruption the same command continues. Options that scale a protocol down are recorded.",
    )
    add = top.add_argument
    add(
        "--ckpt",
        type=Path,
        help="a checkpoint (ours, torchvision's, other projects'), or a run's folder",
    )
    add("--encoder", metavar="NAME", help="which encoder to take where the checkpoint holds several, e.g. momentum")
    add(
        "--protocol",
        help="ResNets: c4-1x, c4-2x (CW-RGP's and INTL's), fpn-1x, fpn-2x, r18-fpn-1x, c4-24k (VOC), lvis-fpn-1x, "
        "cityscapes-fpn-24k, c4-1x-frozen, fpn-1x-frozen, r18-fpn-1x-frozen, sample, sample-full, sample-r50, "
        "sample-frozen; transformers: vitdet-b-100ep, vitdet-s-100ep, vitdet-l-100ep, vitdet-b-lvis-100ep, vitdet-1x, "
        "sfp-frozen, sample-vitdet, sample-sfp-frozen; or a path (default: c4-1x, or vitdet-*-100ep; for sample-det or "
        "a backbone pretrained on the sample, the first of the sample's that fits)",
    )
    add(
        "--coco",
        metavar="DIR",
        help="folder in COCO's, LVIS's, Cityscapes', Roboflow's or VOC's layout, or its name in $WHITEBENCH_DATA "
        "(default: coco; the sample's for its own)",
    )
    for split in ("train", "val"):
        add(f"--{split}-json", metavar="FILE", help=f"COCO annotations of {split}, in --coco's folder or elsewhere")
        add(f"--{split}-images", metavar="DIR", help=f"images of {split}, in --coco's folder or elsewhere")
    add(
        "--skip-faulty",
        action="store_true",
        help="leave out every faulty annotation, and list them in the run's folder",
    )
    seeds = top.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, help="seed of the fine-tuning (default: %(default)s)")
    seeds.add_argument("--seeds", type=parse_seeds, metavar="0,1,2", help="repeat with each of these seeds")
    add("--out", type=Path, metavar="DIR", help="folder for the records (default: $WHITEBENCH_RUNS, or ./runs)")
    add("--iterations", type=int, metavar="N", help="length of the schedule; its steps are scaled")
    add(
        "--image-size", type=int, metavar="PIXELS", help="shorter side at test time; sizes in training keep their ratio"
    )
    add("--subset", type=int, metavar="N", help="for trials: N images to train with and N to evaluate")
    add("--gpus", type=int, default=1, metavar="N", help="GPUs of this machine that share every batch (default: 1)")
    add(
        "--batch",
        type=int,
        metavar="B",
        help="images per iteration; the learning rate and the number of iterations follow in proportion",
    )
    add("--lr", type=float, metavar="X", help="learning rate at this batch")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=1, metavar="N", help="intra-op threads, part of the run's identity (default: 1)")
    add("--workers", type=int, default=0, metavar="N", help="processes that prepare images (default: 0, this one)")
    add(
        "--eval-only",
        type=Path,
        metavar="RUN",
        help="evaluate the trained detector of runs/detect/<id>, on --coco's images",
    )
    add("--convert-only", action="store_true", help="write the file for Detectron2 and stop")
    add(
        "--unsafe-pickle", action="store_true", help="load a pickle that may run its author's code with all your rights"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if args.threads < 1 or args.workers < 0 or args.seed < 0:
        raise UserError("--threads is at least 1; --workers and --seed are not negative")
    if (args.ckpt is None) == (args.eval_only is None):
        raise UserError("give --ckpt, a checkpoint to fine-tune, or --eval-only, a run that is trained")
    if args.eval_only is not None:
        _evaluate_again(args)
        return
    conversion = convert_stage(args.ckpt, args.encoder, args.unsafe_pickle, out=args.out)
    folder = record_folder(args.out, CONVERT, conversion.id)
    if args.convert_only:
        print(folder / conversion.artifacts["detectron2"]["path"])
        return
    on_sample = conversion.cell["pretrained_on"] == "sample" or Path(args.coco or "").name == SAMPLE_DATA
    trainable = conversion.metrics.get("vitdet", "yes") == "yes"
    protocol = args.protocol or default_protocol(conversion.metrics.get("arch", ""), on_sample, trainable)
    seeds = args.seeds or [args.seed]
    records = [
        detect_stage(folder, _options(args, seed, protocol, on_sample), encoder=args.encoder, out=args.out)
        for seed in seeds
    ]
    _summarise(records, args.out)


def default_protocol(arch: str, on_sample: bool, trainable: bool = True) -> str:
    """The first protocol that takes the architecture; where none does, the one whose message says which would.

    Args:
        trainable: whether Detectron2 has a network that can hold the backbone (see `VitStructure.refusal`); where not,
            a frozen protocol is preferred.
    """
    from transfer.protocol import fits, load_protocol

    names = SAMPLE_PROTOCOLS if on_sample else PROTOCOLS
    fitting = [protocol for protocol in map(load_protocol, names) if fits(protocol, arch)]
    frozen = [protocol for protocol in fitting if protocol.frozen]
    candidates = fitting if trainable else frozen or fitting
    return candidates[0].name if candidates else names[0]


def _options(args: argparse.Namespace, seed: int, protocol: str, on_sample: bool) -> Options:
    return Options(
        protocol=protocol,
        coco=args.coco or (SAMPLE_DATA if on_sample else DATA),
        seed=seed,
        iterations=args.iterations,
        image_size=args.image_size,
        batch=args.batch,
        lr=args.lr,
        device=args.device,
        threads=args.threads,
        workers=args.workers,
        subset=args.subset,
        processes=args.gpus,
        skip_faulty=args.skip_faulty,
        **_file_names(args),
    )


def _file_names(args: argparse.Namespace) -> dict[str, str | None]:
    return {key: getattr(args, key) for key in ("train_json", "train_images", "val_json", "val_images")}


def _evaluate_again(args: argparse.Namespace) -> None:
    from transfer.coco_layout import Files
    from transfer.evaluate_trained import evaluate_only

    metrics, folder = evaluate_only(
        args.eval_only,
        args.coco,
        Files(**_file_names(args)),
        subset=args.subset,
        device=args.device,
        workers=args.workers,
        skip_faulty=args.skip_faulty,
    )
    print(f"{args.eval_only.name}: {_metrics_line(metrics)}  ({folder})")


def _summarise(records: list[Record], out: Path | None) -> None:
    for record in records:
        print(f"{record.id}: {_metrics_line(record.metrics)}  ({record_folder(out, DETECT, record.id)})")
    for name in ("box_AP", "mask_AP"):
        values = [record.metrics[name] for record in records if record.metrics.get(name) is not None]
        if len(values) > 1:
            mean, spread = statistics.mean(values), statistics.stdev(values)
            print(f"{name}: {mean:.2f} +- {spread:.2f} (mean and sd over {len(values)} fine-tunings of one backbone)")


if __name__ == "__main__":
    run_command(main)
