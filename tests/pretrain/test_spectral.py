"""The framework of spectral transformations: its instances are other methods' losses."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.losses.similarity import cosine_distance
from pretrain.losses.whitening import Axis, whiten
from pretrain.methods.cwrgp import cwrgp_loss
from pretrain.methods.intl import intl_loss, trace_loss
from pretrain.methods.spectral import Kind, spectral_loss
from pretrain.methods.wmse import wmse_loss
from tests.support.method_cases import build, embeddings
from tests.support.tiny_encoder import batch_of
from whitebench.errors import UserError

FULL: list[Kind] = ["zca", "power", "cholesky"]
SMOOTH: list[Kind] = [*FULL, "iternorm"]


def leaves(n: int, d: int, views: int = 2) -> list[Tensor]:
    return [view.requires_grad_() for view in embeddings(n, d, views)]


def gradients(loss: Tensor, views: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, views))


@pytest.mark.parametrize(("axis", "n", "d"), [("channel", 12, 40), ("batch", 40, 12), ("channel", 40, 12)])
@pytest.mark.parametrize("trade_off", [None, 0.3])
def test_iternorm_with_the_trace_loss_and_two_views_is_intl(
    axis: Axis, n: int, d: int, trade_off: float | None
) -> None:
    views = leaves(n, d)
    loss = spectral_loss(views, "iternorm", axis, iterations=5, with_trace_loss=True, trade_off=trade_off)
    expected = intl_loss(views, iterations=5, trade_off=trade_off, axis=axis)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradients(loss, views), gradients(expected, views), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("normalize", [True, False])
def test_zca_on_the_channel_axis_is_cwrgp_without_random_groups(groups: int, normalize: bool) -> None:
    views = leaves(8, 40, 3)
    loss = spectral_loss(views, "zca", groups=groups, normalize=normalize)
    expected = cwrgp_loss(views, groups, random_groups=False, normalize=normalize)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(loss, views), gradients(expected, views), rtol=1e-9, atol=1e-13)


def test_cholesky_on_the_batch_axis_is_wmse() -> None:
    views = leaves(30, 8, 3)
    loss, expected = spectral_loss(views, "cholesky", "batch"), wmse_loss(views)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(loss, views), gradients(expected, views), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("normalize", [True, False])
def test_no_transform_is_plain_attraction(normalize: bool) -> None:
    views = leaves(7, 5, 3)
    pairs = list(itertools.combinations(views, 2))
    if normalize:
        expected = torch.stack([(2 - 2 * F.cosine_similarity(a, b)).mean() for a, b in pairs]).mean()
    else:
        expected = torch.stack([F.mse_loss(a, b) for a, b in pairs]).mean()
    loss = spectral_loss(views, "none", normalize=normalize)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, views), gradients(expected, views))
    assert float(spectral_loss([torch.ones(7, 5)] * 2, "none")) == pytest.approx(0, abs=1e-6)


def straightforward(x: Tensor, transform: Kind, axis: Axis, groups: int, exponent: float, iterations: int) -> Tensor:
    """By autograd through the eigendecomposition, group by group, always with the full covariance."""
    x = x - x.mean(dim=1 if axis == "channel" else 0, keepdim=True)
    parts = []
    for part in x.chunk(groups, dim=1):
        a = part if axis == "channel" else part.T
        s = a @ a.T / (a.shape[1] - 1)
        if transform == "cholesky":
            weight = torch.linalg.inv(torch.linalg.cholesky(s))
        elif transform == "iternorm":
            root = torch.eye(len(s), dtype=s.dtype)
            for _ in range(iterations):
                root = (3 * root - root @ root @ root @ s / s.trace()) / 2
            weight = root / s.trace().sqrt()
        else:
            eigenvalues, vectors = torch.linalg.eigh(s)
            weight = vectors @ eigenvalues.pow(-exponent).diag() @ vectors.T
        y = weight @ a
        parts.append(y if axis == "channel" else y.T)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("transform", SMOOTH)
@pytest.mark.parametrize(("axis", "n", "d"), [("channel", 6, 40), ("batch", 40, 12)])
@pytest.mark.parametrize("groups", [1, 2])
def test_values_and_gradients_equal_the_straightforward_form(
    transform: Kind, axis: Axis, n: int, d: int, groups: int
) -> None:
    views, exponent = leaves(n, d, 3), 0.45 if transform == "power" else 0.5
    outputs = [straightforward(view, transform, axis, groups, exponent, 3) for view in views]
    pairs = list(itertools.combinations(outputs, 2))
    expected = torch.stack([(F.normalize(a) - F.normalize(b)).square().sum(1).mean() for a, b in pairs]).mean()
    loss = spectral_loss(views, transform, axis, groups, iterations=3, exponent=exponent)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradients(loss, views), gradients(expected, views), rtol=1e-7, atol=1e-11)


def test_the_trace_loss_is_that_of_both_views_averaged_over_pairs() -> None:
    views = embeddings(12, 40, 3)
    traces = [trace_loss(whiten(view, "iternorm"), "channel") for view in views]
    without = spectral_loss(views, "iternorm")
    loss = spectral_loss(views, "iternorm", with_trace_loss=True, trade_off=0.1)
    torch.testing.assert_close(loss, without + 0.1 * 2 * torch.stack(traces).mean())


@pytest.mark.parametrize("transform", SMOOTH)
@pytest.mark.parametrize("axis", ["channel", "batch"])
def test_gradients_equal_finite_differences(transform: Kind, axis: Axis) -> None:
    views = leaves(4, 10) if axis == "channel" else leaves(10, 4)

    def function(*views: Tensor) -> Tensor:
        return spectral_loss(
            views, transform, axis, exponent=0.45, with_trace_loss=True, trade_off=0.1, normalize=False
        )

    assert torch.autograd.gradcheck(function, tuple(views), atol=1e-6)


@pytest.mark.parametrize("transform", SMOOTH)
@pytest.mark.parametrize("axis", ["channel", "batch"])
def test_repeated_eigenvalues_have_finite_gradients(transform: Kind, axis: Axis) -> None:
    """All of them equal, and in the other view, after noise in one image or channel, all but two."""
    basis = torch.linalg.qr(torch.cat([torch.ones(20, 1, dtype=torch.float64), embeddings(20, 8)[0]], dim=1)).Q[:, 1:]
    white, noisy = basis.T.clone(), basis.T.clone()
    noisy[0] += 0.1 * embeddings(20, 1)[0][:, 0]
    views = [view if axis == "channel" else view.T for view in (white, noisy)]
    views = [view.contiguous().requires_grad_() for view in views]
    loss = spectral_loss(views, transform, axis)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, views))


@pytest.mark.parametrize("transform", SMOOTH)
@pytest.mark.parametrize("noise", [1e-2, 1e-5])
def test_nearly_repeated_images_have_finite_gradients(transform: Kind, noise: float) -> None:
    views = [view.float() for view in embeddings(8, 40)]
    for view, other in zip(views, embeddings(8, 40, seed=1)):
        view[1] = view[0] + noise * other[0]
        view.requires_grad_()
    loss = spectral_loss(views, transform)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, views))


@pytest.mark.parametrize("transform", FULL)
def test_repeated_images_are_a_clear_error_unless_shrunk(transform: Kind) -> None:
    views = embeddings(8, 40)
    for view in views:
        view[1] = view[0]
    with pytest.raises(UserError, match="numerically singular"):
        spectral_loss(views, transform)
    assert spectral_loss(views, transform, eps=1e-3).isfinite()
    assert spectral_loss(views, "iternorm").isfinite()


def test_constant_embeddings_are_a_clear_error_or_collapsed() -> None:
    constant = [torch.ones(8, 40)] * 2
    for transform in FULL:
        with pytest.raises(UserError, match="constant or repeated embeddings"):
            spectral_loss(constant, transform)
    with pytest.raises(UserError, match="constant"):
        spectral_loss(constant, "iternorm")
    assert float(spectral_loss(constant, "none")) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("transform", "groups", "word"), [("none", 1, "transform"), ("iternorm", 2, "groups")])
def test_a_trace_loss_of_what_is_not_centred_is_refused(transform: Kind, groups: int, word: str) -> None:
    with pytest.raises(UserError, match=word):
        spectral_loss(embeddings(8, 40), transform, groups=groups, with_trace_loss=True)


@pytest.mark.parametrize(
    "options",
    [
        {"transform": "power", "exponent": 0.45, "groups": 2, "eps": 0.1},
        {"transform": "iternorm", "iterations": 3, "trace_loss": True, "trade_off": 0.2},
        {"transform": "none", "normalize": False, "gather": False},
    ],
)
def test_method_and_loss_agree(options: dict[str, Any]) -> None:
    method, batch = build("spectral", options), batch_of(16, views=3)
    settings = {key: value for key, value in options.items() if key not in ("gather", "trace_loss")}
    views = [method.encoder(view).z for view in batch.views]
    expected = spectral_loss(views, **settings, with_trace_loss=options.get("trace_loss", False))
    step = method(batch)
    torch.testing.assert_close(step.loss, expected)
    if options.get("trace_loss"):
        trace = step.loss - step.scalars["transformed_distance"]
        torch.testing.assert_close(trace, 0.4 * step.scalars["trace"])


def test_what_is_compared_is_the_transformed_embeddings() -> None:
    z = embeddings(10, 48)[0]
    transformed = build("spectral", {"transform": "zca"}).transformed(z)
    assert transformed is not None
    torch.testing.assert_close(transformed, whiten(z, "zca"))
    assert build("spectral", {"transform": "none"}).transformed(z) is None
    a, b = embeddings(10, 48)
    torch.testing.assert_close(cosine_distance(whiten(a), whiten(b)), spectral_loss([a, b], "zca"))
