"""Shuffled-DBN's loss and method."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.methods.shuffled_dbn import shuffled_dbn_loss
from tests.support.method_cases import build, embeddings, orders
from tests.support.tiny_encoder import batch_of
from whitebench.errors import UserError


def shuffled_dbn(x: Tensor, order: Tensor, groups: int) -> Tensor:
    """The layer, group by group, by autograd through the eigendecomposition; the covariance over N."""
    x = (x - x.mean(dim=0))[:, order]
    whitened = []
    for part in x.chunk(groups, dim=1):
        eigenvalues, vectors = torch.linalg.eigh(part.T @ part / len(part))
        whitened.append(part @ vectors @ eigenvalues.rsqrt().diag() @ vectors.T)
    return torch.cat(whitened, dim=1)[:, order.argsort()]


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_value_and_gradients_equal_the_layer_by_definition(views: int, normalize: bool, groups: int) -> None:
    z = [view.requires_grad_() for view in embeddings(30, 12, views)]
    outputs = [shuffled_dbn(view, order, groups) for view, order in zip(z, orders(z))]
    if normalize:
        outputs = [F.normalize(output) for output in outputs]
    pairs = [(a - b).norm(dim=1).square().mean() for a, b in itertools.combinations(outputs, 2)]
    expected = torch.stack(pairs).mean()
    loss = shuffled_dbn_loss(z, groups, permutations=orders(z), normalize=normalize)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, z), torch.autograd.grad(expected, z), rtol=1e-8, atol=1e-12)


def test_each_view_draws_its_own_groups() -> None:
    z = embeddings(30, 12)[0]
    assert float(shuffled_dbn_loss([z, z], 3, shuffle=False)) == pytest.approx(0, abs=1e-12)
    assert float(shuffled_dbn_loss([z, z], 3)) > 0.01
    assert len({round(float(shuffled_dbn_loss([z, z], 3)), 9) for _ in range(8)}) == 8
    assert float(shuffled_dbn_loss([z, z], 1)) == pytest.approx(0, abs=1e-12)


def test_gradients_equal_finite_differences() -> None:
    views = [view.requires_grad_() for view in embeddings(8, 6)]

    def function(*views: Tensor) -> Tensor:
        return shuffled_dbn_loss(views, 2, generator=torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(function, tuple(views), atol=1e-6)


def test_equal_eigenvalues_have_finite_gradients() -> None:
    basis = torch.linalg.qr(torch.cat([torch.ones(20, 1, dtype=torch.float64), embeddings(20, 6)[0]], dim=1)).Q[:, 1:]
    views = [basis.clone().requires_grad_(), embeddings(20, 6)[0].requires_grad_()]
    shuffled_dbn_loss(views, 2).backward()
    assert all(view.grad is not None and view.grad.isfinite().all() for view in views)


def test_singular_covariances_are_a_clear_error_unless_shrunk() -> None:
    constant, repeated = torch.ones(20, 6), embeddings(20, 6)[0][:, [0, 0, 2, 3, 4, 5]]
    for view in (constant, repeated):
        with pytest.raises(UserError, match="numerically singular"):
            shuffled_dbn_loss([view, view], 2, shuffle=False)
        assert shuffled_dbn_loss([view, view], 2, eps=0.01).isfinite()


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="12 channels cannot be cut into 5 groups"):
        shuffled_dbn_loss(embeddings(30, 12), 5)
    with pytest.raises(UserError, match=r"N > D / groups.*N = 6.*12 / 2 = 6"):
        shuffled_dbn_loss(embeddings(6, 12), 2)


def test_method_and_loss_agree() -> None:
    method = build("shuffled_dbn", {"groups": 2, "shuffle": False, "normalize": True}, embedding_dim=12)
    batch = batch_of(32, views=3)
    expected = shuffled_dbn_loss([method.encoder(view).z for view in batch.views], 2, shuffle=False, normalize=True)
    torch.testing.assert_close(method(batch).loss, expected)


def test_what_is_compared_is_white_in_every_group() -> None:
    transformed = build("shuffled_dbn", {"groups": 2}).transformed(embeddings(50, 12)[0])
    assert transformed is not None
    for group in transformed.chunk(2, dim=1):
        torch.testing.assert_close(group.T.cov(), torch.eye(6, dtype=group.dtype))
