"""Evaluators, held against scikit-learn and against features whose accuracy is known."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from pretrain.evaluate import knn, linear
from pretrain.evaluate.protocol_kinds import KNN, Linear
from pretrain.evaluate.protocols import PROTOCOLS, find_protocol
from whitebench.errors import UserError
from whitebench.records import Run


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


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_knn_in_blocks_equals_knn_at_once(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train, train_labels = clusters(600, 7, 1.5, 1)
    test, test_labels = clusters(100, 7, 1.5, 2)
    protocol = KNN("t", "", 20, metric, temperature=0.1)  # type: ignore[arg-type]
    whole = knn.nearest_neighbours(train, test, protocol, torch.device("cpu"))
    expected = knn.accuracy(train, train_labels, test, test_labels, protocol)
    for neighbours, queries in ((7, 13), (64, 100), (599, 1)):
        monkeypatch.setattr(knn, "NEIGHBOURS", neighbours)
        monkeypatch.setattr(knn, "QUERIES", queries)
        parts = knn.nearest_neighbours(train, test, protocol, torch.device("cpu"))
        torch.testing.assert_close(parts[0], whole[0])
        assert torch.equal(parts[1], whole[1])
        assert knn.accuracy(train, train_labels, test, test_labels, protocol) == expected


def test_features_that_are_not_finite_have_no_accuracy() -> None:
    train, labels = clusters(60, 3, 1.0, 1)
    broken = train.clone()
    broken[7, 3] = math.inf
    for pair in ((broken, train), (train, broken)):
        with pytest.raises(UserError, match="not finite"):
            knn.accuracy(pair[0], labels, pair[1], labels, KNN("t", "", 5, "cosine"))


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


def gaussians(n: int, distance: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes, n images, features [n, 16] of unit variance, means `distance` apart.

    A perfect classifier is right in a share of Phi(distance / 2).
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    features = torch.randn(n, 16, generator=generator)
    features[:, 3] += distance * (labels - 0.5)
    return features, labels


@pytest.fixture
def probed(tmp_path: Path) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], Callable[[str], float]]:
    """Features by split, and what the linear probe of a protocol makes of them (top-1, per cent)."""
    splits: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def top1(protocol: str) -> float:
        classes = [str(c) for c in range(int(splits["train"][1].max()) + 1)]
        frozen: Any = SimpleNamespace(
            features=lambda split, interpolation: splits[split],
            manifest=SimpleNamespace(classes=classes),
            options=SimpleNamespace(seed=0),
            device="cpu",
        )
        chosen = find_protocol("linear", protocol)
        assert isinstance(chosen, Linear)
        with Run("linear", protocol, {"protocol": protocol}, cell={}, folder=tmp_path / protocol) as run:
            return float(linear.evaluate(frozen, chosen, run)["top1"])

    return splits, top1


@pytest.mark.parametrize("distance", [0.0, 1.5, 3.0])
def test_the_linear_probe_reaches_the_known_accuracy(probed: Any, distance: float) -> None:
    splits, top1 = probed
    splits.update(train=gaussians(1000, distance, 1), val=gaussians(4000, distance, 2))
    known = 100 * NormalDist().cdf(distance / 2)
    assert top1("features") == pytest.approx(known, abs=2.5)  # 4000 images: standard error at most 0.8


def test_the_linear_probe_is_as_good_as_logistic_regression(probed: Any) -> None:
    splits, top1 = probed
    splits.update(train=clusters(1400, 7, 1.5, 1), val=clusters(1400, 7, 1.5, 2))
    (x, y), (test, labels) = splits["train"], splits["val"]
    judge = LogisticRegression(C=100, max_iter=2000).fit(x.numpy(), y.numpy())
    expected = 100 * judge.score(test.numpy(), labels.numpy())
    assert 60 < expected < 98
    assert top1("features") == pytest.approx(expected, abs=1.0)


def test_protocols_resize_as_their_sources() -> None:
    """DINO's scripts resize with interpolation=3 (bicubic), all others bilinearly."""
    for stage in ("knn", "linear"):
        for protocol in PROTOCOLS[stage]:
            expected = "bicubic" if protocol.name.startswith("dino") else "bilinear"
            assert protocol.interpolation == expected  # type: ignore[union-attr]


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'cosine-20'"):
        find_protocol("knn", "cosine20")


@pytest.mark.parametrize("stage", sorted(PROTOCOLS))
def test_every_protocol_names_its_source(stage: str) -> None:
    assert all(protocol.source for protocol in PROTOCOLS[stage])
    assert len({protocol.name for protocol in PROTOCOLS[stage]}) == len(PROTOCOLS[stage])
