"""k-nearest-neighbour classification of frozen features."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.distributed import sum_over_ranks, world_size
from pretrain.evaluate.protocol_kinds import KNN
from pretrain.evaluate.ranks import gather_rows, joint_rows
from whitebench.errors import UserError

if TYPE_CHECKING:
    from pretrain.evaluate.features import FrozenEncoder

QUERIES, NEIGHBOURS = 1024, 65536
"""Queries and training images that are compared at once: 0.3 GB of similarities in float32, whatever the dataset."""


def evaluate(frozen: "FrozenEncoder", protocol: KNN) -> dict[str, float]:
    """Classifies validation images by their nearest training images: {"top1", "top5"} in per cent.

    Features are kept in main memory; ImageNet's training split takes 10.5 GB with a ResNet-50, divided among processes:
    each compares all validation images with its share of the training images.
    """
    train, train_labels = frozen.features("train", store="cpu", interpolation=protocol.interpolation)
    test, test_labels = frozen.joint_features("val", store="cpu", interpolation=protocol.interpolation)
    device = frozen.device
    similarities, labels = _neighbours(train, train_labels, test, protocol, device)
    if world_size() > 1:
        similarities, labels = (gather_rows(x.T.contiguous()).T for x in (similarities, labels))
        top = similarities.topk(min(protocol.neighbours, similarities.shape[1]), dim=1)
        similarities, labels = top.values, labels.gather(1, top.indices)
    classes = len(frozen.manifest.classes)
    return top_accuracy(_votes(similarities, labels, classes, protocol.temperature), test_labels.to(device))


def accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    protocol: KNN,
    device: torch.device | None = None,
) -> dict[str, float]:
    """{"top1", "top5"} in per cent, of features float32 [N, F] and [M, F] with their labels int64 [N], [M].

    Args:
        device: where similarities are computed, in blocks; None: where the features are.
    Raises:
        UserError: features that are not finite.
    """
    similarities, labels = _neighbours(train, train_labels, test, protocol, device or train.device)
    classes = int(train_labels.max()) + 1
    return top_accuracy(_votes(similarities, labels, classes, protocol.temperature), test_labels.to(labels.device))


def _neighbours(
    train: Tensor, train_labels: Tensor, test: Tensor, protocol: KNN, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Similarities and labels, [M, k] each, of the nearest training rows."""
    for features in (train, test):
        if not all(bool(rows.isfinite().all()) for rows in features.split(NEIGHBOURS)):
            raise UserError("features are not finite: the network overflows in float32, and has no accuracy")
    similarities, indices = nearest_neighbours(train, test, protocol, device)
    return similarities, train_labels.to(device)[indices]


def nearest_neighbours(train: Tensor, test: Tensor, protocol: KNN, device: torch.device) -> tuple[Tensor, Tensor]:
    """Similarities float32 [M, k], descending, and indices int64 [M, k] of the nearest training rows, on `device`.

    Blocks of training rows are compared one after the other, so that memory does not grow with their number. They may
    be of half precision, or mapped from a file.
    """
    cosine = protocol.distance == "cosine"
    best: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(train), NEIGHBOURS):
        rows = train[start : start + NEIGHBOURS].to(device)
        rows = rows.float() if rows.dtype == torch.float16 else rows
        rows = F.normalize(rows, dim=1) if cosine else rows
        for number, queries in enumerate(test.split(QUERIES)):
            queries = queries.to(device)
            similarity = F.normalize(queries, dim=1) @ rows.T if cosine else -torch.cdist(queries, rows)
            values, indices = similarity.topk(min(protocol.neighbours, len(rows)), dim=1)
            indices = indices + start
            if start == 0:
                best.append((values, indices))
            else:
                best[number] = _merged(best[number], (values, indices), protocol.neighbours)
    return torch.cat([values for values, _ in best]), torch.cat([indices for _, indices in best])


def _merged(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], neighbours: int) -> tuple[Tensor, Tensor]:
    values, indices = torch.cat([a[0], b[0]], dim=1), torch.cat([a[1], b[1]], dim=1)
    top = values.topk(min(neighbours, values.shape[1]), dim=1)
    return top.values, indices.gather(1, top.indices)


def _votes(similarities: Tensor, labels: Tensor, classes: int, temperature: float | None) -> Tensor:
    """Votes for each class, float64 [M, C], of neighbours with these labels int64 [M, k]."""
    weight = similarities.double()
    weight = torch.ones_like(weight) if temperature is None else (weight / temperature).exp()
    votes = torch.zeros(len(labels), classes, dtype=torch.float64, device=labels.device)
    return votes.scatter_add_(1, labels, weight)


def top_accuracy(scores: Tensor, labels: Tensor, ranks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """Share (per cent) of rows of `scores` [M, C] whose label is among the k best; equal scores rank by label."""
    return accuracies(*top_hits(scores, labels, ranks), ranks)


def joint_accuracy(scores: Tensor, labels: Tensor, ranks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """As `top_accuracy`, over the rows of all processes."""
    hits, count = top_hits(scores, labels, ranks)
    return accuracies(sum_over_ranks(hits), joint_rows(count, hits.device), ranks)


def top_hits(scores: Tensor, labels: Tensor, ranks: tuple[int, ...] = (1, 5)) -> tuple[Tensor, int]:
    """How many rows have their label among the k best, int64 [len(ranks)], and the number of rows."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    hits = order == labels[:, None]
    return torch.stack([hits[:, :k].any(dim=1).sum() for k in ranks]), len(labels)


def accuracies(hits: Tensor, count: int, ranks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """{"top1": per cent, ...} of the numbers of hits among `count` rows."""
    return {f"top{k}": 100 * (number / count) for k, number in zip(ranks, hits.tolist(), strict=True)}
