"""BYOL and SimSiam."""

import pytest
import torch

from pretrain.losses.prediction import prediction_loss
from pretrain.methods.byol import BYOL
from pretrain.methods.simsiam import SimSiam
from tests.support.method_cases import build, embeddings
from tests.support.tiny_encoder import batch_of


def test_the_loss_equals_lightlys_cosines() -> None:
    cosine = pytest.importorskip("lightly.loss").NegativeCosineSimilarity(eps=1e-12)
    p = [view.requires_grad_() for view in embeddings(16, 12)]
    z = embeddings(16, 12, seed=1)
    expected = 4 + 2 * (cosine(p[0], z[1]) + cosine(p[1], z[0]))
    ours = prediction_loss(p, z)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(torch.autograd.grad(ours, p), torch.autograd.grad(expected, p), strict=True):
        torch.testing.assert_close(a, b)


def test_targets_get_no_gradient() -> None:
    p, z = embeddings(16, 12), [view.requires_grad_() for view in embeddings(16, 12, seed=1)]
    assert not prediction_loss(p, z).requires_grad


def test_three_views_are_the_mean_over_pairs() -> None:
    p, z = embeddings(16, 12, views=3), embeddings(16, 12, views=3, seed=1)
    pairs = [prediction_loss([p[a], p[b]], [z[a], z[b]]) for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(prediction_loss(p, z), torch.stack(pairs).mean())


def test_simsiam_is_the_papers_mean_of_negative_cosines() -> None:
    method, batch = build("simsiam", {"predictor": 20}), batch_of(16)
    assert isinstance(method, SimSiam)
    step = method(batch)
    z = [method.encoder(view).z for view in batch.views]
    cosines = [torch.cosine_similarity(method.predictor(z[a]), z[b]).mean() for a, b in ((0, 1), (1, 0))]
    torch.testing.assert_close(step.loss, -(cosines[0] + cosines[1]) / 2)


@pytest.mark.parametrize("constant", [True, False])
def test_simsiams_predictor_keeps_its_rate_where_that_is_asked(constant: bool) -> None:
    method = build("simsiam", {"predictor": 20, "constant_predictor_rate": constant})
    assert isinstance(method, SimSiam)
    assert list(method.constant_rate()) == ([method.predictor] if constant else [])


@pytest.mark.parametrize(("momentum_by", "moved"), [("epoch", 0.075), ("step", 0.05)])
def test_byols_target_moves_by_its_cosine_schedule_after_the_update(momentum_by: str, moved: float) -> None:
    method = build("byol", {"predictor": 20, "momentum": 0.9, "momentum_by": momentum_by})
    assert isinstance(method, BYOL)
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter += 1
    start = [parameter.clone() for parameter in method.target.network.parameters()]
    method.progress, method.epoch, method.epochs = 0.5, 1, 3
    method(batch_of(16)).loss.backward()
    for before, parameter in zip(start, method.target.network.parameters(), strict=True):
        torch.testing.assert_close(parameter, before)
    method.after_update()
    for before, parameter in zip(start, method.target.network.parameters(), strict=True):
        torch.testing.assert_close(parameter, before + moved)
        assert parameter.grad is None
