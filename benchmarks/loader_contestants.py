"""Who competes in `loader.py`. Each makes a function that runs through an epoch and returns its number of images."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAIR = [{"size": 224, "count": 2, "interpolation": "bilinear"}]
MULTI = [*PAIR, {"size": 96, "count": 6, "scale": (0.05, 0.2), "interpolation": "bilinear"}]
SIX = [  # INTL's multi-crop
    {"size": 224, "count": 2, "scale": (0.2, 1.0), "interpolation": "bilinear"},
    {"size": 192, "scale": (0.171, 0.857), "interpolation": "bilinear"},
    {"size": 160, "scale": (0.143, 0.714), "interpolation": "bilinear"},
    {"size": 128, "scale": (0.114, 0.571), "interpolation": "bilinear"},
    {"size": 96, "scale": (0.086, 0.429), "interpolation": "bilinear"},
]
CUBIC = [{"size": 224, "count": 2}]
COLOUR: dict[str, Any] = {
    "jitter": (0.4, 0.4, 0.2, 0.1),
    "jitter_p": 0.8,
    "gray_p": 0.2,
    "blur_p": 0.5,
    "solarize_p": 0.1,
}
SCALE = (0.2, 1.0)
WRITTEN: dict[str, dict[str, Any]] = {
    "original": {},
    "side-500": {"max_side": 500, "quality": 90},
    "side-341": {"max_side": 341, "quality": 90},
    "raw": {"raw": True},
}
"""Datasets and the writer's settings; the first is what all compete on."""
Epoch = Callable[[int], int]
Contestant = Callable[[argparse.Namespace], Epoch]


def suite_loader(views: list[dict[str, Any]], written: str = "original", **colour: Any) -> Contestant:
    def start(options: argparse.Namespace) -> Epoch:
        from pretrain.data.betons.manifest import read_manifest
        from pretrain.data.loaders.build import training_loader
        from pretrain.recipe_sections import Colour, Data, Views

        data = Data(dataset=written, views=tuple(Views(**view) for view in views), colour=Colour(**colour))
        manifest = read_manifest(options.datasets / written)
        loader = training_loader(data, manifest, seed=0, batch=options.batch, workers=options.workers)
        return lambda epoch: sum(len(batch.index) for batch in loader.epoch(epoch))

    return start


def bare_decoding(options: argparse.Namespace) -> Epoch:
    """By the same libjpeg-turbo, without a view being cut."""
    import numpy as np

    from pretrain.data.betons.libjpeg import import_ffcv
    from pretrain.data.betons.manifest import read_manifest
    from pretrain.data.betons.read import BetonImages
    from pretrain.data.views.render import pool

    images = BetonImages(read_manifest(options.datasets / "original"), "train")
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


def stock_ffcv(options: argparse.Namespace) -> Epoch:
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline import PipelineSpec
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    def view() -> Any:
        decoder = RandomResizedCropRGBImageDecoder((224, 224), scale=SCALE)
        return PipelineSpec("image", decoder=decoder, transforms=[RandomHorizontalFlip(), ToTensor()])

    loader = Loader(
        str(options.datasets / "original" / "train.beton"),
        batch_size=options.batch,
        num_workers=options.workers,
        order=OrderOption.RANDOM,
        seed=0,
        pipelines={"image": view(), "second": view()},
    )
    return lambda _: sum(len(batch[0]) for batch in loader)


def torchvision_pil(options: argparse.Namespace) -> Epoch:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    view = transforms.Compose(
        [transforms.RandomResizedCrop(224, SCALE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )
    return _data_loader(ImageFolder(str(options.images), lambda image: (view(image), view(image))), options)


def torchvision_v2(options: argparse.Namespace) -> Epoch:
    """torchvision's own decoder, and transforms on uint8 tensors."""
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    view = v2.Compose([v2.RandomResizedCrop(224, SCALE, antialias=True), v2.RandomHorizontalFlip()])
    images = ImageFolder(
        str(options.images),
        lambda image: (view(image), view(image)),
        loader=lambda path: decode_image(path, mode=ImageReadMode.RGB),
    )
    return _data_loader(images, options)


def _data_loader(images: Any, options: argparse.Namespace) -> Epoch:
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    loader: Any = DataLoader(images, options.batch, shuffle=True, drop_last=True, num_workers=options.workers)
    return lambda _: sum(len(labels) for _, labels in loader)


def dali(options: argparse.Namespace) -> Epoch:
    """One decode, two crops, on the CPU. `pip install nvidia-dali-cuda130` (which is not among our requirements)."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=options.batch, num_threads=options.workers, device_id=None, seed=0)
    def pipeline() -> Any:
        jpegs, labels = fn.readers.file(file_root=str(options.images), random_shuffle=True, name="files")
        images = fn.decoders.image(jpegs, device="cpu")
        crops = [fn.random_resized_crop(images, size=224, random_area=SCALE, antialias=True) for _ in range(2)]
        return *(fn.flip(crop, horizontal=fn.random.coin_flip()) for crop in crops), labels

    pipe = pipeline()
    pipe.build()
    batches = pipe.epoch_size("files") // options.batch
    return lambda _: sum(len(pipe.run()[0]) for _ in range(batches))


CONTESTANTS: dict[str, Contestant] = {
    "bare decoding": bare_decoding,
    "whitebench, 2 x 224": suite_loader(PAIR),
    "whitebench, 2 x 224 + 6 x 96": suite_loader(MULTI),
    "whitebench, INTL's six sizes": suite_loader(SIX),
    "whitebench, 2 x 224 bicubic": suite_loader(CUBIC),
    "whitebench, 2 x 224 bicubic, colour": suite_loader(CUBIC, **COLOUR),
    "stock ffcv, 2 x 224": stock_ffcv,
    "torchvision PIL, 2 x 224": torchvision_pil,
    "torchvision v2, 2 x 224": torchvision_v2,
    "DALI on the CPU, 2 x 224": dali,
    "whitebench, 2 x 224, side 500 q90": suite_loader(PAIR, "side-500"),
    "whitebench, 2 x 224, side 341 q90": suite_loader(PAIR, "side-341"),
    "whitebench, 2 x 224, raw": suite_loader(PAIR, "raw"),
    "whitebench, 2 x 224 + 6 x 96, raw": suite_loader(MULTI, "raw"),
}


def available(name: str) -> str | None:
    """Why a contestant cannot compete here; None where it can."""
    import importlib.util

    if name.startswith("DALI") and not (importlib.util.find_spec("nvidia") and _has_dali()):
        return "nvidia-dali-cuda130 is not installed"
    return None


def _has_dali() -> bool:
    import nvidia

    return any((Path(folder) / "dali").is_dir() for folder in nvidia.__path__)
