"""Everything that wants a GPU, by one command that may be called again and again until all is done.

python benchmarks/gpu.py [--out gpu-run] [--minutes 8.5] [--device cuda|cpu] [--tiny] [--only TEXT] [--memory-gb X]
                         [--cifar10 PATH] [--images FOLDER] [--seeds 0,1,2] [--epochs 200] [--retry] [--list]

In this order: (1) losses and gradients on the device against float64 on the CPU, every method one step in bf16 and
fp16, DDP of one process, resumption bit by bit, trainings to their end and their evaluation; (2) losses.py; (3) the
training step of a ResNet-50 at 2 x 224 and of a ResNet-18 with CIFAR's stem, with synthetic and real input, compiled
and with CUDA graphs; (4) CIFAR-10 by the papers' recipes. Each part runs in a process of its own; a training that the
time ends is continued by the next call. All is left in one folder: gpu.json, summary.md, logs/, runs/. Neither ffcv nor
detectron2 is needed. --device cpu --tiny runs the same on a CPU in small sizes: a rehearsal, no measurement.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.gpu_runs import ROOT, Part, run_all
from whitebench.errors import UserError, parse_seeds, run_command

CIFAR_RECIPES = (
    "intl", "cwrgp-2view", "simclr", "barlow-twins", "vicreg", "byol", "simsiam", "moco-v2", "swav", "dino", "resa",
    "corinfomax", "frossl", "mmcr", "dcl", "nnclr", "vibcreg", "tregs", "spectral", "wmse-2view", "shuffled-dbn",
    "zero-icl", "supervised",
)  # fmt: skip
FIRST_FOUR = 4


def main() -> int:
    options = parser().parse_args()
    if options.part:
        from benchmarks.gpu_parts import PARTS, limit_memory

        limit_memory(options)
        print(json.dumps(PARTS[options.part](options, json.loads(options.arguments))))
        return 0
    out = options.out.absolute()
    parts = list(parts_of(options, out))
    if options.only:
        parts = [part for part in parts if options.only in part.name]
        if not parts:
            raise UserError(f"--only: no part's name contains '{options.only}' (--list shows them)")
    if options.list:
        print("\n".join(part.name for part in parts))
        return 0
    return run_all(parts, options, out)


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--out", type=Path, default=Path("gpu-run"), help="folder (default: %(default)s)")
    command.add_argument("--minutes", type=float, default=8.5, help="that this call may take (default: %(default)s)")
    command.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: %(default)s)")
    command.add_argument("--tiny", action="store_true", help="small sizes: a rehearsal")
    command.add_argument("--only", default="", metavar="TEXT", help="parts whose name contains it")
    command.add_argument("--memory-gb", type=float, metavar="X", help="of the device that may be used; default: all")
    command.add_argument("--cifar10", type=Path, metavar="PATH", help="CIFAR-10 as its site has it; else random images")
    command.add_argument("--images", type=Path, metavar="FOLDER", help="photos for the 224 px input; else random ones")
    command.add_argument("--seeds", type=parse_seeds, default=[0, 1, 2], metavar="0,1,2", help="of the trainings")
    command.add_argument("--epochs", type=int, default=200, help="of the trainings (default: %(default)s)")
    command.add_argument("--retry", action="store_true", help="run again what has failed")
    command.add_argument("--list", action="store_true", help="list the parts")
    command.add_argument("--part", help=argparse.SUPPRESS)
    command.add_argument("--arguments", default="{}", help=argparse.SUPPRESS)
    return command


# --- the parts --------------------------------------------------------------------------------------------------------


def parts_of(options: argparse.Namespace, out: Path) -> Iterator[Part]:
    for name in ("losses", "methods", "ddp", "resumption", "training"):
        yield inside(options, f"1 check {name}", "check", {"name": name}, 30)
    yield from loss_benchmarks(options)
    yield inside(options, "3 datasets", "datasets", {}, 30)
    yield from step_parts(options)
    yield from cifar_parts(options)


def inside(options: argparse.Namespace, name: str, kind: str, arguments: dict[str, Any], seconds: float) -> Part:
    """A part that is a function of this file, in a process of its own."""
    command = [sys.executable, str(Path(__file__).absolute()), "--part", kind, "--arguments", json.dumps(arguments)]
    command += ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    for option in ("memory_gb", "cifar10", "images"):
        value = getattr(options, option)
        command += [f"--{option.replace('_', '-')}", str(value)] if value is not None else []
    return Part(name, command, seconds)


def loss_benchmarks(options: argparse.Namespace) -> Iterator[Part]:
    script = [sys.executable, str(ROOT / "benchmarks" / "losses.py"), "--device", options.device]
    if options.tiny:
        yield Part("2 losses", [*script, "--rounds", "1", "--only", "W-MSE"], 10, json=False)
        return
    for family in ("CW-RGP", "INTL", "W-MSE", "Barlow", "VICReg", "LeJEPA", "VISReg", "MMCR", "I-VNE", "SimDINO", "EMP",
                   "MEC", "Matrix", "FroSSL", "VIbCReg", "CorInfoMax", "TiCo", "T-REGS", "DCL"):  # fmt: skip
        yield Part(f"2 losses {family}", [*script, "--only", family], 30, json=False)


def step_parts(options: argparse.Namespace) -> Iterator[Part]:
    forms = ("eager", "compiled", "graphs") if options.device == "cuda" else ("eager",)
    in_loader, on_device, both = ("loader",), ("accelerator",), ("loader", "accelerator")
    cases: list[tuple[str, dict[str, Any], list[tuple[str, str, tuple[str, ...]]]]] = [
        (
            "resnet50 2x224",
            {"recipe": "imagenet1k/simclr-100ep", "batch": 256},
            [("gpu-224", "folder", both), ("gpu-224-raw", "folder", in_loader), ("gpu-224", "ffcv", both)],
        ),
        ("resnet18 cifar", {"recipe": "cifar10/simclr", "batch": 512}, [("gpu-32", "device", on_device)]),
    ]
    for title, case, inputs in cases:
        for form in forms:
            arguments = {**case, "source": "synthetic", "form": form, "dataset": inputs[0][0], "loader": inputs[0][1]}
            yield inside(options, f"3 step {title} synthetic {form}", "step", arguments, 60)
        for dataset, loader, places in inputs:
            for place in places:
                arguments = {**case, "source": place, "form": "eager", "dataset": dataset, "loader": loader}
                name = f"3 step {title} {loader} of {dataset}, colour in the {place}"
                yield inside(options, name, "step", arguments, 60)
    for name in ("simclr", "cwrgp-2view", "intl", "swav", "moco-v2"):
        yield inside(options, f"3 waits {name}", "waits", {"recipe": f"cifar10/{name}", "dataset": "gpu-32"}, 40)


def cifar_parts(options: argparse.Namespace) -> Iterator[Part]:
    """The first four with one seed, the others with one seed, then the further seeds."""
    recipes = ("simclr",) if options.tiny else CIFAR_RECIPES
    order = [(recipe, options.seeds[0]) for recipe in recipes]
    order += [(recipe, seed) for seed in options.seeds[1:] for recipe in recipes[:FIRST_FOUR]]
    for recipe, seed in order[: 1 if options.tiny else None]:
        words = [f"cifar10/{recipe}", f"seed={seed}", *cifar_overrides(recipe, options)]
        train = [sys.executable, "-m", "pretrain", *words]
        yield Part(f"4 cifar10 {recipe} seed {seed}", train, 60, resumes=True, json=False)
        for stage in ("knn", "linear"):
            arguments = {"words": words, "stage": stage}
            yield inside(options, f"4 cifar10 {recipe} seed {seed} {stage}", "evaluate", arguments, 60)


def cifar_overrides(recipe: str, options: argparse.Namespace) -> list[str]:
    from pretrain.recipe import load

    epochs = 1 if options.tiny else options.epochs
    words = ["data.dataset=gpu-cifar10", "data.loader=device", f"device={options.device}", f"schedule.epochs={epochs}"]
    words += ["monitor.spectra_every=0", "monitor.knn_every=0", "machine.checkpoint_minutes=1"]
    words += ["precision=fp32" if options.device == "cpu" else "precision=bf16"]
    published = load(f"cifar10/{recipe}")
    if options.tiny:
        words += ["schedule.kind=constant", "schedule.steps=[]"]
    elif published.schedule.epochs != epochs and published.schedule.kind == "step":  # keep the share of the training
        last = published.schedule.epochs
        steps = [step if step < 0 else step - last for step in published.schedule.steps]
        words.append(f"schedule.steps={[-max(1, round(-step * epochs / last)) for step in steps]}".replace(" ", ""))
    if options.tiny:
        words += ["batch=32", "network.stem=imagenet", "schedule.warmup_epochs=0", "schedule.warmup_iterations=0"]
    return words


if __name__ == "__main__":
    run_command(main)
