"""The throughput model beside what was measured in this project and what others have published.

python benchmarks/plan_check.py [--fit] [--markdown]

Each row: what the model says, its interval, the figure, and the relative error. Rows marked `fitted` were used to
choose constants of the model; the others were not. --fit prints the shares behind `step` in constants.yaml.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretrain.recipe import Recipe, load
from slurm.cost.constants import constants
from slurm.cost.estimate import estimate
from slurm.cost.hardware import Hardware, hardware
from slurm.cost.quantity import Quantity
from slurm.cost.reading import dataset_of, reading_of
from slurm.cost.stages import backbone_alone, detect_hours
from slurm.cost.work import work_of

IMAGENET = 1_281_167
FFCV = "libffcv/ffcv-imagenet 038bc26: README.md"
NVIDIA = "NVIDIA/DeepLearningExamples 291f0d0: resnet50v1.5/README.md"


@dataclass(frozen=True)
class Row:
    what: str
    unit: str
    predicted: Quantity
    figure: float
    source: str
    fitted: bool = False
    remark: str = ""
    least: bool = False
    """Whether the prediction is a lower bound: of the step alone, where the figure was held back by a loader."""

    @property
    def error(self) -> float:
        return self.predicted.value / self.figure - 1

    @property
    def within(self) -> bool:
        return self.predicted.low <= self.figure and (self.least or self.figure <= self.predicted.high)


# --- figures of this project ------------------------------------------------------------------------------------------


def loader_row(name: str, figure: float, sizes: list[int], written: str = "original", **colour: float) -> Row:
    """Images per second of two cores."""
    recipe = load("imagenet1k/resa-100ep", {"data.colour.jitter_p": 0.0, "data.colour.blur_p": 0.0})
    views = tuple(replace(recipe.data.views[0], size=size, count=1) for size in sizes)
    shares = replace(recipe.data.colour, gray_p=0.0, solarize_p=0.0, **colour)  # type: ignore[arg-type]
    recipe = replace(recipe, data=replace(recipe.data, views=views, colour=shares, placement="loader"))
    host = hardware("h100", cores=2, written=written)
    reading = reading_of(recipe, host, dataset_of(recipe, host, IMAGENET))
    rate = constants()("reading.batch_wait") * 2000.0 / reading.cpu_ms
    return Row(f"loader, {name}, 2 cores", "images/s", rate, figure, "benchmarks/loader.json, n = 4", fitted=True)


def project_rows() -> list[Row]:
    six = [224, 224, 192, 160, 128, 96]
    rows = [
        loader_row("2 x 224", 1450, [224, 224]),
        loader_row("2 x 224 + 6 x 96", 1303, [224, 224] + [96] * 6),
        loader_row("INTL's six sizes", 1244, six),
        loader_row("2 x 224, colour", 764, [224, 224], jitter_p=0.8, blur_p=0.5),
        loader_row("2 x 224, side 500", 1565, [224, 224], written="side-500"),
        loader_row("2 x 224, side 341", 3672, [224, 224], written="side-341"),
        loader_row("2 x 224, raw", 7166, [224, 224], written="raw"),
        loader_row("2 x 224 + 6 x 96, raw", 5049, [224, 224] + [96] * 6, written="raw"),
    ]
    for backbone, size, figure in (("resnet18", 48, 300), ("resnet18", 64, 215), ("resnet50", 64, 60)):
        flops = work_of(alone(backbone, size), 32).flops
        rate = constants()("cpu.gflops_per_core") * (2e9 / flops)
        rows.append(
            Row(
                f"{backbone} at {size} px, 2 CPU cores", "images/s", rate, figure, "DESIGN.md, environment", fitted=True
            )
        )
    sample = estimate(load("sample/intl"), hardware("cpu", cores=1))
    rows.append(
        Row(
            "sample/intl, one thread",
            "images/s",
            sample.images_per_s,
            544,
            "records of 3 seeds, beside another job",
        )
    )
    seconds = detect_hours(hardware("cpu", cores=1), {"protocol": "sample"}) * 3600.0
    rows.append(Row("detection, protocol sample, one core", "s", seconds, 84, "README.md, n = 1", fitted=True))
    return rows + gpu_rows()


def gpu_rows() -> list[Row]:
    """SimCLR's training step with synthetic input, in bf16, as PyTorch runs it without being asked to compile."""
    rows, source = [], "benchmarks/gpu_h200.json, n = 1"
    for name, batch, rate, memory in (
        ("imagenet1k/simclr-100ep", 256, 2256, 23.3),
        ("cifar10/simclr", 512, 21623, 2.77),
    ):
        recipe = load(name, {"precision": "bf16", "world_size": 1, "batch": batch, "data.loader": "device"})
        planned = estimate(recipe, hardware("h200"), 1_000_000)
        rows.append(Row(f"{name}, h200", "images/s", planned.images_per_s, rate, source, fitted=True))
        rows.append(Row(f"{name}, h200, memory", "GB", planned.memory_gb, memory, source))
    return rows


