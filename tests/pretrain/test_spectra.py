"""What the spectral losses are made of, against torch's built-ins, scipy and straightforward forms."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse.csgraph
import scipy.spatial
import scipy.stats
import torch
from torch import Tensor

from pretrain.losses import sliced
from pretrain.losses.similarity import unit_rows
from pretrain.losses.sliced import (
    Grid,
    epps_pulley,
    half_line,
    normal_quantiles,
    random_directions,
    sorted_distance,
    whole_line,
)
from pretrain.losses.spectra import coding_rate, log_det, nuclear_norm, trace_polynomial, von_neumann_entropy
from pretrain.losses.spherical_kmeans import spherical_kmeans
from pretrain.methods.tregs import minimum_spanning_tree, tree_length
from whitebench.errors import UserError

shapes = pytest.mark.parametrize("shape", [(6, 11), (11, 6), (7, 7), (5, 1), (1, 5)], ids=str)
grids = pytest.mark.parametrize("grid", [half_line(), whole_line(), half_line(9, 5.0)], ids=["half", "whole", "far"])


def random(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.requires_grad_()


def same(ours: Tensor, expected: Tensor, x: Tensor) -> None:
    """Values and gradients with respect to x."""
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
    gradients = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@shapes
def test_coding_rate_is_that_of_the_larger_side(shape: tuple[int, int]) -> None:
    x = random(*shape)
    eye = torch.eye(shape[1], dtype=torch.float64)
    same(coding_rate(x, 0.7), torch.linalg.slogdet(eye + 0.7 * x.T @ x).logabsdet / 2, x)


@shapes
def test_nuclear_norm_is_the_sum_of_singular_values(shape: tuple[int, int]) -> None:
    x = random(3, *shape)
    weight = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    same((nuclear_norm(x) * weight).sum(), (torch.linalg.svdvals(x).sum(-1) * weight).sum(), x)


@shapes
def test_entropy_is_that_of_the_eigenvalues(shape: tuple[int, int]) -> None:
    x = random(*shape)
    values = torch.linalg.svdvals(unit_rows(x)).square() / len(x)
    same(von_neumann_entropy(unit_rows(x)), torch.special.entr(values).sum(), x)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6])
def test_a_polynomial_of_traces_of_powers(order: int) -> None:
    m = random(5, 5)
    expected = torch.stack([torch.linalg.matrix_power(m, k).trace() for k in range(1, order + 1)])
    weights = torch.arange(1.0, order + 1, dtype=torch.float64)
    same(trace_polynomial(m, weights.tolist()), (expected * weights).sum(), m)


def test_log_det_of_a_matrix_that_is_not_positive_is_nan() -> None:
    assert log_det(torch.diag(torch.tensor([1.0, -1.0]))).isnan()


@pytest.mark.parametrize("function", [nuclear_norm, von_neumann_entropy])
def test_spectra_have_finite_gradients_at_exact_collapse(function: object) -> None:
    x = unit_rows(torch.ones(6, 4)).requires_grad_()
    (gradient,) = torch.autograd.grad(function(x), x)  # type: ignore[operator]
    assert gradient.isfinite().all()
    with pytest.raises(UserError, match="not finite"):
        function(torch.full((3, 3), float("nan")))  # type: ignore[operator]


# --- slices -----------------------------------------------------------------------------------------------------------


def plain_statistic(x: Tensor, directions: Tensor, grid: Grid) -> Tensor:
    """Everything at once, [n, K, points]."""
    t = grid.start + grid.step * torch.arange(grid.points, dtype=x.dtype)
    angle = (x @ directions)[..., None] * t
    phi = (-t.square() / 2).exp()
    distance = (angle.cos().mean(0) - phi).square() + angle.sin().mean(0).square()
    factor = 2.0 if grid.start == 0 else 1.0
    return len(x) * factor * torch.trapezoid(distance * phi, t).mean()


@grids
@pytest.mark.parametrize("block", [8, 2**16])
def test_characteristic_functions_equal_the_straightforward_form(
    grid: Grid, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sliced.BLOCK, "cpu", block)
    x, directions = random(9, 5), random_directions(5, 30, torch.Generator().manual_seed(1)).double()
    same(epps_pulley(x, directions, grid), plain_statistic(x, directions, grid), x)


@pytest.mark.parametrize("n", [32, 512])
def test_a_gaussian_sample_gives_the_same_statistic_whatever_its_size(n: int) -> None:
    directions = random_directions(16, 200, torch.Generator().manual_seed(1)).double()
    statistics = [float(epps_pulley(random(n, 16, seed=seed), directions, half_line())) for seed in range(40)]
    assert sum(statistics) / len(statistics) == pytest.approx(1.052, abs=0.08)


def test_a_collapse_to_the_origin_gives_a_statistic_that_grows_with_n() -> None:
    for n in (16, 64):
        statistic = epps_pulley(torch.zeros(n, 4), random_directions(4, 10), half_line())
        assert float(statistic) == pytest.approx(0.402 * n, rel=2e-3)


@pytest.mark.parametrize("block", [8, 2**16])
def test_sorted_distance_equals_the_straightforward_form(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sliced.BLOCK, "cpu", block)
    x, directions = random(9, 5), random_directions(5, 30, torch.Generator().manual_seed(1)).double()
    quantiles = torch.from_numpy(scipy.stats.norm.ppf(np.arange(1, 10) / 10))
    expected = ((x @ directions).sort(dim=0).values - quantiles[:, None]).square().mean()
    same(3 * sorted_distance(x, directions), 3 * expected, x)


def test_quantiles_are_those_of_scipy() -> None:
    expected = torch.from_numpy(scipy.stats.norm.ppf(np.arange(1, 65) / 65))
    torch.testing.assert_close(normal_quantiles(64, torch.float64), expected)


def test_directions_have_length_1_and_repeat_with_their_generator() -> None:
    a, b = (random_directions(16, 7, torch.Generator().manual_seed(5)) for _ in range(2))
    assert a.equal(b)
    torch.testing.assert_close(a.norm(dim=0), torch.ones(7))
    assert not a.equal(random_directions(16, 7, torch.Generator().manual_seed(6)))


# --- trees and clusters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 40])
def test_the_tree_is_that_of_scipy(n: int) -> None:
    x = random(n, 3)
    distances = scipy.spatial.distance_matrix(x.detach(), x.detach())
    expected = scipy.sparse.csgraph.minimum_spanning_tree(distances)
    assert float(tree_length(x)) == pytest.approx(float(expected.sum()), rel=1e-12)
    edges = {tuple(sorted(edge)) for edge in minimum_spanning_tree(x.detach()).T.tolist()}
    assert edges == {tuple(sorted(edge)) for edge in zip(*map(np.ndarray.tolist, expected.nonzero()), strict=True)}
    assert torch.autograd.gradcheck(tree_length, x)


def test_the_tree_of_points_that_coincide_has_no_length_and_no_gradient() -> None:
    x = torch.ones(5, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(tree_length(x), x)
    assert not gradient.any()
    assert minimum_spanning_tree(x.detach()).shape == (2, 4)


def test_spherical_k_means_comes_closer_with_every_iteration_and_keeps_empty_clusters() -> None:
    rows = unit_rows(random(60, 4).detach())
    far = -rows.mean(dim=0, keepdim=True) * 1e-6 - rows[:1]  # nobody's nearest: the least similar direction
    start = torch.cat([rows[:4], unit_rows(far)])
    seen = [spherical_kmeans(rows, start, iterations) for iterations in range(6)]
    closeness = [float((rows * c.centroids[c.assignment]).sum(dim=1).mean()) for c in seen]
    assert all(after >= before - 1e-12 for before, after in pairwise(closeness))
    torch.testing.assert_close(seen[-1].centroids.norm(dim=1), torch.ones(5, dtype=torch.float64))
    alone = spherical_kmeans(rows[:1], torch.stack([rows[0], -rows[0]]))
    assert alone.centroids.equal(unit_rows(torch.stack([rows[0], -rows[0]])))
    with pytest.raises(UserError, match="not finite"):
        spherical_kmeans(torch.full((3, 2), float("nan")), rows[:1, :2])
