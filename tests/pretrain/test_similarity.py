"""How embeddings are compared."""

import pytest
import torch
from torch.nn import functional as F

from pretrain.losses.similarity import cosine_distance, spread
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


def test_spread_is_one_for_isotropic_and_zero_for_collapsed_embeddings() -> None:
    isotropic = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert float(spread(isotropic)) == pytest.approx(1, abs=0.01)
    assert float(spread(torch.ones(10, 64) * torch.arange(1, 11)[:, None])) == pytest.approx(0, abs=1e-3)
    unit = F.normalize(embeddings(9, 5)[0])
    assert float(spread(unit * 3)) == pytest.approx(float(unit.var(dim=0, unbiased=False).sum().sqrt()))
