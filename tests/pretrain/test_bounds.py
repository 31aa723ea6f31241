"""SimCLR, and the bounds that methods are held against: supervised and random."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from pretrain.method import find_method
from pretrain.methods.simclr import simclr_loss
from tests.support.method_cases import build, embeddings
from tests.support.tiny_encoder import batch_of, tiny_encoder
from whitebench.errors import UserError


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_equals_an_independent_implementation(temperature: float) -> None:
    reference = pytest.importorskip("lightly.loss").NTXentLoss(temperature=temperature)
    a, b = (view.requires_grad_() for view in embeddings(12, 32))
    loss, expected = simclr_loss([a, b], temperature), reference(a, b)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    (gradient,) = torch.autograd.grad(loss, a)
    (reference_gradient,) = torch.autograd.grad(expected, a)
    torch.testing.assert_close(gradient, reference_gradient)


def test_simclr_averages_over_pairs_of_views() -> None:
    views = embeddings(12, 32, views=4)
    pairs = torch.stack([simclr_loss([a, b], 0.2) for a, b in itertools.combinations(views, 2)])
    torch.testing.assert_close(simclr_loss(views, 0.2), pairs.mean())


def test_supervised_is_cross_entropy_over_all_views_and_reports_accuracy() -> None:
    method, batch = build("supervised", {"classes": 4, "label_smoothing": 0.1}), batch_of(16)
    step = method(batch)
    classifier = method.get_submodule("classifier")
    logits = [classifier(method.encoder(view).h) for view in batch.views]
    expected = torch.stack([F.cross_entropy(one, batch.label, label_smoothing=0.1) for one in logits]).mean()
    torch.testing.assert_close(step.loss, expected)
    correct = torch.stack([(one.argmax(dim=1) == batch.label).float().mean() for one in logits]).mean()
    torch.testing.assert_close(step.scalars["accuracy"], correct)


def test_supervised_refuses_a_projector() -> None:
    kind = find_method("supervised")
    with pytest.raises(UserError, match="projector"):
        kind(tiny_encoder(), kind.Config(classes=4)).check(16, 1)


def test_random_is_not_trained() -> None:
    assert not find_method("random").trains
    build("random", {}).check(16, 1)
