"""python transfer/coco_det.py --ckpt PATH: a backbone in, AP out. This is the command; the work is in stages.py."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfer.records import CONVERT, DETECT, Options, record_folder
from transfer.stages import convert_stage, detect_stage
from whitebench.errors import UserError, parse_seeds, run_command
from whitebench.records import Record

SAMPLE, SAMPLE_DATA = "sample", "sample-det"


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
        help="a checkpoint (ours, torchvision's, other projects'), or a run's folder",
    )
    add("--encoder", metavar="NAME", help="which encoder to take where the checkpoint holds several, e.g. momentum")
    add(
        "--protocol",
        help="c4-1x, c4-2x, fpn-1x, fpn-2x, r18-fpn-1x, c4-24k (VOC), sample, or a path "
        "(default: c4-1x; the sample's for its own)",
    )
    add(
        "--coco",
        metavar="DIR",
        help="folder in COCO's or VOC's layout, or its name in $WHITEBENCH_DATA "
        "(default: coco; the sample's for its own)",
    )
    seeds = top.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, help="of the fine-tuning (default: %(default)s)")
    seeds.add_argument("--seeds", type=parse_seeds, metavar="0,1,2", help="repeat with each of these seeds")
    add("--out", type=Path, metavar="DIR", help="folder for the records (default: $WHITEBENCH_RUNS, or ./runs)")
    add("--iterations", type=int, metavar="N", help="scales the schedule")
    add(
        "--image-size", type=int, metavar="PIXELS", help="shorter side at test time; sizes in training keep their ratio"
    )
    add("--subset", type=int, metavar="N", help="for trials: only N images to train with and N to judge by")
    add("--gpus", type=int, default=1, metavar="N", help="GPUs of this machine that share every batch (default: 1)")
    add("--batch", type=int, metavar="B", help="images an iteration; the learning rate follows in proportion")
    add("--lr", type=float, metavar="X", help="learning rate at this batch")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=1, metavar="N", help="intra-op threads, part of the run's identity (default: 1)")
    add("--workers", type=int, default=0, metavar="N", help="processes that prepare images (default: 0, this one)")
    add(
        "--eval-only",
        type=Path,
        metavar="RUN",
        help="judge the trained detector of runs/detect/<id>, on --coco's images",
    )
    add("--convert-only", action="store_true", help="write the file for Detectron2 and stop")
    add(
        "--unsafe-pickle", action="store_true", help="load a pickle that may run its author's code with all your rights"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    if given.threads < 1 or given.workers < 0 or given.seed < 0:
        raise UserError("--threads is at least 1; --workers and --seed are not negative")
    if (given.ckpt is None) == (given.eval_only is None):
        raise UserError("give --ckpt, a checkpoint to fine-tune, or --eval-only, a run that is trained")
    if given.eval_only is not None:
        _judge_again(given)
        return
    conversion = convert_stage(given.ckpt, given.encoder, given.unsafe_pickle, out=given.out)
    folder = record_folder(given.out, CONVERT, conversion.id)
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
                given.subset,
                given.gpus,
            ),
            encoder=given.encoder,
            out=given.out,
        )
        for seed in given.seeds or [given.seed]
    ]
    _summarise(records, given.out)


def _judge_again(given: argparse.Namespace) -> None:
    from transfer.reevaluate import evaluate_only

    metrics, folder = evaluate_only(given.eval_only, given.coco, given.subset, given.device, given.workers)
    print(f"{given.eval_only.name}: {_shown(metrics)}  ({folder})")


def _summarise(records: list[Record], out: Path | None) -> None:
    for record in records:
        print(f"{record.id}: {_shown(record.metrics)}  ({record_folder(out, DETECT, record.id)})")
    for name in ("box_AP", "mask_AP"):
        values = [record.metrics[name] for record in records if record.metrics.get(name) is not None]
        if len(values) > 1:
            mean, spread = statistics.mean(values), statistics.stdev(values)
            print(f"{name}: {mean:.2f} +- {spread:.2f} (mean and sd over {len(values)} fine-tunings of one backbone)")


if __name__ == "__main__":
    run_command(main)
