"""k-nearest-neighbour classification of frozen features."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.evaluate.protocols import KNN

if TYPE_CHECKING:
    from pretrain.evaluate.features import FrozenEncoder

CHUNK = 1024
"""Queries compared with all neighbours at once."""


def evaluate(frozen: "FrozenEncoder", protocol: KNN) -> dict[str, float]:
    """Validation images voted on by training images: {"top1", "top5"} in per cent."""
    return accuracy(*frozen.features("train"), *frozen.features("val"), protocol)


def accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, protocol: KNN) -> dict[str, float]:
    """{"top1", "top5"} in per cent, of features [N, F] and [M, F] with their labels int64 [N], [M]."""
    classes = int(train_labels.max()) + 1
    found = torch.cat([_vote(train, train_labels, chunk, classes, protocol) for chunk in test.split(CHUNK)])
    return top_accuracy(found, test_labels)


def _vote(train: Tensor, labels: Tensor, queries: Tensor, classes: int, protocol: KNN) -> Tensor:
    """Votes for each class, float64 [Q, C]."""
    if protocol.distance == "cosine":
        similarity = F.normalize(queries, dim=1) @ F.normalize(train, dim=1).T
    else:
        similarity = -torch.cdist(queries, train)
    nearest = similarity.topk(min(protocol.neighbours, len(train)), dim=1)
    weight = nearest.values.double()
    weight = torch.ones_like(weight) if protocol.temperature is None else (weight / protocol.temperature).exp()
    votes = torch.zeros(len(queries), classes, dtype=torch.float64, device=train.device)
    votes.scatter_add_(1, labels[nearest.indices], weight)
    return votes


def top_accuracy(scores: Tensor, labels: Tensor, ranks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """Share (per cent) of rows of `scores` [M, C] whose label is among the k best; equal scores rank by label."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    hits = order == labels[:, None]
    return {f"top{k}": 100 * hits[:, :k].any(dim=1).double().mean().item() for k in ranks}
