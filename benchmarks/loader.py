"""What views cost: ours beside stock FFCV, torchvision's DataLoader and the bare decoding of the JPEGs.

python benchmarks/loader.py --images FOLDER [--workers 2] [--epochs 3] [--rounds 3]

FOLDER is an ImageFolder (or <class>/<image> alone). The contestants take turns, each in a process of its own that first
warms up for an epoch. Crops and flips only, bilinear, but where the name says more. Goals: two 224 views at 2.5 times
stock FFCV's rate and 3 times torchvision's, for at most 1.25 times the bare decoding; 2 x 224 + 6 x 96 for at most 1.25
times 2 x 224; the first batch within 3 s.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAIR = [{"size": 224, "count": 2, "interpolation": "bilinear"}]
MULTI = [*PAIR, {"size": 96, "count": 6, "scale": (0.05, 0.2), "interpolation": "bilinear"}]
CUBIC = [{"size": 224, "count": 2}]
COLOUR = {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_p": 0.8, "gray_p": 0.2, "blur_p": 0.5, "solarize_p": 0.1}
SCALE = (0.2, 1.0)
Epoch = Callable[[int], int]
"""Runs through an epoch and returns the number of images."""


def ours(options: argparse.Namespace, views: list[dict[str, Any]], **colour: Any) -> Epoch:
    from pretrain.data import training_loader
    from pretrain.data.manifest import read_manifest
    from pretrain.recipe import Colour, Data, Views

    data = Data(dataset="photos", views=tuple(Views(**view) for view in views), colour=Colour(**colour))
    manifest = read_manifest(options.dataset)
    loader = training_loader(data, manifest, seed=0, batch=options.batch, workers=options.workers)
    return lambda epoch: sum(len(batch.index) for batch in loader.epoch(epoch))


def stock_ffcv(options: argparse.Namespace) -> Epoch:
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline import PipelineSpec
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    def view() -> Any:
        decoder = RandomResizedCropRGBImageDecoder((224, 224), scale=SCALE)
        return PipelineSpec("image", decoder=decoder, transforms=[RandomHorizontalFlip(), ToTensor()])

    loader = Loader(
        str(options.dataset / "train.beton"),
        batch_size=options.batch,
        num_workers=options.workers,
        order=OrderOption.RANDOM,
        seed=0,
        pipelines={"image": view(), "second": view()},
    )
    return lambda _: sum(len(batch[0]) for batch in loader)


def torchvision_loader(options: argparse.Namespace) -> Epoch:
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    view = transforms.Compose(
        [transforms.RandomResizedCrop(224, SCALE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )
    images = ImageFolder(str(options.images), lambda image: (view(image), view(image)))
    loader: Any = DataLoader(images, options.batch, shuffle=True, drop_last=True, num_workers=options.workers)
    return lambda _: sum(len(labels) for _, labels in loader)


def bare_decoding(options: argparse.Namespace) -> Epoch:
    import numpy as np

    from pretrain.data.beton_images import BetonImages
    from pretrain.data.libjpeg import import_ffcv
    from pretrain.data.manifest import read_manifest
    from pretrain.data.render import pool

    images = BetonImages(read_manifest(options.dataset), "train")
    samples, decode = images.samples, import_ffcv("ffcv.libffcv").ctypes_imdecode
    data = [samples.bytes_of(index, samples.open()) for index in range(len(samples))]
    room = [np.zeros(3 * int((samples.height * samples.width).max()), np.uint8) for _ in range(options.workers)]

    def part(worker: int) -> int:
        numbers = range(worker, len(data), options.workers)
        for index in numbers:
            height, width = images.sides(index)
            address = room[worker].ctypes.data
            decode(data[index], len(data[index]), height, width, address, height, width, 0, 0, 1, 1, False, False)
        return len(numbers)

    return lambda _: sum(pool(options.workers).map(part, range(options.workers)))


CONTESTANTS: dict[str, Callable[[argparse.Namespace], Epoch]] = {
    "bare decoding": bare_decoding,
    "ours, 2 x 224": lambda options: ours(options, PAIR),
    "ours, 2 x 224 + 6 x 96": lambda options: ours(options, MULTI),
    "ours, 2 x 224 bicubic": lambda options: ours(options, CUBIC),
    "ours, 2 x 224 bicubic, colour": lambda options: ours(options, CUBIC, **COLOUR),
    "stock ffcv, 2 x 224": stock_ffcv,
    "torchvision, 2 x 224": torchvision_loader,
}
RATIOS = (
    ("images/s over stock ffcv", "rate", "ours, 2 x 224", "stock ffcv, 2 x 224", "at least 2.5"),
    ("images/s over torchvision", "rate", "ours, 2 x 224", "torchvision, 2 x 224", "at least 3"),
    ("CPU over bare decoding", "cpu", "ours, 2 x 224", "bare decoding", "at most 1.25"),
    ("CPU of 2 x 224 + 6 x 96 over 2 x 224", "cpu", "ours, 2 x 224 + 6 x 96", "ours, 2 x 224", "at most 1.25"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=3, help="timed in each turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, metavar="NAME", help="of: " + "; ".join(CONTESTANTS))
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--dataset", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(turn(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        from pretrain.data.beton import write_image_folder

        options.dataset = Path(folder) / "photos"
        manifest = write_image_folder(options.images, options.dataset, workers=options.workers)
        if manifest.source_splits["train"]:
            options.images = options.images / manifest.source_splits["train"]
        count = manifest.splits["train"].count
        size = (options.dataset / "train.beton").stat().st_size / count
        print(
            f"{count} JPEGs, mean {size / 1e3:.0f} KB; {options.workers} workers, batches of {options.batch}",
            flush=True,
        )
        report(compete(options))


def compete(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What each contestant's turns measured."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only or CONTESTANTS}
    command = [sys.executable, __file__, "--images", str(options.images), "--dataset", str(options.dataset)]
    for name in ("workers", "batch", "epochs"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    for _ in range(options.rounds):
        for name, measured in turns.items():
            done = subprocess.run(
                [*command, "--contestant", name], env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            measured.append(json.loads(done.stdout.splitlines()[-1]))
    return turns


def turn(options: argparse.Namespace) -> dict[str, Any]:
    """The warm-up's seconds, and images/s and CPU ms an image of each epoch after it."""
    import torch  # whose import is not the loader's cost

    began = time.perf_counter()
    epoch = CONTESTANTS[options.contestant](options)
    epoch(0)
    measured: dict[str, Any] = {
        "warm_up": time.perf_counter() - began,
        "rate": [],
        "cpu": [],
        "torch": torch.__version__,
    }
    for number in range(1, options.epochs + 1):
        began, cpu = time.perf_counter(), cpu_seconds()
        images = epoch(number)
        measured["rate"].append(images / (time.perf_counter() - began))
        measured["cpu"].append(1000 * (cpu_seconds() - cpu) / images)
    return measured


def cpu_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def report(turns: dict[str, list[dict[str, Any]]]) -> None:
    medians = {
        name: {key: statistics.median(value for one in measured for value in one[key]) for key in ("rate", "cpu")}
        for name, measured in turns.items()
    }
    print(f"{'median over epochs':32s} {'images/s':>9s} {'CPU ms/image':>13s} {'first epoch s':>14s}")
    for name, median in medians.items():
        first = min(one["warm_up"] for one in turns[name])
        print(f"{name:32s} {median['rate']:9.0f} {median['cpu']:13.2f} {first:14.1f}")
    for what, key, mine, other, goal in RATIOS:
        if mine in medians and other in medians:
            print(f"{what:40s} {medians[mine][key] / medians[other][key]:5.2f}  (goal: {goal})")


if __name__ == "__main__":
    main()