# --- published figures ------------------------------------------------------------------------------------------------


def alone(backbone: str, size: int, precision: str = "bf16", batch: int = 256) -> Recipe:
    """A backbone trained as a classifier of one view."""
    recipe = backbone_alone(load("imagenet1k/supervised-100ep", {"network.backbone": backbone}))
    views = (replace(recipe.data.views[0], size=size),)
    data = replace(recipe.data, views=views, loader="device")  # their loaders are not ours: the step alone
    network = replace(recipe.network, sync_bn=False)
    return replace(recipe, data=data, network=network, precision=precision, batch=batch)  # type: ignore[arg-type]


def classifier(backbone: str, size: int, card: Hardware, precision: str = "bf16", batch: int = 256) -> Quantity:
    """Images per second of all cards, `batch` images on each."""
    recipe = alone(backbone, size, precision, batch * card.processes)
    return estimate(replace(recipe, world_size=card.processes), card, IMAGENET).images_per_s


def ffcv_minutes(backbone: str, gpus: int, batch: int, epochs: int) -> Quantity:
    """Their images grow from 160 px (until epoch 65 of 88) to 192 (from epoch 76 on)."""
    card = hardware("a100-40", gpus=gpus)
    small, large = (classifier(backbone, size, card, batch=batch) for size in (160, 192))
    images = float(epochs * IMAGENET)
    return (small.inverse() * 0.8 + large.inverse() * 0.2) * (images / 60)


def pretraining(name: str, card: Hardware, overrides: dict[str, Any] | None = None) -> Any:
    recipe = load(name, {"world_size": card.processes, "data.loader": "device", **(overrides or {})})
    return estimate(recipe, card, IMAGENET)


def published_rows() -> list[Row]:
    step_rates = constants().raw["step_rates"]
    rows = []
    for entry in step_rates:
        for precision, key in (("bf16", "half"), ("fp32", "single")):
            if key in entry and _has(entry["backbone"]):
                rate = classifier(entry["backbone"], 224, hardware(entry["card"]), precision)
                what = f"{entry['backbone']} 224 px, {entry['card']}, {key} precision"
                rows.append(Row(what, "images/s", rate, entry[key], entry["source"], fitted=True))
    a100, v100 = hardware("a100", gpus=8), hardware("v100", gpus=8)
    own_loader = "torchvision's loader is in it: the step alone is a lower bound"
    rows += [
        Row("resnet50 224 px, 8 x A100, mixed", "images/s", classifier("resnet50", 224, a100), 16621, NVIDIA, True),
        Row("resnet50 224 px, 8 x V100, mixed", "images/s", classifier("resnet50", 224, v100), 8322, NVIDIA),
        Row("resnet50 224 px, A100, mixed", "images/s", classifier("resnet50", 224, hardware("a100"), batch=512), 2600,
            "huggingface/pytorch-image-models issue 1491"),
        Row("resnet50, 88 epochs, 8 x A100", "min", ffcv_minutes("resnet50", 8, 128, 88), 77.2, FFCV),
        Row("resnet50, 16 epochs, 8 x A100", "min", ffcv_minutes("resnet50", 8, 128, 16), 14.9, FFCV),
        Row("resnet18, 88 epochs, A100", "min", ffcv_minutes("resnet18", 1, 1024, 88), 187.3, FFCV),
        Row("resnet18, 16 epochs, A100", "min", ffcv_minutes("resnet18", 1, 1024, 16), 35.0, FFCV),
        Row("MoCo v2, resnet50, 200 epochs, 8 x V100", "h",
            pretraining("imagenet1k/moco-v2-200ep", v100, {"precision": "fp32"}).hours, 53,
            "facebookresearch/moco 5670021: README.md", remark=own_loader, least=True),
        Row("SwAV 2x224+6x96, batch 4096, 64 V100, an epoch", "min",
            pretraining("imagenet1k/swav-200ep", hardware("v100", gpus=8, nodes=8),
                        {"batch": 4096, "precision": "fp16"}).hours * (60 / 200), 3.667,
            "facebookresearch/swav 027a54a: README.md", remark="cards not named there; " + own_loader, least=True),
        Row("SimCLR, resnet50, 100 epochs, batch 256, 2 x RTX 4090", "days",
            pretraining("imagenet1k/simclr-100ep", hardware("rtx4090", gpus=2),
                        {"batch": 256, "precision": "fp16"}).hours * (1 / 24), 4.0,
            "lightly docs benchmarks.rst: about four days including evaluation", remark=own_loader, least=True),
        Row("the same, an earlier edition", "days",
            pretraining("imagenet1k/simclr-100ep", hardware("rtx4090", gpus=2),
                        {"batch": 256, "precision": "fp16"}).hours * (1 / 24), 2.0,
            "lightly 0243660: benchmarks.rst: about two days", remark=own_loader, least=True),
        Row("ReSA, resnet50, batch 256 on one GPU, memory", "GB",
            pretraining("imagenet1k/resa-100ep", hardware("a100")).memory_gb, 25.2, "winci-ai/resa e7869d1: README.md"),
        Row("SimCLR, resnet18 CIFAR stem, batch 512, memory", "GB", cifar_memory(), 4.9,
            "lightly 0243660: benchmarks.rst", remark="precision not stated; mixed assumed"),
    ]  # fmt: skip
    for protocol, family, figure in (("c4-1x", "c4", 0.584), ("fpn-1x", "fpn", 0.261)):
        hours = detect_hours(hardware("v100", gpus=8), {"protocol": protocol})
        train = hours * (3600 / 90_000)
        source = "facebookresearch/detectron2 02478d2: MODEL_ZOO.md"
        rows.append(Row(f"Mask R-CNN {family} 1x, 8 x V100, per iteration", "s", train, figure, source, fitted=True))
    return rows


