"""Small sets of images for evaluations, in the layouts that people have, and encoders to evaluate on them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pretrain.checkpoint import write_backbone
from pretrain.networks import build_backbone


def encoder(path: Path, seed: int = 0, dataset: str = "shapes") -> Path:
    """An untrained ResNet-18 as a file of this suite."""
    torch.manual_seed(seed)
    metadata = {
        "arch": "resnet18",
        "stem": "cifar",
        "dataset": dataset,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "image_size": 16,
        "eval_resize": 16,
        "method": "random",
        "recipe": f"test/encoder-{seed}",
        "seed": 0,
        "id": f"encoder-{seed}-s0-0123456789ab",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_backbone(path, build_backbone("resnet18", "cifar").state_dict(), metadata)
    return path


def image(path: Path, label: int, number: int, noise: float = 40.0) -> Path:
    """16 x 16 pixels in the colour of a class, with noise."""
    rng = np.random.default_rng([label, number])
    colour = np.random.default_rng(label + 100).integers(40, 215, 3)
    pixels = colour + rng.normal(0, noise, (16, 16, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def image_folder(root: Path, classes: Sequence[str], train: int = 6, val: int = 4, first: int = 0) -> Path:
    """An ImageFolder <split>/<class>/<image>."""
    for label, name in enumerate(classes):
        for split, start, count in (("train", 0, train), ("val", 1000, val)):
            for number in range(count):
                image(root / split / name / f"{number}.png", first + label, start + number)
    return root


def shifted_folder(root: Path, classes: Sequence[str], corruptions: Sequence[str] = (), count: int = 2) -> Path:
    """<class>/<image>, or <corruption>/<severity>/<class>/<image> with severities 1 and 2."""
    for label, name in enumerate(classes):
        for number in range(count):
            if not corruptions:
                image(root / name / f"{number}.png", label, 2000 + number)
            for corruption in corruptions:
                for severity in (1, 2):
                    place = root / "noise" / corruption / str(severity) / name / f"{number}.png"
                    image(place, label, 2000 + number, noise=60.0 * severity)
    return root


def voc_folder(root: Path, classes: Sequence[str] = ("cat", "dog"), images: int = 8) -> Path:
    """VOC's layout: each image shows one class; the first of each list is difficult for the last class."""
    lists = root / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, start in (("trainval", 0), ("test", 1000)):
        names = [f"{start + number:06d}" for number in range(images)]
        for number, name in enumerate(names):
            image(root / "VOC2007" / "JPEGImages" / f"{name}.jpg", number % len(classes), start + number)
        for label, title in enumerate(classes):
            shown = [1 if number % len(classes) == label else -1 for number in range(images)]
            if label == len(classes) - 1:
                shown[0] = 0
            lines = "".join(f"{name} {value:2d}\n" for name, value in zip(names, shown, strict=True))
            (lists / f"{title}_{split}.txt").write_text(lines)
    return root


def retrieval_folder(root: Path) -> Path:
    """Oxford's layout with a ground truth of the revisited kind, as JSON: two queries, six images."""
    names = [f"image{number}" for number in range(6)]
    for number, name in enumerate(names):
        image(root / "jpg" / f"{name}.jpg", number // 3, number)
    for number in range(2):
        image(root / "jpg" / f"query{number}.jpg", number, 50)
    truth = {
        "imlist": names,
        "qimlist": ["query0", "query1"],
        "gnd": [
            {"bbx": [0, 0, 16, 16], "easy": [0], "hard": [1], "junk": [2]},
            {"bbx": [2.0, 2.0, 14.0, 14.0], "easy": [3, 4], "hard": [5], "junk": []},
        ],
    }
    (root / "gnd_small.json").write_text(json.dumps(truth))
    return root
