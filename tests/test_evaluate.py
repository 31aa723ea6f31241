"""Evaluators, held against scikit-learn and against features whose accuracy is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from pretrain.evaluate import knn, linear
from pretrain.evaluate.protocols import KNN, PROTOCOLS, Linear, find_protocol
from results.command import UserError


def clusters(n: int, classes: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, 16, generator=generator), labels


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_equals_scikit_learn(metric: str, k: int) -> None:
    train, train_labels = clusters(600, 7, 1.5, 1)
    test, test_labels = clusters(300, 7, 1.5, 2)
    ours = knn.accuracy(train, train_labels, test, test_labels, KNN("t", "", k, metric))  # type: ignore[arg-type]
    judge = KNeighborsClassifier(k, metric=metric).fit(train.numpy(), train_labels.numpy())
    assert ours["top1"] == pytest.approx(100 * judge.score(test.numpy(), test_labels.numpy()), abs=1e-9)
    assert 20 < ours["top1"] < 100


def test_knn_weights_votes_by_similarity() -> None:
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.05]])
    plain, sharp = KNN("t", "", 3, "cosine"), KNN("t", "", 3, "cosine", temperature=0.07)
    assert knn.accuracy(train, labels, query, torch.tensor([1]), plain)["top1"] == 100
    assert knn.accuracy(train, labels, query, torch.tensor([0]), sharp)["top1"] == 100


def test_a_tie_goes_to_the_smallest_label() -> None:
    train = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    top = knn.accuracy(train, torch.tensor([3, 1]), train[:1], torch.tensor([1]), KNN("t", "", 2, "euclidean"))
    assert top["top1"] == 100


@given(st.integers(1, 40), st.integers(5, 12), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_top5_is_never_below_top1(n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, 3, (n, classes)).astype(float))
    top = knn.top_accuracy(scores, torch.from_numpy(rng.integers(0, classes, n)))
    assert 0 <= top["top1"] <= top["top5"] <= 100


def test_learning_rates_follow_their_protocols() -> None:
    features, step = find_protocol("linear", "features"), find_protocol("linear", "intl-imagenet")
    cosine = find_protocol("linear", "cwrgp-imagenet")
    assert isinstance(features, Linear)
    assert isinstance(step, Linear)
    assert isinstance(cosine, Linear)
    assert linear.learning_rate(features, 0) == 1e-2
    assert linear.learning_rate(features, 499) == pytest.approx(1e-6)
    assert [linear.learning_rate(step, epoch) for epoch in (59, 60, 80)] == pytest.approx([0.4, 0.04, 0.004])
    assert linear.learning_rate(cosine, 0) == pytest.approx(0.1 * 1024 / 256)
    assert linear.learning_rate(cosine, 50) == pytest.approx(0.2)
    assert math.isclose(linear.learning_rate(cosine, 25), 0.4 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'cosine-20'"):
        find_protocol("knn", "cosine20")


@pytest.mark.parametrize("stage", sorted(PROTOCOLS))
def test_every_protocol_names_its_source(stage: str) -> None:
    assert all(protocol.source for protocol in PROTOCOLS[stage])
    assert len({protocol.name for protocol in PROTOCOLS[stage]}) == len(PROTOCOLS[stage])
