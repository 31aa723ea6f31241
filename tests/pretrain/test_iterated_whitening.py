"""ZCA without eigenvalues is ZCA, and hands over to eigenvalues where its iteration does not converge."""

import pytest
import torch
from torch import Tensor

from pretrain.losses import deferred, iterated_whitening
from pretrain.losses.iterated_whitening import zca_iterated
from pretrain.losses.whitening import Axis, whiten
from pretrain.losses.whitening_gradients import zca
from pretrain.methods.cwrgp import cwrgp_loss
from tests.support.method_cases import embeddings, orders
from whitebench.errors import UserError


def matrices(condition: float) -> Tensor:
    """[2, 12, 40], singular values from 1 to 1 / condition."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2, size, 12, generator=generator, dtype=torch.float64) for size in (12, 40))
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), 12, dtype=torch.float64)
    return ((torch.linalg.qr(left).Q * values) @ torch.linalg.qr(right).Q.mT).requires_grad_()


def both(a: Tensor, eps: float = 0.0) -> list[tuple[Tensor, Tensor]]:
    """Values and gradients with and without eigenvalues."""
    weight = torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=a.dtype)
    values = [whitened(a, 1 / 39, eps) for whitened in (zca, zca_iterated)]
    return [(value, torch.autograd.grad((value * weight).sum(), a)[0]) for value in values]


@pytest.mark.parametrize(("condition", "tolerance"), [(1e1, 1e-12), (1e2, 1e-11), (1e3, 1e-9), (1e4, 1e-7)])
def test_values_and_gradients_are_those_of_eigenvalues(condition: float, tolerance: float) -> None:
    a = matrices(condition)
    expected, actual = both(a)
    assert not actual[0].equal(expected[0])  # it is the iteration
    for x, y in zip(actual, expected, strict=True):
        assert float((x - y).norm()) < tolerance * float(y.norm())


def test_so_is_the_loss_of_cw_rgp_on_either_side_of_the_smaller_gram_matrix() -> None:
    views = [view.requires_grad_() for view in embeddings(8, 48)]
    losses = [
        cwrgp_loss(views, 2, permutations=orders(views), transform=transform) for transform in ("zca", "zca_iterated")
    ]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, views)[1] for loss in losses), rtol=1e-8, atol=1e-12)
    axes: list[tuple[Axis, int]] = [("channel", 1), ("channel", 8), ("batch", 1)]
    for axis, groups in axes:
        outputs = [whiten(views[0], transform, axis, groups, eps=0.1) for transform in ("zca", "zca_iterated")]
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-11)


def test_a_cpu_takes_eigenvalues_at_once_where_the_iteration_does_not_converge() -> None:
    a = matrices(1e6)
    expected, actual = both(a)
    for x, y in zip(actual, expected, strict=True):
        assert x.equal(y)
    assert not both(matrices(10))[1][0].equal(both(matrices(10))[0][0])  # the next one is iterated again
    with pytest.raises(UserError, match="numerically singular"):
        zca_iterated(torch.ones(1, 4, 9, dtype=torch.float64), 0.1)


def test_an_accelerator_takes_eigenvalues_once_the_host_learns_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = False
    monkeypatch.setattr(deferred, "DEFERRED", {"cpu"})
    monkeypatch.setattr(deferred, "_has_arrived", lambda check: arrived)
    monkeypatch.setattr(iterated_whitening, "_converges", deferred.Outlook())
    bad, good = matrices(1e6), matrices(10)
    for a in (good, bad, good):
        assert not zca_iterated(a, 1 / 39).equal(zca(a, 1 / 39))
    arrived = True
    assert zca_iterated(good, 1 / 39).equal(zca(good, 1 / 39))
    assert zca_iterated(bad, 1 / 39).equal(zca(bad, 1 / 39))
