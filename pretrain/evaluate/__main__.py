"""The command that evaluates a backbone: python -m pretrain.evaluate STAGE --ckpt PATH."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.evaluate.protocols import describe
from pretrain.evaluate.target import FEATURES
from whitebench.errors import UserError, parse_seeds, run_command

if TYPE_CHECKING:
    from pretrain.distributed import World
    from pretrain.evaluate.target import Target
    from whitebench.records import Record

COMMANDS = (
    ("linear", "features", "train a linear classifier, or a grid of them, on frozen features"),
    ("knn", "cosine-20", "classify by the nearest training images"),
    ("semi", "sample-10", "fine-tune backbone and a linear classifier on 1 %% or 10 %% of the training labels"),
    ("finetune", "sample", "fine-tune backbone and a linear classifier on all training labels, or a part of them"),
    ("fewshot", "centroid", "classify by 1, 5 and 10 images of each class, over 5 draws"),
    ("voc07", "svm", "multi-label classification of VOC 2007 by linear SVMs on frozen features"),
    ("retrieval", "square", "rank images by similarity: Oxford's and Paris's layout, or a folder per class"),
    ("robust", "shifted", "a linear probe on shifted images: ImageNet-C, -A, -R and their like"),
)
"""Stage, its default protocol, and what it does."""
LISTS = """
labelled images:
  The papers use the lists of github.com/google-research/simclr, imagenet_subsets/1percent.txt and 10percent.txt:
  download the one that the protocol needs, and give it by --list. Without a list, the share of each class is drawn by
  the seed, and the record says so.
"""
PROCESSES = """
several processes (one per GPU), with the result of one:
  torchrun --nproc-per-node 8 -m pretrain.evaluate STAGE --ckpt PATH ...