def _has(backbone: str) -> bool:
    """timm is not a requirement."""
    return not backbone.startswith("timm:") or find_spec("timm") is not None


def cifar_memory() -> Quantity:
    recipe = load("cifar10/simclr", {"batch": 512, "precision": "bf16"})
    return estimate(recipe, hardware("a6000"), 50_000).memory_gb


# --- output -----------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    lines = ["| what | predicted | figure | unit | error | in the interval | source |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        remark = f"; {row.remark}" if row.remark else ""
        kind = " (fitted)" if row.fitted else " (at least)" if row.least else ""
        lines.append(
            f"| {row.what}{kind} | {row.predicted} | {row.figure:,.4g} | {row.unit} | {row.error:+.0%} | "
            f"{'yes' if row.within else 'no'} | {row.source}{remark} |"
        )
    return "\n".join(lines)


def shares() -> str:
    """Of each published step rate: the share of the card's bandwidth by kept activations, and of its peak."""
    lines = ["card, backbone, precision: share of bandwidth, share of peak"]
    for entry in constants().raw["step_rates"]:
        card = constants().card(entry["card"])
        if not _has(entry["backbone"]):
            lines.append(f"{entry['backbone']}: timm is not installed")
            continue
        work = work_of(alone(entry["backbone"], 224), 32)
        for key, size, peak in (("half", 0.5, card.half_tflops), ("single", 1.0, card.single_tflops)):
            if key in entry:
                traffic = entry[key] * work.kept_bytes * size / (card.bandwidth * 1e9)
                products = entry[key] * work.encoder_flops / (peak * 1e12)
                lines.append(f"{card.name:8} {entry['backbone']:22} {key:7} {traffic:.4f} {products:.2f}")
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    bounds = [row for row in rows if row.least]
    free = [row for row in rows if not row.fitted and not row.least]
    typical = sorted(abs(row.error) for row in free)[len(free) // 2]
    inside = sum(row.within for row in free)
    return (
        f"{len(free)} figures that were not fitted: median error {typical:.0%}, {inside} within the interval; "
        f"{sum(row.within for row in bounds)} of {len(bounds)} lower bounds hold; "
        f"{sum(row.fitted for row in rows)} were fitted"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="print the shares from which `step` was chosen")
    options = parser.parse_args()
    if options.fit:
        print(shares())
        return
    parts: list[tuple[str, Callable[[], list[Row]]]] = [
        ("Measured in this project", project_rows),
        ("Published", published_rows),
    ]
    everything: list[Row] = []
    for title, make in parts:
        rows = make()
        everything += rows
        print(f"### {title}\n\n{table(rows)}\n", flush=True)
    print(summary(everything))


if __name__ == "__main__":
    from whitebench.errors import run_command

    run_command(main)
