"""The training step with real and with synthetic input: images/s, share of the time it waits for data, memory.

python benchmarks/step.py [RECIPE key=value ...] [--steps 20] [--rounds 3] [--images FOLDER] [--out step.json]

The recipe's own loop, network and loss run in a process of their own, in turns with each input; medians over rounds.
Synthetic is the same random batch again and again, which lies on the device already: the rate that the model sets. On
an accelerator both placements are measured. Goals there: at least 90 % of the synthetic rate, waiting under 2 %.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SYNTHETIC = "synthetic"
Turns = dict[str, list[dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="sample/intl", help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. batch=64 machine.workers=8")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="an ImageFolder instead of the recipe's dataset")
    parser.add_argument("--steps", type=int, default=20, help="timed in each turn (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns with each input (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="keep all that was measured")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.turn:
        print(json.dumps(turn(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.images:
            use_images(options, Path(folder))
        results = race(options)
    print(table(results))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def use_images(options: argparse.Namespace, root: Path) -> None:
    """Writes them as a dataset of their own, which the recipe then reads."""
    from pretrain.data.betons.write import write_dataset

    write_dataset(options.images, root / "images", workers=2, skip_bad=True)
    os.environ["WHITEBENCH_DATA"] = str(root)
    options.overrides = [*options.overrides, "data.dataset=images"]


def race(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from pretrain.recipe import load
    from pretrain.run_identity import resolved

    recipe = resolved(load(options.recipe, options.overrides))
    inputs = [SYNTHETIC, recipe.data.placement]
    if recipe.device == "cuda" and recipe.data.loader != "device" and not recipe.data.colour.before_crop:
        inputs = [SYNTHETIC, "loader", "accelerator"]
    command = [sys.executable, __file__, options.recipe, *options.overrides]
    command += ["--steps", str(options.steps), "--warm-up", str(options.warm_up)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(recipe.threads), "PYTHONPATH": str(ROOT)}
    turns: Turns = {name: [] for name in inputs}
    load_before = os.getloadavg()[0]
    for _ in range(options.rounds):
        for name in inputs:
            done = subprocess.run([*command, "--turn", name], env=environment, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(done.returncode)  # it has said why
            turns[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "recipe": " ".join([options.recipe, *options.overrides]),
        "loader": recipe.data.loader,
        "backbone": recipe.network.backbone,
        "views": recipe.view_sizes,
        "batch": recipe.batch // recipe.world_size,
        "workers": recipe.machine.workers,
        "device": torch.cuda.get_device_name() if recipe.device == "cuda" else f"{os.cpu_count()} CPU cores",
        "torch": torch.__version__,
        "steps": options.steps,
        "load": [load_before, os.getloadavg()[0]],
        "turns": turns,
    }


def turn(options: argparse.Namespace) -> dict[str, Any]:
    from pretrain.recipe import load
    from pretrain.speed import training_speed

    recipe = load(options.recipe, options.overrides)
    if options.turn != SYNTHETIC:
        recipe = replace(recipe, data=replace(recipe.data, placement=options.turn))
    return asdict(training_speed(recipe, options.steps, options.warm_up, options.turn == SYNTHETIC))


def table(results: dict[str, Any]) -> str:
    """In Markdown."""
    turns: Turns = results["turns"]
    rows = {
        name: {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        for name, measured in turns.items()
    }
    load = " to ".join(f"{load:.1f}" for load in results["load"])
    sizes = results["views"]
    views = ", ".join(f"{sizes.count(size)} x {size}" for size in sorted(set(sizes), reverse=True))
    lines = [
        f"`{results['recipe']}`: {results['backbone']}, views {views}, batch {results['batch']}, {results['workers']} "
        f"workers, loader={results['loader']}; {results['device']} at a load of {load}, torch {results['torch']}; "
        f"medians of {len(turns[SYNTHETIC])} turns of {results['steps']} steps.",
        "",
        "| input | images/s | of synthetic | CPU ms/image | waiting for data | first batch, s | peak memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in rows.items():
        share = one["images_per_s"] / rows[SYNTHETIC]["images_per_s"]
        title = name if name == SYNTHETIC else f"real, colour in the {name}"
        lines.append(
            f"| {title} | {one['images_per_s']:.1f} | {share:.0%} | {one['cpu_ms']:.1f} | "
            f"{one['data_wait']:.1%} | {one['first_batch_s']:.2f} | {one['memory'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    from whitebench.errors import run_command

    run_command(main)
