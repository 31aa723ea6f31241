"""W-MSE's loss and method."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.losses.similarity import cosine_distance
from pretrain.losses.whitening import whiten
from pretrain.methods.wmse import wmse_loss
from pretrain.networks import embed_jointly
from tests.support.method_cases import build, embeddings
from tests.support.tiny_encoder import batch_of
from whitebench.errors import UserError


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize(("normalize", "eps"), [(True, 0.0), (False, 0.0), (True, 0.1)])
def test_value_and_gradients_equal_lightly(views: int, normalize: bool, eps: float) -> None:
    module = pytest.importorskip("lightly.loss.wmse_loss")
    distance = module.norm_mse_loss if normalize else F.mse_loss
    peer = module.WMSELoss(
        6, eps=eps, track_running_stats=False, w_size=20, loss_fn=distance, num_samples=views, w_iter=2
    )
    z = [view.requires_grad_() for view in embeddings(20, 6, views)]
    expected, loss = peer(torch.cat(z)), wmse_loss(z, repeats=2, normalize=normalize, eps=eps)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, z), torch.autograd.grad(expected, z), rtol=1e-8, atol=1e-12)


def test_windows_are_dealt_at_random_and_whitened_by_themselves() -> None:
    """Every draw equals the mean over the two halves of SOME split of the images that both views share."""
    views = embeddings(6, 2)
    splits = {}
    for half in itertools.combinations(range(1, 6), 2):
        parts = [[0, *half], [i for i in range(1, 6) if i not in half]]
        whitened = [[whiten(view[part], "cholesky", "batch") for view in views] for part in parts]
        splits[half] = float(torch.stack([cosine_distance(a, b) for a, b in whitened]).mean())
    generator, hit = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        loss = float(wmse_loss(views, window=3, generator=generator))
        hit.add(min(splits, key=lambda split: abs(splits[split] - loss)))
        assert min(abs(value - loss) for value in splits.values()) < 1e-10
    assert len(hit) >= 8


def test_gradients_equal_finite_differences() -> None:
    views = [view.requires_grad_() for view in embeddings(12, 3)]

    def function(*views: Tensor) -> Tensor:
        return wmse_loss(views, window=6, repeats=2, generator=torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(function, tuple(views), atol=1e-6)


def test_equal_eigenvalues_have_finite_gradients() -> None:
    basis = torch.linalg.qr(torch.cat([torch.ones(20, 1, dtype=torch.float64), embeddings(20, 6)[0]], dim=1)).Q[:, 1:]
    views = [basis.clone().requires_grad_(), embeddings(20, 6)[0].requires_grad_()]
    wmse_loss(views).backward()
    assert all(view.grad is not None and view.grad.isfinite().all() for view in views)


def test_a_window_just_above_the_width_works_and_one_at_it_is_refused() -> None:
    views = [view.float().requires_grad_() for view in embeddings(7, 6)]
    wmse_loss(views).backward()
    assert all(view.grad is not None and view.grad.isfinite().all() for view in views)
    with pytest.raises(UserError, match=r"N > D / groups.*N = 6.*6 / 1 = 6"):
        wmse_loss(embeddings(6, 6))
    with pytest.raises(UserError, match="windows of 5"):
        wmse_loss(embeddings(12, 3), window=5)


def test_singular_covariances_are_a_clear_error_unless_shrunk() -> None:
    constant, repeated = torch.ones(20, 6), embeddings(20, 6)[0][:, [0, 1, 2, 3, 4, 4]]
    for view in (constant, repeated):
        with pytest.raises(UserError, match="numerically singular"):
            wmse_loss([view, view])
        assert wmse_loss([view, view], eps=0.01).isfinite()


def test_method_embeds_the_views_jointly() -> None:
    method = build("wmse", {"window": None}, embedding_dim=12)
    batch = batch_of(32, views=3)
    step = method(batch)
    torch.testing.assert_close(step.loss, wmse_loss(embed_jointly(method.encoder, batch.views)))


def test_what_is_compared_is_white_in_every_window() -> None:
    z = embeddings(50, 6)[0]
    transformed = build("wmse", {"window": 20}).transformed(z)
    assert transformed is not None
    assert transformed.shape == (40, 6)
    for window in transformed.split(20):
        torch.testing.assert_close(window.T.cov(), torch.eye(6, dtype=z.dtype))
