"""Few-shot classification: a simple classifier on the frozen features of a few images of each class, over draws."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.data.betons.format import read_samples
from pretrain.evaluate.knn import joint_accuracy
from pretrain.evaluate.protocol_kinds import FewShot
from pretrain.evaluate.subset import every_labelled
from pretrain.repeatable import derive_seed
from whitebench.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pretrain.data.betons.manifest import Manifest
    from pretrain.evaluate.features import FrozenEncoder

LEVEL = 0.95
"""Of the intervals over draws."""


def evaluate(frozen: "FrozenEncoder", protocol: FewShot) -> dict[str, Any]:
    """{"shot<k>": mean top-1 over draws (per cent), "shot<k>_ci95", "shot<k>_draws"} for each k of `protocol.shots`.

    "top1" is the mean over these k.

    Draws are of training images, the accuracy is on the whole validation split. The interval (half its width, Student's
    t) is over draws alone.

    Raises:
        UserError: a class with fewer training images than shots.
    """
    draws = draw(frozen.manifest, protocol, frozen.options.seed)
    used = np.unique(np.concatenate([images.ravel() for images in draws]))
    train, labels = (x.cpu() for x in frozen.joint_features("train", indices=used))
    test, test_labels = frozen.features("val")
    row = {index: number for number, index in enumerate(used.tolist())}
    metrics: dict[str, Any] = {}
    for shots in protocol.shots:
        tops = []
        for images in draws:
            rows = torch.tensor([row[index] for index in images[:, :shots].ravel().tolist()])
            scores = class_scores(train[rows], labels[rows], test.cpu(), protocol)
            tops.append(joint_accuracy(scores.to(test.device), test_labels)["top1"])
        metrics |= {f"shot{shots}": float(np.mean(tops)), f"shot{shots}_ci95": half_interval(tops)}
        metrics[f"shot{shots}_draws"] = tops
    return {"top1": float(np.mean([metrics[f"shot{shots}"] for shots in protocol.shots])), **metrics}


def draw(manifest: "Manifest", protocol: FewShot, seed: int) -> list["NDArray[np.int64]"]:
    """Of each draw the dataset indices of the chosen training images, [classes, most shots]; the first k are k shots.

    Raises:
        UserError: a class has fewer images.
    """
    members, draws = images_by_class(manifest, protocol), []
    for number in range(protocol.draws):
        generator = np.random.default_rng(derive_seed(seed, "few-shot draw", number))
        draws.append(np.stack([generator.permutation(images)[: max(protocol.shots)] for images in members]))
    return draws


def images_by_class(manifest: "Manifest", protocol: FewShot) -> list["NDArray[np.int64]"]:
    """Dataset indices of the labelled training images of each class.

    Raises:
        UserError: a class has fewer images than the most shots.
    """
    every, most = every_labelled(manifest), max(protocol.shots)
    labels = read_samples(manifest.beton("train")).label[every]
    members = [every[labels == number] for number in range(len(manifest.classes))]
    for name, images in zip(manifest.classes, members, strict=True):
        if len(images) < most:
            advice = f"; name fewer, e.g. --shots {len(images)}" if len(images) else ""
            raise UserError(
                f"dataset '{manifest.dataset}': class '{name}' has {len(images)} labelled training images, fewer than "
                f"{most} shots{advice}"
            )
    return members


def chosen(protocol: FewShot, shots: tuple[int, ...] | None) -> FewShot:
    """The protocol with these numbers of shots instead of its own."""
    return replace(protocol, shots=shots) if shots else protocol


def class_scores(train: Tensor, labels: Tensor, test: Tensor, protocol: FewShot) -> Tensor:
    """Scores [M, C] of test features [M, F] by a classifier of training features [N, F] with labels int64 [N]."""
    if protocol.classifier == "centroid":
        centre = train.mean(dim=0)
        train, test = (F.normalize(x - centre, dim=1) for x in (train, test))
        centroids = torch.stack([train[labels == number].mean(dim=0) for number in range(int(labels.max()) + 1)])
        return -torch.cdist(test, centroids)
    from sklearn.linear_model import LogisticRegression

    train, test = (F.normalize(x - x.mean(dim=1, keepdim=True), dim=1) for x in (train, test))
    model = LogisticRegression(C=1 / protocol.penalty, fit_intercept=False, max_iter=300, tol=1e-3)
    model.fit(train.numpy(), labels.numpy())
    scores = torch.from_numpy(np.atleast_2d(model.decision_function(test.numpy())))
    return torch.stack([-scores[0], scores[0]], dim=1) if len(model.classes_) == 2 else scores


def half_interval(values: list[float]) -> float:
    """Half the 95 % interval of the mean, by Student's t; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    from scipy.stats import t

    return float(t.ppf(0.5 + LEVEL / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
