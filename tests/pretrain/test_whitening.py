"""What holds of the spectral transforms, whatever the method."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.losses.similarity import unit_rows
from pretrain.losses.whitening import Axis, Transform, whiten, whiten_matrices
from pretrain.losses.windows import permute_rows
from tests.golden_trajectories import waves
from whitebench.errors import UserError

FULL: list[Transform] = ["zca", "pca", "cholesky", "power"]
SYMMETRIC: list[Transform] = ["zca", "power", "iternorm"]


def embeddings(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zca_by_svd(x: Tensor) -> Tensor:
    """Channel axis, one group: the straightforward form, differentiated by autograd through the SVD."""
    x = x - x.mean(dim=1, keepdim=True)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh * (x.shape[1] - 1) ** 0.5


@settings(max_examples=25, deadline=None)
@given(transform=st.sampled_from(FULL), images=st.integers(2, 12), groups=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_every_group_of_channels_decorrelates_the_images(
    transform: Transform, images: int, groups: int, seed: int
) -> None:
    width = 2 * images + 3
    x = embeddings(images, groups * width, seed)
    for y in whiten(x, transform, groups=groups).chunk(groups, dim=1):
        torch.testing.assert_close(y @ y.T / (width - 1), torch.eye(images, dtype=y.dtype), atol=1e-9, rtol=0)


@settings(max_examples=25, deadline=None)
@given(transform=st.sampled_from(FULL), width=st.integers(1, 8), groups=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_batch_axis_decorrelates_the_channels_of_each_group(
    transform: Transform, width: int, groups: int, seed: int
) -> None:
    x = embeddings(4 * width + 8, groups * width, seed)
    for y in whiten(x, transform, axis="batch", groups=groups).chunk(groups, dim=1):
        torch.testing.assert_close(y.mean(dim=0), torch.zeros(width, dtype=y.dtype), atol=1e-12, rtol=0)
        covariance = y.T @ y / (len(y) - 1)
        torch.testing.assert_close(covariance, torch.eye(width, dtype=y.dtype), atol=1e-9, rtol=0)


def test_zca_equals_the_svd_in_value_and_gradient() -> None:
    x, weight = embeddings(12, 40).requires_grad_(), embeddings(12, 40, seed=1)
    expected, y = zca_by_svd(x), whiten(x)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-10)
    (reference,) = torch.autograd.grad((expected * weight).sum(), x)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    torch.testing.assert_close(gradient, reference, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    ("transform", "axis", "groups", "eps", "exponent"),
    [
        ("zca", "channel", 2, 0.0, 0.5),
        ("zca", "channel", 4, 0.1, 0.5),  # 5 images, 3 channels a group: the smaller side
        ("zca", "batch", 3, 0.0, 0.5),
        ("pca", "batch", 3, 0.0, 0.5),
        ("pca", "channel", 1, 0.01, 0.5),
        ("cholesky", "channel", 2, 0.0, 0.5),
        ("cholesky", "batch", 3, 0.01, 0.5),
        ("power", "channel", 2, 0.0, 0.45),
        ("power", "batch", 4, 0.01, 1.3),
        ("iternorm", "channel", 1, 0.0, 0.5),
        ("iternorm", "channel", 4, 0.0, 0.5),
        ("iternorm", "batch", 1, 0.0, 0.5),
        ("iternorm", "batch", 1, 0.1, 0.5),
    ],
)
def test_gradients_equal_finite_differences(
    transform: Transform, axis: Axis, groups: int, eps: float, exponent: float
) -> None:
    x = embeddings(5 if axis == "channel" else 9, 12).requires_grad_()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))

    def function(x: Tensor) -> Tensor:
        return whiten(x, transform, axis, groups, order, eps, iterations=3, exponent=exponent)

    assert torch.autograd.gradcheck(function, (x,), atol=1e-6)


def test_a_permutation_regroups_the_channels_and_puts_them_back() -> None:
    x = embeddings(6, 32)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    y = whiten(x, groups=2, permutation=order)
    torch.testing.assert_close(y[:, order], whiten(x[:, order], groups=2))


@pytest.mark.parametrize("axis", ["channel", "batch"])
def test_the_order_of_images_and_of_channels_is_kept(axis: Axis) -> None:
    x = embeddings(6, 40) if axis == "channel" else embeddings(40, 6)
    rows, columns = torch.randperm(x.shape[0]), torch.randperm(x.shape[1])
    for transform in SYMMETRIC:
        y = whiten(x, transform, axis)
        torch.testing.assert_close(whiten(x[rows][:, columns], transform, axis), y[rows][:, columns])


@pytest.mark.parametrize("transform", ["zca", "iternorm", "pca", "cholesky"])
@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e7])
def test_output_does_not_depend_on_the_scale_of_the_input(transform: Transform, scale: float) -> None:
    x = embeddings(8, 40).float()
    torch.testing.assert_close(whiten(x * scale, transform).abs(), whiten(x, transform).abs(), atol=1e-3, rtol=1e-3)


def test_power_of_one_half_is_zca_and_of_one_is_the_inverse_covariance() -> None:
    x = embeddings(6, 40)
    torch.testing.assert_close(whiten(x, "power", exponent=0.5), whiten(x, "zca"))
    c = x - x.mean(dim=1, keepdim=True)
    torch.testing.assert_close(whiten(x, "power", exponent=1.0), torch.linalg.inv(c @ c.T / 39) @ c)


def test_iternorm_approaches_zca_as_it_iterates() -> None:
    x = embeddings(6, 200)
    torch.testing.assert_close(whiten(x, "iternorm", iterations=25), whiten(x, "zca"), atol=1e-9, rtol=1e-9)


def test_iternorm_equals_newtons_iteration_on_the_full_covariance() -> None:
    """Also with more variables than observations, where the smaller Gram matrix is used instead."""
    for n, d in [(5, 30), (30, 5), (7, 8)]:
        x = embeddings(n, d)
        c = x - x.mean(dim=1, keepdim=True)
        covariance = c @ c.T / (d - 1)
        trace = covariance.trace()
        root = torch.eye(n, dtype=x.dtype)
        for _ in range(4):
            root = 1.5 * root - 0.5 * root @ root @ root @ covariance / trace
        torch.testing.assert_close(whiten(x, "iternorm"), root @ c / trace.sqrt())


HARD: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda x: x,
    "waves": lambda x: waves(*x.shape, 0, 0.3),
    "rows of lengths from 1 to 1/1000": lambda x: torch.logspace(0, -3, len(x), dtype=x.dtype).unsqueeze(1) * x,
    "nearly collapsed": lambda x: x[:1] + 0.01 * x.roll(1, 0),
}
"""Inputs whose covariances are more and more ill-conditioned."""


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("axis", ["channel", "batch"])
@pytest.mark.parametrize("iterations", [4, 7, 9])
def test_iternorm_in_float32_is_exact_to_rounding_whatever_its_steps(kind: str, axis: Axis, iterations: int) -> None:
    """Newton's iteration in the form of the formula is off by orders of magnitude at T = 9."""
    x = HARD[kind](embeddings(64, 256) if axis == "channel" else embeddings(256, 64)).float()
    direction = embeddings(*x.shape, seed=1)
    outputs, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        views = x.to(dtype, copy=True).requires_grad_()
        output = whiten(views, "iternorm", axis=axis, iterations=iterations)
        (unit_rows(output) * unit_rows(direction.to(dtype))).sum().backward()
        assert views.grad is not None
        outputs.append(output.detach().double())
        gradients.append(views.grad.double())
    centring = 10 if axis == "batch" and kind == "nearly collapsed" else 1  # means near 1 of deviations near 0.01
    assert float((outputs[0] - outputs[1]).norm() / outputs[1].norm()) < 2e-6 * centring
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-5 * centring


