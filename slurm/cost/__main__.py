"""The command `whitebench plan RECIPE [key=value ...] --gpus 8 --nodes 4 --gpu h100`."""

import argparse
import json
from typing import TYPE_CHECKING

from whitebench.errors import UserError, run_command

if TYPE_CHECKING:
    from slurm.cost.hardware import Hardware

EXAMPLES = """\
examples:
  whitebench plan imagenet1k/resa-100ep --gpu h100 --gpus 8            one node of 8 GPUs
  whitebench plan imagenet1k/intl-100ep batch=1024 --gpu a100 --gpus 8 --nodes 4 --cores 128
  whitebench plan --sweep ladder-imagenet --gpu h100                   a whole table
  whitebench plan --detect c4-2x --gpu a100 --gpus 8                   one fine-tuning on COCO
  whitebench plan sample/intl --gpu cpu --cores 2                      no GPU at all

Every constant behind a plan is in benchmarks/constants.yaml, with its source and interval."""


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="whitebench plan",
        description="Estimate what a pretraining or a sweep costs: images/s, hours, energy, memory, bottleneck.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("recipe", nargs="?", metavar="RECIPE", help="a name of `whitebench recipes`, or a YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="recipe keys; with --sweep also sweep.key")
    command.add_argument("--sweep", metavar="SWEEP", help="a sweep instead: its name, or the path of a YAML file")
    command.add_argument("--detect", metavar="PROTOCOL", help="a detection protocol instead, e.g. c4-2x")
    command.add_argument("--gpu", default="h100", metavar="NAME", help="the card, or cpu (default: %(default)s)")
    command.add_argument("--gpus", type=int, metavar="N", help="per node; default: the recipe's processes, or 8")
    command.add_argument("--nodes", type=int, default=1, metavar="N", help="(default: %(default)s)")
    command.add_argument("--cores", type=int, metavar="N", help="CPU cores per node; default: the recipe's workers")
    command.add_argument("--network-gbit", type=float, default=200.0, metavar="X", help="a node's link (%(default)g)")
    command.add_argument(
        "--disk", default="nvme", metavar="KIND", help="memory, nvme, sata, hdd or network (%(default)s)"
    )
    command.add_argument("--memory-gb", type=float, default=512.0, metavar="X", help="of a node (%(default)g)")
    command.add_argument(
        "--written", default="original", metavar="HOW", help="images: original, side-500, side-341, raw (%(default)s)"
    )
    command.add_argument("--images", type=int, metavar="N", help="of the training set, where it is not here")
    command.add_argument("--json", action="store_true", help="print JSON")
    return command


def main() -> int:
    command = parser()
    arguments = command.parse_intermixed_args()
    if arguments.images is not None and arguments.images < 1:
        raise UserError(f"--images: must be positive, not {arguments.images}")
    if arguments.detect is not None:
        if arguments.sweep is not None or arguments.recipe is not None:
            command.error("--detect goes without a recipe and without --sweep")
        return plan_detection(arguments)
    if arguments.sweep is None and arguments.recipe is None:
        command.error("a recipe is needed, or --sweep, or --detect (whitebench recipes lists them)")
    return plan_sweep(arguments) if arguments.sweep is not None else plan_recipe(arguments)


def plan_recipe(arguments: argparse.Namespace) -> int:
    from pretrain.recipe import load
    from slurm.cost.estimate import estimate
    from slurm.cost.table import estimate_text

    recipe = load(arguments.recipe, arguments.overrides)
    gpus = arguments.gpus
    if gpus is None:
        if recipe.processes % max(1, arguments.nodes):
            raise UserError(f"--nodes: {recipe.processes} processes do not divide over {arguments.nodes}; give --gpus")
        gpus = recipe.processes // max(1, arguments.nodes) or 1
    plan = estimate(recipe, _hardware(arguments, gpus), arguments.images)
    print(json.dumps(plan.as_json(), indent=1) if arguments.json else estimate_text(plan))
    return 0


def plan_detection(arguments: argparse.Namespace) -> int:
    from slurm.cost.stages import plan_of_detection
    from slurm.cost.table import detection_text

    plan = plan_of_detection(arguments.detect, _hardware(arguments, arguments.gpus or 8))
    print(json.dumps(plan.as_json(), indent=1) if arguments.json else detection_text(plan))
    return 0


def plan_sweep(arguments: argparse.Namespace) -> int:
    from slurm.cost.sweep import sweep_cost
    from slurm.cost.table import sweep_text
    from slurm.sweep import load_sweep

    words = [text for text in [arguments.recipe, *arguments.overrides] if text is not None]
    for word in words:
        if "=" not in word:
            raise UserError(f"'{word}': with --sweep only key=value; recipes are the sweep's (sweep.recipes=[...])")
    changes = [text.removeprefix("sweep.") for text in words if text.startswith("sweep.")]
    overrides = [text for text in words if not text.startswith("sweep.")]
    if arguments.gpus is not None:
        changes += [f"stages.pretrain.gpus={arguments.gpus}", f"stages.pretrain.nodes={arguments.nodes}"]
    cost = sweep_cost(load_sweep(arguments.sweep, changes, overrides), _hardware(arguments, 1), arguments.images)
    if not cost.rows and cost.errors:
        raise UserError(cost.errors[0])
    print(json.dumps(cost.as_json(), indent=1) if arguments.json else sweep_text(cost))
    return 0


def _hardware(arguments: argparse.Namespace, gpus: int) -> "Hardware":
    from slurm.cost.hardware import hardware

    return hardware(
        arguments.gpu,
        gpus=gpus,
        nodes=arguments.nodes,
        cores=arguments.cores,
        network_gbit=arguments.network_gbit,
        disk=arguments.disk,
        memory_gb=arguments.memory_gb,
        written=arguments.written,
    )


if __name__ == "__main__":
    run_command(main)
