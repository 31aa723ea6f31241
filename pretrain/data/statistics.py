"""Mean and standard deviation of the channels by which images are normalised, in 0..1."""

import re

Three = tuple[float, float, float]

IMAGENET_MEAN: Three = (0.485, 0.456, 0.406)
IMAGENET_STD: Three = (0.229, 0.224, 0.225)
STATISTICS: dict[str, tuple[Three, Three]] = {
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "STL-10": ((0.43, 0.42, 0.39), (0.27, 0.26, 0.27)),
    "Tiny-ImageNet": ((0.480, 0.448, 0.398), (0.277, 0.269, 0.282)),
    "ImageNet": (IMAGENET_MEAN, IMAGENET_STD),
}
"""By dataset, as the papers' code has them; ImageNet's serve all others."""
NAMES = {name: re.compile(rf"(?<![a-z0-9]){name.lower().replace('-', '[-_ ]?')}(?![a-z0-9])") for name in STATISTICS}
"""Whole words of a dataset's name: 'cifar10-lt' and 'my-cifar10' are CIFAR-10, 'tinycats' is not Tiny-ImageNet."""


def known_set(dataset: str) -> str:
    """Whose statistics a dataset of this name gets: a key of STATISTICS."""
    return next((name for name, pattern in NAMES.items() if pattern.search(dataset.lower())), "ImageNet")


def statistics_for(dataset: str) -> tuple[Three, Three]:
    """Mean and standard deviation for a dataset of this name."""
    return STATISTICS[known_set(dataset)]