@pytest.mark.parametrize("transform", SYMMETRIC)
def test_the_smaller_gram_matrix_gives_the_same_as_the_full_covariance(transform: Transform) -> None:
    a, eps = embeddings(9, 5), 0.2
    a = a - a.mean(dim=1, keepdim=True)
    small = whiten_matrices(a[None], transform, eps, iterations=5, exponent=0.4)[0]
    covariance = (1 - eps) * a @ a.T / 4 + eps * torch.eye(9, dtype=a.dtype)
    if transform == "iternorm":
        weight = torch.eye(9, dtype=a.dtype)
        for _ in range(5):
            weight = 1.5 * weight - 0.5 * weight @ weight @ weight @ covariance / covariance.trace()
        weight = weight / covariance.trace().sqrt()
    else:
        values, vectors = torch.linalg.eigh(covariance)
        weight = vectors * values.pow(-0.5 if transform == "zca" else -0.4) @ vectors.T
    torch.testing.assert_close(small, weight @ a)


def orthogonal_rows(n: int, d: int) -> Tensor:
    """Centred orthogonal rows of equal length: all eigenvalues of their covariance coincide."""
    basis = torch.linalg.qr(torch.cat([torch.ones(d, 1, dtype=torch.float64), embeddings(d, n)], dim=1)).Q
    return basis[:, 1 : n + 1].T.contiguous()


