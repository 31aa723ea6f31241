"""How embeddings are compared."""

import pytest
import torch
from torch.nn import functional as F

from pretrain.losses import contrast
from pretrain.losses.contrast import mean_log_sum_exp
from pretrain.losses.similarity import cosine_distance, mean_pair_distance, spread, unit_rows
from tests.support.method_cases import embeddings


def test_cosine_distance_equals_the_squared_distance_of_unit_rows() -> None:
    a, b = embeddings(7, 5)
    expected = (F.normalize(a) - F.normalize(b)).square().sum(dim=1).mean()
    assert float(cosine_distance(a, b)) == pytest.approx(float(expected), rel=1e-12)


def test_a_row_of_zeros_counts_as_orthogonal_and_has_a_finite_gradient() -> None:
    a = torch.zeros(2, 3, requires_grad=True)
    distance = cosine_distance(a, torch.zeros(2, 3))
    distance.backward()
    assert distance.item() == 2
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_gradients_of_unit_rows_and_of_their_distances_equal_finite_differences() -> None:
    views = [view.requires_grad_() for view in embeddings(5, 4, views=3)]
    assert torch.autograd.gradcheck(unit_rows, (views[0],))
    assert torch.autograd.gradcheck(lambda *rows: mean_pair_distance(rows), tuple(views))
    assert torch.autograd.gradcheck(lambda rows: mean_pair_distance([rows, views[1].detach()]), (views[0],))


@pytest.mark.parametrize(("rows", "excluded"), [(7, (0,)), (8, (-4, 0, 4)), (6, ())])
def test_the_log_partition_equals_its_formula_in_blocks_of_rows(
    rows: int, excluded: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrast, "BLOCK", 3 * rows)
    x = embeddings(rows, 5)[0].requires_grad_()
    scores = x @ x.mT / 0.3
    for offset in excluded:
        scores = scores + torch.diag(torch.full((rows - abs(offset),), -torch.inf, dtype=x.dtype), offset)
    expected = scores.logsumexp(dim=1).mean()
    value = mean_log_sum_exp(x, 0.3, excluded)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (value, expected)))


def test_spread_is_one_for_isotropic_and_zero_for_collapsed_embeddings() -> None:
    isotropic = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert float(spread(isotropic)) == pytest.approx(1, abs=0.01)
    assert float(spread(torch.ones(10, 64) * torch.arange(1, 11)[:, None])) == pytest.approx(0, abs=1e-3)
    unit = F.normalize(embeddings(9, 5)[0])
    assert float(spread(unit * 3)) == pytest.approx(float(unit.var(dim=0, unbiased=False).sum().sqrt()))