"""
PARTS = ("semi", "finetune")
"""Stages that may use a part of the labels."""
WITH_FEATURES = ("linear", "knn")
OWN_LAYOUTS = ("voc07", "retrieval")
"""Stages whose datasets are folders in layouts of their own."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m pretrain.evaluate", description="Evaluate a backbone.")
    stages = top.add_subparsers(dest="stage", required=True)
    for stage, default, text in COMMANDS:
        command = stages.add_parser(
            stage,
            help=text,
            epilog=f"protocols:\n{describe(stage)}\n{LISTS if stage in PARTS else ''}{PROCESSES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_common(command, default)
        _add_own(command, stage)
    return top


def _add_common(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--ckpt", type=Path, required=True, help="a checkpoint, or the folder of a pretraining run")
    command.add_argument(
        "--encoder", metavar="NAME", help="which encoder to take where the checkpoint holds several, e.g. momentum"
    )
    command.add_argument(
        "--unsafe-pickle", action="store_true", help="load a pickle that may run its author's code with all your rights"
    )
    command.add_argument(
        "--epochs", metavar="all|10,20", help="backbones that the run kept after these epochs (machine.keep_every)"
    )
    command.add_argument("--protocol", default=default, metavar="NAME[,NAME]", help="default: %(default)s")
    sets = command.add_mutually_exclusive_group()
    sets.add_argument("--dataset", help="folder of $WHITEBENCH_DATA; default: what the checkpoint was trained on")
    sets.add_argument("--datasets", metavar="A,B,...", help="several of them, one after the other")
    command.add_argument("--crop", type=int, metavar="PIXELS", help="side of the centre crop")
    command.add_argument("--resize", type=int, metavar="PIXELS", help="short side before it")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--threads", type=int, default=1, help="intra-op threads (part of the run's identity)")
    command.add_argument("--workers", type=int, default=1, help="threads that decode images")
    command.add_argument("--loader", choices=("ffcv", "folder"), default="ffcv", help="part of the run's identity")
    seeds = command.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0)
    seeds.add_argument("--seeds", type=parse_seeds, metavar="0,1,2", help="repeat with each of these seeds")


def _add_own(command: argparse.ArgumentParser, stage: str) -> None:
    if stage in PARTS:
        command.add_argument("--list", type=Path, metavar="FILE", help="names of the labelled images, one per line")
    if stage in WITH_FEATURES:
        command.add_argument(
            "--features",
            choices=FEATURES,
            default=FEATURES[0],
            help="input of the evaluation: the backbone's output (default), the projector's, or the method's "
            "transform of that in batches as large as in its training; the latter two for this suite's own runs",
        )
    if stage == "fewshot":
        command.add_argument("--shots", type=numbers("--shots"), metavar="1,5,10", help="images of each class")
    if stage == "robust":
        command.add_argument("--shifts", required=True, metavar="A,B,...", help="sets of shifted images")
        command.add_argument("--probe", metavar="PROTOCOL", help="of the linear probe; default: features")


def numbers(option: str) -> Callable[[str], list[int]]:
    """Reads '1,5,10' for argparse; an error is one line."""

    def parse(text: str) -> list[int]:
        values = [int(part) if part.isascii() and part.isdigit() else 0 for part in text.split(",")]
        if min(values) < 1 or len(set(values)) < len(values):
            raise UserError(f"{option}: '{text}' is not a list of different numbers from 1; write for example 1,5,10")
        return values

    return parse


def names(option: str, text: str) -> list[str]:
    """The parts of 'a,b,c'."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UserError(f"{option}: '{text}' has an empty name")
    return parts


def main() -> None:
    arguments = parser().parse_args()

    from pretrain.evaluate.ranks import processes_started, started_world
    from pretrain.repeatable import resolve_device

    device = resolve_device(arguments.device)
    with started_world(processes_started(), device) as world:
        for record in evaluations(arguments, device, world):
            if record is not None:
                print(line_of(record), flush=True)


def evaluations(arguments: argparse.Namespace, device: str, world: "World") -> Iterator["Record | None"]:
    """The records of all evaluations that the arguments ask for, on rank 0; all is checked before the first runs."""
    from pretrain.evaluate.stage import config, run
    from pretrain.evaluate.target import Options
    from whitebench.config import validated

    targets = list(_targets(arguments, world))
    own = {name: value for name in ("features", "list", "shots", "probe") if (value := getattr(arguments, name, None))}
    shared = {name: getattr(arguments, name) for name in ("threads", "workers", "loader")}
    variants: list[dict[str, Any]] = [
        {"protocol": protocol, "seed": seed, **({"shift": shift} if shift else {})}
        for protocol in names("--protocol", arguments.protocol)
        for shift in (names("--shifts", arguments.shifts) if arguments.stage == "robust" else [""])
        for seed in arguments.seeds or [arguments.seed]
    ]
    every = [
        validated(
            Options,
            {**shared, **own, **variant, "device": device, "world_size": world.world_size},
            where="--",
            separator="",
        )
        for variant in variants
    ]
    for _, target in targets:
        for options in every:
            config(arguments.stage, target, options)
    for ckpt, target in targets:
        for options in every:
            yield run(arguments.stage, ckpt, target, options, world=world)


def _targets(arguments: argparse.Namespace, world: "World") -> Iterator[tuple[Path, "Target"]]:
    """Every backbone with every dataset."""
    from pretrain.checkpoint import read_backbone
    from pretrain.evaluate.kept import kept_backbones
    from pretrain.evaluate.named_sets import prepare_datasets
    from pretrain.evaluate.target import Target

    ckpts = kept_backbones(arguments.ckpt, arguments.epochs) if arguments.epochs else [arguments.ckpt]
    how = {"encoder": arguments.encoder, "unsafe_pickle": arguments.unsafe_pickle}
    backbones = [(ckpt, read_backbone(ckpt, **how)) for ckpt in ckpts]
    sets: list[str | None] = [arguments.dataset]
    if arguments.datasets:
        sets = [*names("--datasets", arguments.datasets)]
        if arguments.stage not in OWN_LAYOUTS:
            sets = [*prepare_datasets([name for name in sets if name], world, arguments.workers)]
    for ckpt, backbone in backbones:
        for dataset in sets:
            sizes = (arguments.crop, arguments.resize)
            yield ckpt, Target.of_backbone(backbone, dataset, *sizes, file=ckpt.name, **how)


def line_of(record: "Record") -> str:
    """What was evaluated, and its main metrics."""
    metrics = [
        f"{name} {value:.2f}"
        for name, value in record.metrics.items()
        if isinstance(value, float) and (name in SHOWN or name.startswith("shot"))
    ]
    cell, seed = record.cell, record.config.get("seed", 0)
    epoch = f", epoch {cell['kept_epoch']}" if "kept_epoch" in cell else ""
    what = f"{record.stage} {cell['protocol']} on {cell['dataset']}{epoch}, seed {seed}"
    return f"{what}: {'  '.join(metrics)}  ({record.id})"


SHOWN = ("top1", "top5", "mAP", "mAP_easy", "mAP_medium", "mAP_hard", "mCE", "mean_error", "held_out_top1")

if __name__ == "__main__":
    sys.argv[0] = "pretrain.evaluate"
    run_command(main)
