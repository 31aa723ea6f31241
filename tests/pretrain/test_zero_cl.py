"""Zero-CL's loss and method."""

import itertools

import pytest
import torch
from torch import Tensor

from pretrain.methods.zero_cl import zero_cl_loss
from tests.support.method_cases import build, embeddings
from tests.support.tiny_encoder import batch_of
from whitebench.errors import UserError


def part(views: list[Tensor], shrinkage: float = 0.1, ridge: float = 1e-5) -> Tensor:
    """The instance part as `reference/METHODS.md` gives it, with the full matrices and an SVD."""
    whitened = []
    for z in views:
        x = (z - z.mean(dim=1, keepdim=True)) / z.std(dim=1, keepdim=True)
        s = x @ x.T / (x.shape[1] - 1)
        u, values, _ = torch.linalg.svd((1 - shrinkage) * s + shrinkage * torch.eye(len(s), dtype=s.dtype))
        whitened.append((u @ (1 / (values + ridge).sqrt()).diag() @ u.T).detach() @ x)
    pairs = [a @ b.T / a.shape[1] for a, b in itertools.combinations(whitened, 2)]
    return torch.stack([(1 - c.diagonal()).square().sum() for c in pairs]).mean()


@pytest.mark.parametrize(("n", "d"), [(9, 20), (20, 9), (12, 12)])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, 0.2)], ids=["instance", "feature", "both"])
@pytest.mark.parametrize(("shrinkage", "ridge"), [(0.1, 1e-5), (0.0, 0.01)])
@pytest.mark.parametrize("count", [2, 3])
def test_value_and_gradients_equal_the_definition_on_either_side(
    n: int, d: int, weights: tuple[float, float], shrinkage: float, ridge: float, count: int
) -> None:
    views = [view.requires_grad_() for view in embeddings(n, d, count)]
    instance, feature = part(views, shrinkage, ridge), part([view.T for view in views], shrinkage, ridge)
    expected = weights[0] * instance + weights[1] * feature
    loss = zero_cl_loss(views, *weights, shrinkage, ridge)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, views), torch.autograd.grad(expected, views), rtol=1e-8, atol=1e-11
    )


def test_float32_is_close_to_float64() -> None:
    views = [view.requires_grad_() for view in embeddings(32, 200)]
    single = [view.detach().float().requires_grad_() for view in views]
    loss, expected = zero_cl_loss(single), zero_cl_loss(views)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, exact in zip(torch.autograd.grad(loss, single), torch.autograd.grad(expected, views)):
        assert float((gradient - exact).norm() / exact.norm()) < 1e-4


@pytest.mark.parametrize(("n", "d"), [(6, 20), (20, 6)])
def test_constant_repeated_and_white_embeddings_have_finite_gradients(n: int, d: int) -> None:
    q = torch.linalg.qr(embeddings(max(n, d), min(n, d))[0]).Q
    white = q if n > d else q.T
    half = embeddings(n, d)[0].clone()
    half[0], half[:, 0], half[2] = 1.0, 2.0, half[1]
    for view in (torch.full((n, d), 0.1, dtype=torch.float64), half, white):
        views = [view.clone().requires_grad_(), (view + 0.0).requires_grad_()]
        loss = zero_cl_loss(views)
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, views))


def test_embeddings_that_are_not_finite_are_a_clear_error() -> None:
    with pytest.raises(UserError, match="not finite"):
        zero_cl_loss([torch.full((6, 20), float("nan"))] * 2)


def test_method_sums_its_parts() -> None:
    method, batch = build("zero_cl", {"instance_weight": 0.5, "feature_weight": 2.0}), batch_of(16, views=3)
    step = method(batch)
    views = [method.encoder(view).z for view in batch.views]
    torch.testing.assert_close(step.loss, zero_cl_loss(views, 0.5, 2.0))
    torch.testing.assert_close(step.loss, step.scalars["instance"] + step.scalars["feature"])
    assert "feature" not in build("zero_cl", {"feature_weight": 0.0})(batch).scalars


def test_what_is_compared_is_whitened_along_the_part_that_is_on() -> None:
    z = embeddings(10, 40)[0]
    rows = build("zero_cl", {"feature_weight": 0.0, "shrinkage": 0.0, "ridge": 1e-9}).transformed(z)
    assert rows is not None
    torch.testing.assert_close(rows.cov(), torch.eye(10, dtype=z.dtype), rtol=0, atol=1e-6)
    columns = build("zero_cl", {"instance_weight": 0.0, "shrinkage": 0.0, "ridge": 1e-9}).transformed(z.T)
    assert columns is not None
    torch.testing.assert_close(columns.T.cov(), torch.eye(10, dtype=z.dtype), rtol=0, atol=1e-6)
