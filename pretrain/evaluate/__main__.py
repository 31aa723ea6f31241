"""The command `python -m pretrain.evaluate linear|knn|semi --ckpt PATH`."""

import argparse
import sys
from pathlib import Path

from pretrain.evaluate.protocols import describe
from pretrain.evaluate.target import FEATURES
from whitebench.errors import parse_seeds, run_command

LISTS = """
labelled images:
  The papers use the lists of github.com/google-research/simclr, imagenet_subsets/1percent.txt and 10percent.txt:
  download the one that the protocol needs, and give it by --list. Without a list, the share of each class is drawn by
  the seed, and the record says so.
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m pretrain.evaluate", description="Evaluate a backbone.")
    stages = top.add_subparsers(dest="stage", required=True)
    for stage, default, text in (
        ("linear", "features", "train a linear classifier on frozen features"),
        ("knn", "cosine-20", "classify by the nearest training images"),
        ("semi", "sample-10", "fine-tune backbone and a linear classifier on 1 %% or 10 %% of the training labels"),
    ):
        command = stages.add_parser(
            stage,
            help=text,
            epilog=f"protocols:\n{describe(stage)}\n{LISTS if stage == 'semi' else ''}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            "--ckpt", type=Path, required=True, help="a checkpoint, or the folder of a pretraining run"
        )
        command.add_argument("--protocol", default=default, help="default: %(default)s")
        command.add_argument(
            "--dataset", help="folder of $WHITEBENCH_DATA; default: what the checkpoint was trained on"
        )
        command.add_argument("--crop", type=int, metavar="PIXELS", help="side of the centre crop")
        command.add_argument("--resize", type=int, metavar="PIXELS", help="short side before it")
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        command.add_argument("--threads", type=int, default=1, help="intra-op threads (part of the run's identity)")
        command.add_argument("--workers", type=int, default=1, help="threads that decode images")
        command.add_argument("--loader", choices=("ffcv", "folder"), default="ffcv", help="part of the run's identity")
        if stage == "semi":
            command.add_argument("--list", type=Path, metavar="FILE", help="names of the labelled images, one per line")
        else:
            command.add_argument(
                "--features",
                choices=FEATURES,
                default=FEATURES[0],
                help="input of the evaluation: the backbone's output (default), the projector's, or the method's "
                "transform of that in batches as large as in its training; the latter two for this suite's own runs",
            )
        seeds = command.add_mutually_exclusive_group()
        seeds.add_argument("--seed", type=int, default=0)
        seeds.add_argument("--seeds", type=parse_seeds, metavar="0,1,2", help="repeat with each of these seeds")
    return top


def main() -> None:
    arguments = parser().parse_args()

    from pretrain.checkpoint import read_backbone
    from pretrain.evaluate.stage import run
    from pretrain.evaluate.target import Options, Target
    from pretrain.repeatable import resolve_device
    from whitebench.config import validated

    backbone = read_backbone(arguments.ckpt)
    target = Target.of_backbone(backbone, arguments.dataset, arguments.crop, arguments.resize)
    stage_options = {name: value for name in ("features", "list") if (value := getattr(arguments, name, None))}
    for seed in arguments.seeds or [arguments.seed]:
        options = validated(
            Options,
            {
                "protocol": arguments.protocol,
                "seed": seed,
                "device": resolve_device(arguments.device),
                "threads": arguments.threads,
                "workers": arguments.workers,
                "loader": arguments.loader,
                **stage_options,
            },
            where="--",
            separator="",
        )
        record = run(arguments.stage, arguments.ckpt, target, options)
        metrics = "  ".join(f"{name} {record.metrics[name]:.2f}" for name in ("top1", "top5"))
        print(f"{arguments.stage} {options.protocol} on {target.dataset}, seed {seed}: {metrics}  ({record.id})")


if __name__ == "__main__":
    sys.argv[0] = "pretrain.evaluate"
    run_command(main)
