"""Clusters, and what PCL and PAUC make of them."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from pretrain.losses.kmeans import Clusters, cluster, concentrations
from pretrain.losses.similarity import unit_rows
from pretrain.methods.pauc import PAUC, prototype_terms
from pretrain.methods.pcl import PCL, proto_nce
from tests.support.method_cases import build, embeddings
from tests.support.tiny_encoder import batch_of
from whitebench.errors import UserError


def blobs(n: int = 300, k: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres, labels = torch.randn(k, 16, generator=generator), torch.arange(n) % k
    return unit_rows(centres[labels] + 0.1 * torch.randn(n, 16, generator=generator)), labels


# --- clustering -------------------------------------------------------------------------------------------------------


def test_clusters_are_found_again() -> None:
    features, labels = blobs()
    found = cluster(features, 6, 0.2)
    assert adjusted_rand_score(labels.numpy(), found.assignment.numpy()) == 1
    assert found.centroids.shape == (6, 16)
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(6))
    assert found.concentration.mean().item() == pytest.approx(0.2)


def test_clustering_repeats_with_its_seed() -> None:
    features = unit_rows(torch.randn(200, 8, generator=torch.Generator().manual_seed(1)))
    one, same, other = (cluster(features, 20, 0.2, seed=seed, repeats=1) for seed in (0, 0, 1))
    assert one.centroids.equal(same.centroids)
    assert one.assignment.equal(same.assignment)
    assert not one.assignment.equal(other.assignment)


@pytest.mark.parametrize(("k", "message"), [(301, "301 clusters cannot be made of 300 images"), (0, "0 clusters")])
def test_impossible_numbers_of_clusters_are_refused(k: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cluster(blobs()[0], k, 0.2)


def test_features_that_are_not_finite_are_refused() -> None:
    features = blobs()[0]
    features[3, 2] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        cluster(features, 6, 0.2)


def test_concentrations_follow_their_formula() -> None:
    rng = np.random.default_rng(0)
    sizes = [1, 2, 5, 9, 3, 4, 7, 20, 6, 8, 2, 30]
    groups = [rng.uniform(0.1, 1, size) for size in sizes]
    distances, assignment = np.concatenate(groups), np.repeat(np.arange(12), sizes)
    expected = np.array([group.mean() / math.log(len(group) + 10) for group in groups])
    expected[0] = max(expected[1:])
    expected = expected.clip(np.percentile(expected, 10), np.percentile(expected, 90))
    expected *= 0.2 / expected.mean()
    found = concentrations(torch.from_numpy(distances), torch.from_numpy(assignment), 12, 0.2)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("distances", [torch.zeros(4), torch.tensor([0.5, 0, 0, 0])])
def test_concentrations_bear_empty_clusters_and_single_images(distances: Tensor) -> None:
    found = concentrations(distances, torch.arange(4), 6, 0.2)
    assert found.isfinite().all()
    assert (found > 0).all()


# --- PCL --------------------------------------------------------------------------------------------------------------


def clusters_of(images: int = 16, k: int = 9, width: int = 12) -> Clusters:
    generator = torch.Generator().manual_seed(2)
    return Clusters(
        unit_rows(torch.randn(k, width, generator=generator, dtype=torch.float64)),
        torch.rand(k, generator=generator, dtype=torch.float64) + 0.1,
        torch.randint(k - 3, (images,), generator=generator),  # the last three are of no image
    )


def test_proto_nce_equals_its_definition() -> None:
    query = unit_rows(embeddings(8, 12)[0]).requires_grad_()
    clusters, index = clusters_of(), torch.tensor([3, 1, 15, 7, 2, 2, 9, 11])
    own = clusters.assignment[index].tolist()
    others = sorted(set(range(9)) - set(own))
    logits = [
        [float(query[i].detach() @ clusters.centroids[c] / clusters.concentration[c]) for c in own + others]
        for i in range(8)
    ]
    expected = np.mean([math.log(sum(math.exp(x) for x in row)) - row[i] for i, row in enumerate(logits)])
    loss = proto_nce(query, index, clusters, negatives=100)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert query.grad is not None


def test_only_prototypes_of_other_images_are_drawn() -> None:
    query, index, clusters = unit_rows(embeddings(8, 12)[0]), torch.arange(8), clusters_of()
    losses = {proto_nce(query, index, clusters, 2, torch.Generator().manual_seed(seed)).item() for seed in range(20)}
    assert len(losses) > 1
    own = proto_nce(query, index, clusters, 0).item()
    everything = proto_nce(query, index, clusters, 100).item()
    assert all(own < loss < everything for loss in losses)


def prepared(name: str = "pcl", **options: object) -> PCL | PAUC:
    method = build(name, {"queue": 40, "clusters": (3, 4), "warmup_epochs": 2, **options})
    assert isinstance(method, PCL | PAUC)
    method.prepare_epoch(2, lambda encoder: embedded(encoder))
    return method


def embedded(encoder: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        z: Tensor = encoder(batch_of(16).views[0]).z.float()
        return z


def test_there_are_clusters_after_the_warm_up_only() -> None:
    method = build("pcl", {"queue": 40, "clusters": (3, 4), "warmup_epochs": 2})
    assert isinstance(method, PCL)
    method.prepare_epoch(1, embedded)
    assert not method.contrast.clusters
    assert "proto_nce" not in method(batch_of(16)).scalars
    method.prepare_epoch(2, embedded)
    assert [len(found.centroids) for found in method.contrast.clusters] == [3, 4]
    step = method(batch_of(16))
    torch.testing.assert_close(step.loss.detach(), step.scalars["info_nce"] + step.scalars["proto_nce"])


@pytest.mark.parametrize("name", ["pcl", "pauc"])
def test_clusters_outlive_a_resumption(name: str, tmp_path: object) -> None:
    method = prepared(name)
    torch.save(method.state_dict(), f"{tmp_path}/state.pt")
    resumed = build(name, {"queue": 40, "clusters": (3, 4), "warmup_epochs": 2})
    resumed.load_state_dict(torch.load(f"{tmp_path}/state.pt", weights_only=True))
    assert resumed(batch_of(16)).loss.item() == method(batch_of(16)).loss.item()


# --- PAUC -------------------------------------------------------------------------------------------------------------


def test_prototype_terms_equal_their_definitions() -> None:
    query, key = (unit_rows(view) for view in embeddings(12, 5))
    labels = [0, 3, 3, 1, 0, 7, 7, 7, 1, 0, 4, 4]
    p, q = (
        np.array([np.mean([rows[i].numpy() for i in range(12) if labels[i] == c], axis=0) for c in sorted(set(labels))])
        for rows in (query, key)
    )
    p, q = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (p, q))
    terms = prototype_terms(query, key, torch.tensor(labels), t=2.0, trade_off=0.1)
    assert terms.alignment.item() == pytest.approx(((p - q) ** 2).sum(axis=1).mean())
    potentials = [math.exp(-2 * ((p[i] - p[j]) ** 2).sum()) for i in range(5) for j in range(i)]
    assert terms.uniformity.item() == pytest.approx(math.log(np.mean(potentials)))
    standard = [(rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-5) for rows in (p, q)]
    c = standard[0].T @ standard[1] / 5
    off = (c**2).sum() - (np.diag(c) ** 2).sum()
    assert terms.correlation.item() == pytest.approx((((1 - np.diag(c)) ** 2).sum() + 0.1 * off) / 5)


def test_a_batch_of_one_cluster_is_aligned_only() -> None:
    query, key = (unit_rows(view) for view in embeddings(12, 5))
    terms = prototype_terms(query, key, torch.zeros(12, dtype=torch.int64))
    assert float(terms.alignment) > 0
    assert float(terms.uniformity) == float(terms.correlation) == 0


def test_each_term_has_a_switch() -> None:
    off = {"alignment_weight": 0.0, "uniformity_weight": 0.0, "correlation_weight": 0.0}
    plain, base = prepared("pcl")(batch_of(16)), prepared("pauc", **off)(batch_of(16))
    assert base.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)
    for term in ("alignment", "uniformity", "correlation"):
        step = prepared("pauc", **{**off, f"{term}_weight": 3.0})(batch_of(16))
        assert step.loss.item() == pytest.approx(plain.loss.item() + 3 * step.scalars[term].item(), rel=1e-9)
        step.loss.backward()
