"""The losses of Barlow Twins and VICReg, and the sums of squared covariances that they take from the cheaper side."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pretrain.losses.covariance import squared_covariances
from pretrain.methods import barlow_twins
from pretrain.methods.barlow_twins import barlow_twins_loss
from pretrain.methods.vicreg import vicreg_loss
from tests.support.method_cases import build, embeddings
from tests.support.tiny_encoder import batch_of

SIDES = [(6, 40), (9, 20), (10, 20), (11, 20), (20, 20), (40, 6)]
"""Images and channels, for either side of both decisions and at their edges."""
each_loss = pytest.mark.parametrize("loss", [barlow_twins_loss, vicreg_loss])
Loss = Callable[[list[Tensor]], Tensor]


def assert_same_gradients(loss: Tensor, expected: Tensor, views: list[Tensor]) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, views), torch.autograd.grad(expected, views), rtol=1e-8, atol=1e-11
    )


@pytest.mark.parametrize(("n", "d"), SIDES)
def test_barlow_twins_equals_lightly_in_value_and_gradients(n: int, d: int) -> None:
    peer = pytest.importorskip("lightly.loss").BarlowTwinsLoss(lambda_param=0.03)
    views = [view.requires_grad_() for view in embeddings(n, d)]
    assert_same_gradients(barlow_twins_loss(views, 0.03), peer(*views), views)


@pytest.mark.parametrize(("n", "d"), SIDES)
def test_vicreg_equals_lightly_in_value_and_gradients(n: int, d: int) -> None:
    peer = pytest.importorskip("lightly.loss").VICRegLoss(3.0, 5.0, 0.7)
    views = [(0.7 * view).requires_grad_() for view in embeddings(n, d)]
    assert_same_gradients(vicreg_loss(views, 3.0, 5.0, 0.7), peer(*views), views)


@pytest.mark.parametrize(("n", "d"), SIDES)
def test_squared_covariances_are_those_of_the_definition_on_either_side(n: int, d: int) -> None:
    x = embeddings(n, d)[0]
    x = (x - x.mean(dim=1, keepdim=True)).requires_grad_()
    covariance = x @ x.T / (d - 1)
    expected = (covariance - covariance.diagonal().diag()).square().sum()
    assert_same_gradients(squared_covariances(x), expected, [x])


@pytest.mark.parametrize(("n", "d"), SIDES)
def test_squared_correlations_are_those_of_the_definition_on_either_side(n: int, d: int) -> None:
    a, b = views = [view.requires_grad_() for view in embeddings(n, d)]
    correlation = a.T @ b / n
    expected = (correlation - correlation.diagonal().diag()).square().sum()
    assert_same_gradients(barlow_twins._off_diagonal(a, b, (a * b).mean(dim=0)), expected, views)


@each_loss
def test_more_views_are_the_mean_over_pairs(loss: Loss) -> None:
    views = embeddings(12, 10, 4)
    pairs = torch.stack([loss([a, b]) for a, b in itertools.combinations(views, 2)])
    torch.testing.assert_close(loss(views), pairs.mean())


@each_loss
@pytest.mark.parametrize(("n", "d"), [(3, 8), (8, 3)])
def test_gradients_equal_finite_differences(loss: Loss, n: int, d: int) -> None:
    views = [view.requires_grad_() for view in embeddings(n, d)]
    assert torch.autograd.gradcheck(lambda *views: loss(list(views)), tuple(views), atol=1e-5)


@each_loss
@pytest.mark.parametrize(("n", "d"), [(6, 40), (40, 6)])
def test_constant_embeddings_have_a_finite_loss_and_gradients(loss: Loss, n: int, d: int) -> None:
    views = [torch.full((n, d), 0.1, requires_grad=True) for _ in range(2)]
    value = loss(views)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, views))


@each_loss
@pytest.mark.parametrize(("n", "d"), [(64, 512), (512, 64)])
def test_float32_is_close_to_float64(loss: Loss, n: int, d: int) -> None:
    views = [view.requires_grad_() for view in embeddings(n, d)]
    single = [view.detach().float().requires_grad_() for view in views]
    assert loss(single).item() == pytest.approx(loss(views).item(), rel=1e-5)
    for gradient, exact in zip(torch.autograd.grad(loss(single), single), torch.autograd.grad(loss(views), views)):
        assert float((gradient - exact).norm() / exact.norm()) < 1e-4


def test_methods_and_losses_agree() -> None:
    batch = batch_of(16, views=3)
    method = build("barlow_twins", {"trade_off": 0.1})
    expected = barlow_twins_loss([method.encoder(view).z for view in batch.views], 0.1)
    torch.testing.assert_close(method(batch).loss, expected)
    method = build("vicreg", {"invariance_weight": 2.0, "variance_weight": 3.0, "covariance_weight": 4.0})
    step = method(batch)
    views = [method.encoder(view).z for view in batch.views]
    torch.testing.assert_close(step.loss, vicreg_loss(views, 2.0, 3.0, 4.0))
    weighted = 2 * step.scalars["invariance"] + 3 * step.scalars["variance"] + 4 * step.scalars["covariance"]
    torch.testing.assert_close(step.loss, weighted)


def test_barlow_twins_affine_part_is_that_of_a_batch_norm_shared_by_the_views() -> None:
    views = [view.requires_grad_() for view in embeddings(12, 8)]
    norm = torch.nn.BatchNorm1d(8).double()
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    torch.nn.init.normal_(norm.bias)
    correlation = norm(views[0]).T @ norm(views[1]) / 12
    diagonal = correlation.diagonal()
    off = correlation.square().sum() - diagonal.square().sum()
    expected = (1 - diagonal).square().sum() + 0.008 * off
    actual = barlow_twins_loss(views, 0.008, norm.weight, norm.bias)
    torch.testing.assert_close(actual, expected)
    inputs = [*views, norm.weight, norm.bias]
    torch.testing.assert_close(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs))


def test_barlow_twins_has_an_affine_part_only_where_it_is_asked_for() -> None:
    plain, affine = (build("barlow_twins", {"affine": value}) for value in (False, True))
    assert set(affine.state_dict()) - set(plain.state_dict()) == {"scale", "shift"}
    assert float(plain(batch_of(16)).loss) == float(affine(batch_of(16)).loss)
