"""Accuracy of a linear probe on images that differ from those it was trained on: ImageNet-C, -A, -R and their like.

Layouts: <class>/<image> (ImageNet-A, -R, -Sketch, -V2), or <corruption>/<severity 1 to 5>/<class>/<image>, with or
without a folder of groups above the corruptions (ImageNet-C). Folders of classes are matched by name with the classes
of the dataset that the probe was trained on; only these compete, as in the official evaluations of ImageNet-A and -R.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pretrain.evaluate.image_files import centre_crop, class_folders, encode, find_folder
from pretrain.evaluate.knn import top_accuracy
from whitebench.errors import UserError, nearest
from whitebench.hashing import content_hash

if TYPE_CHECKING:
    from pretrain.evaluate.features import FrozenEncoder

SEVERITIES = ("1", "2", "3", "4", "5")
ALEXNET_ERROR: Mapping[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error by corruption, by which mCE is normalised: github.com/hendrycks/robustness, as google-research/augmix
has it in imagenet.py."""
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Part:
    """Images of one corruption and severity, or all of a set without these."""

    corruption: str
    severity: str
    images: dict[str, list[Path]]
    """By class."""


@dataclass(frozen=True)
class ShiftedSet:
    folder: Path
    parts: tuple[Part, ...]

    @property
    def classes(self) -> list[str]:
        return sorted({name for part in self.parts for name in part.images})

    @property
    def count(self) -> int:
        return sum(len(paths) for part in self.parts for paths in part.images.values())

    @property
    def content_hash(self) -> str:
        """Of the images' names; not of their bytes."""
        paths = [path for part in self.parts for paths in part.images.values() for path in paths]
        names = [path.relative_to(self.folder).as_posix() for path in paths]
        return content_hash(names)

    @property
    def summary(self) -> dict[str, Any]:
        """What a record says of its data."""
        splits = {"val": {"count": self.count}}
        return {"dataset": self.folder.name, "classes": len(self.classes), "splits": splits}


def read_set(dataset: str, classes: tuple[str, ...]) -> ShiftedSet:
    """The set in the folder `dataset`, of $WHITEBENCH_DATA or a path.

    Args:
        classes: of the dataset that the probe is trained on.
    Raises:
        UserError: no such folder or layout, or a class that the dataset does not have.
    """
    folder = find_folder(dataset)
    corruptions = _corruption_folders(folder)
    if corruptions:
        parts = [
            Part(path.name, severity, class_folders(path / severity))
            for path in corruptions
            for severity in SEVERITIES
            if (path / severity).is_dir()
        ]
    else:
        parts = [Part("", "", class_folders(folder))]
    empty = next((part for part in parts if not part.images), None)
    if empty is not None:
        path = "/".join(filter(None, (str(folder), empty.corruption, empty.severity)))
        raise UserError(f"{path}: no images in folders of classes")
    shifted_set = ShiftedSet(folder, tuple(parts))
    unknown = [name for name in shifted_set.classes if name not in classes]
    if unknown:
        raise UserError(
            f"{folder}: {len(unknown)} of {len(shifted_set.classes)} classes are not among those of the probe's "
            f"dataset, e.g. '{unknown[0]}'{nearest(unknown[0], classes)}"
        )
    return shifted_set


def evaluate(frozen: "FrozenEncoder", shifted: ShiftedSet, weight: Tensor, bias: Tensor) -> dict[str, Any]:
    """{"top1", "top5"} in per cent, the mean over corruptions and severities where the set has these.

    With them for corruptions: "mean_error", "corruptions" (top-1 of each), and "mCE" where all 15 of ImageNet-C are
    there, of ImageNet's classes.

    Args:
        weight, bias: of the probe, [C, F] and [C].
    """
    names = list(frozen.manifest.classes)
    tops: dict[str, list[dict[str, float]]] = {}
    for part in shifted.parts:
        numbers = [names.index(name) for name in part.images]
        paths = [path for paths in part.images.values() for path in paths]
        counts = torch.tensor([len(paths) for paths in part.images.values()])
        labels = torch.repeat_interleave(torch.arange(len(numbers)), counts)
        features = encode(frozen, paths, lambda path: centre_crop(path, frozen.target))
        scores = features @ weight[numbers].to(features.device).T + bias[numbers].to(features.device)
        tops.setdefault(part.corruption, []).append(top_accuracy(scores, labels.to(scores.device)))
    means = {name: {key: _mean([top[key] for top in part]) for key in ("top1", "top5")} for name, part in tops.items()}
    metrics: dict[str, Any] = {key: _mean([mean[key] for mean in means.values()]) for key in ("top1", "top5")}
    if "" in tops:
        return metrics
    errors = {name: 100 - mean["top1"] for name, mean in means.items()}
    complete = set(ALEXNET_ERROR) <= set(errors) and all(len(tops[name]) == len(SEVERITIES) for name in ALEXNET_ERROR)
    if complete and len(shifted.classes) == len(names) == IMAGENET_CLASSES:
        metrics["mCE"] = mean_corruption_error(errors)
    return {**metrics, "mean_error": 100 - metrics["top1"], "corruptions": {n: m["top1"] for n, m in means.items()}}


def mean_corruption_error(errors: Mapping[str, float]) -> float:
    """Mean over ImageNet-C's corruptions of the error (per cent, mean over severities) over AlexNet's, in per cent."""
    return _mean([errors[name] / error for name, error in ALEXNET_ERROR.items()])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _corruption_folders(folder: Path) -> list[Path]:
    """The folders that have folders of severities: in `folder`, or in its groups."""
    children = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    below = [child for path in children for child in sorted(path.iterdir()) if child.is_dir()]
    for paths in (children, below):
        corruptions = [path for path in paths if any(_holds_classes(path / severity) for severity in SEVERITIES)]
        if corruptions:
            return corruptions
    return []


def _holds_classes(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() for path in folder.iterdir())