@pytest.mark.parametrize(("transform", "exponent"), [("zca", 0.5), ("power", 0.45)])
def test_repeated_eigenvalues_have_the_right_gradient(transform: Transform, exponent: float) -> None:
    x = orthogonal_rows(6, 20).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return whiten(x, transform, exponent=exponent)

    assert torch.autograd.gradcheck(function, (x,), atol=1e-6)
    exact = x.detach().float().requires_grad_()
    function(exact).square().sum().backward()
    assert exact.grad is not None
    assert exact.grad.isfinite().all()


def test_nearly_repeated_eigenvalues_have_the_right_gradient_in_float32() -> None:
    close = orthogonal_rows(6, 20) * torch.tensor([1, 1, 1 + 1e-7, 1 + 1e-5, 1 + 1e-3, 2], dtype=torch.float64)[:, None]
    weight = embeddings(6, 20, seed=5)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        x = close.detach().to(dtype, copy=True).requires_grad_()
        (whiten(x, "power", exponent=0.47) * weight.to(dtype)).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad.double())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3 * float(gradients[0].abs().max()), rtol=0)


def test_float64_stays_and_half_becomes_float32_even_under_autocast() -> None:
    x = embeddings(6, 40)
    assert whiten(x).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = whiten(x.bfloat16())
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, whiten(x.bfloat16().float()))
        torch.testing.assert_close(whiten(x, "iternorm"), whiten(x, "iternorm"))
    torch.testing.assert_close(y @ y.T / 39, torch.eye(6), atol=1e-5, rtol=0)


def test_permuted_rows_come_back_and_their_gradient_follows() -> None:
    x = embeddings(3 * 5, 4).view(3, 5, 4).requires_grad_()
    order = torch.stack([torch.randperm(5) for _ in range(3)])
    inverse = order.argsort(dim=-1)
    permuted = permute_rows(x, order, inverse)
    torch.testing.assert_close(permuted[1, 2], x[1, order[1, 2]])
    torch.testing.assert_close(permute_rows(permuted, inverse, order), x)
    assert torch.autograd.gradcheck(lambda x: permute_rows(x, order, inverse), (x,))


@pytest.mark.parametrize(
    ("n", "d", "options", "message"),
    [
        (64, 256, {"groups": 4}, r"N < D / groups.*N = 64.*256 / 4 = 64"),
        (16, 32, {"axis": "batch"}, r"N > D / groups.*N = 16.*32 / 1 = 32"),
        (8, 30, {"groups": 4}, "30 channels cannot be cut into 4 groups"),
        (8, 32, {"groups": 0}, "cannot be cut into 0 groups"),
        (8, 32, {"eps": 1.5}, "eps lies in"),
        (1, 32, {}, "at least 2 images"),
        (8, 32, {"transform": "iternrom"}, "did you mean 'iternorm'"),
        (8, 32, {"axis": "chanel"}, "did you mean 'channel'"),
        (8, 32, {"transform": "iternorm", "iterations": 0}, "at least 1 iteration"),
        (8, 32, {"permutation": torch.zeros(32, dtype=torch.int64)}, "exactly once"),
        (8, 32, {"permutation": torch.arange(31)}, "exactly once"),
    ],
)
def test_settings_that_cannot_be_whitened_are_refused_with_the_constraint(
    n: int, d: int, options: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        whiten(embeddings(n, d), **options)


def test_only_floating_point_matrices_are_taken() -> None:
    for x in (torch.ones(2, 3, 4), torch.ones(4, 8, dtype=torch.int64), torch.ones(8)):
        with pytest.raises(UserError, match=r"embeddings \[N, D\]"):
            whiten(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transform", FULL)
def test_a_singular_covariance_is_refused(transform: Transform, dtype: torch.dtype) -> None:
    x = embeddings(64, 512).to(dtype)
    x[5] = x[3]
    with pytest.raises(UserError, match="numerically singular"):
        whiten(x, transform)


@pytest.mark.parametrize("transform", [*FULL, "iternorm"])
@pytest.mark.parametrize("value", [0.0, 3.0, math.nan, math.inf])
def test_constant_or_not_finite_embeddings_are_refused(transform: Transform, value: float) -> None:
    with pytest.raises(UserError, match=r"constant|not finite"):
        whiten(torch.full((8, 40), value), transform)


def test_shrinkage_makes_constant_embeddings_finite() -> None:
    x = torch.full((8, 40), 3.0, requires_grad=True)
    y = whiten(x, eps=1e-4)
    y.sum().backward()
    assert x.grad is not None
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_the_hardest_admissible_size_is_still_whitened_in_float32() -> None:
    """127 images over 128 channels, condition number about 1e5: the limit that CW-RGP's users meet."""
    y = whiten(embeddings(127, 256, seed=2).float(), groups=2)
    assert y.isfinite().all()
    torch.testing.assert_close(y[:, :128] @ y[:, :128].T / 127, torch.eye(127), atol=0.05, rtol=0)
