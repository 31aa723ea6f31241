"""CW-RGP's loss and method; its exact values are in `test_golden`."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.losses.similarity import cosine_distance
from pretrain.losses.whitening import whiten
from pretrain.methods.cwrgp import covariance_penalty, cwrgp_loss
from tests.support.method_cases import build, embeddings
from tests.support.tiny_encoder import batch_of
from whitebench.errors import UserError


def test_windows_are_dealt_at_random_and_alike_for_all_views() -> None:
    """Every draw equals the mean over the two halves of SOME split of the images that all views share."""
    views = embeddings(6, 20)
    splits = {}
    for half in itertools.combinations(range(1, 6), 2):
        first = [0, *half]
        rest = [i for i in range(6) if i not in first]
        parts = [cwrgp_loss([view[part] for view in views], 2, random_groups=False) for part in (first, rest)]
        splits[tuple(first)] = float(torch.stack(parts).mean())
    generator = torch.Generator().manual_seed(0)
    hit = set()
    for _ in range(60):
        loss = float(cwrgp_loss(views, 2, random_groups=False, window=3, generator=generator))
        hit.add(min(splits, key=lambda split: abs(splits[split] - loss)))
        assert min(abs(value - loss) for value in splits.values()) < 1e-10
    assert len(hit) >= 8


def test_each_view_window_and_repeat_draws_its_own_groups() -> None:
    z = embeddings(6, 40)[0]
    assert float(cwrgp_loss([z, z], 4, random_groups=False)) == pytest.approx(0, abs=1e-12)
    assert float(cwrgp_loss([z, z], 4)) > 0.01
    assert len({round(float(cwrgp_loss([z, z], 4, window=3)), 9) for _ in range(8)}) == 8


def test_fixed_groups_equal_whitening_view_by_view() -> None:
    views = embeddings(6, 40, views=3)
    orders = [torch.randperm(40) for _ in views]
    whitened = [whiten(view, groups=4, permutation=order) for view, order in zip(views, orders)]
    pairs = [cosine_distance(a, b) for a, b in itertools.combinations(whitened, 2)]
    torch.testing.assert_close(cwrgp_loss(views, 4, permutations=orders), torch.stack(pairs).mean())
    identity = [torch.arange(40)] * 3
    torch.testing.assert_close(cwrgp_loss(views, 4, permutations=identity), cwrgp_loss(views, 4, random_groups=False))


@pytest.mark.parametrize("orders", [[torch.arange(40)], [torch.arange(39)] * 2])
def test_permutations_that_do_not_fit_are_refused(orders: list[Tensor]) -> None:
    with pytest.raises(UserError, match="2 orders of 40 channels"):
        cwrgp_loss(embeddings(6, 40), 4, permutations=orders)


def test_repeats_average_independent_draws() -> None:
    views = embeddings(8, 40)
    once = cwrgp_loss(views, 2, random_groups=False)
    torch.testing.assert_close(cwrgp_loss(views, 2, random_groups=False, repeats=3), once)
    repeated = cwrgp_loss(views, 2, window=4, repeats=2000, generator=torch.Generator().manual_seed(0))
    single = [cwrgp_loss(views, 2, window=4, generator=torch.Generator().manual_seed(i)) for i in range(1000)]
    assert float(repeated) == pytest.approx(float(torch.stack(single).mean()), rel=0.01)


def test_without_normalization_the_distance_is_the_mean_squared_difference() -> None:
    a, b = embeddings(6, 40)
    expected = F.mse_loss(whiten(a, groups=2), whiten(b, groups=2))
    torch.testing.assert_close(cwrgp_loss([a, b], 2, random_groups=False, normalize=False), expected)


def test_gradients_reach_both_views_and_equal_finite_differences() -> None:
    views = [view.requires_grad_() for view in embeddings(6, 20)]

    def function(*views: Tensor) -> Tensor:
        return cwrgp_loss(views, 2, window=3, repeats=2, generator=torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(function, tuple(views), atol=1e-6)


def test_covariance_penalty_is_the_squared_off_diagonal_of_the_images_covariance() -> None:
    views = embeddings(6, 20)
    expected = 0.0
    for view in views:
        covariance = view.cov()
        expected += float((covariance - covariance.diag().diag()).square().sum() / 6)
    assert float(covariance_penalty(views)) == pytest.approx(expected, rel=1e-10)


def test_covariance_penalty_is_switched_off_after_its_share_of_the_training() -> None:
    options = {"groups": 2, "window": 8, "random_groups": False, "covariance_weight": 0.5, "covariance_until": 0.5}
    method, batch = build("cwrgp", options), batch_of(8)
    seen = {}
    for progress in (0.0, 0.5, 0.501, 1.0):  # the official code switches it off at the end of a step
        method.progress = progress
        step = method(batch)
        seen[progress] = step.loss.item()
        assert ("covariance_penalty" in step.scalars) is (progress <= 0.5)
    assert seen[0.0] == seen[0.5] > seen[0.501] == seen[1.0]


def test_shrinkage_admits_windows_beyond_the_constraint() -> None:
    method = build("cwrgp", {"groups": 4, "window": 16, "eps": 0.01})
    method.check(16, 2)
    assert method(batch_of(16)).loss.isfinite()


@pytest.mark.parametrize("window", [5, 40])
def test_a_window_that_does_not_divide_the_batch_is_refused_by_every_arm_with_windows(window: int) -> None:
    for transform in ("zca", "pca", "batch_norm"):
        method = build("cwrgp", {"window": window, "transform": transform})
        with pytest.raises(UserError, match=r"cannot be divided into windows .* \(method\.window\)"):
            method.check(16, 2)
        with pytest.raises(UserError, match="cannot be divided into windows"):
            cwrgp_loss(embeddings(16, 48), 2, window=window, transform=transform)
