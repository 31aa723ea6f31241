"""Symmetric products by blocks are products, and so are their gradients."""

import pytest
import torch

from pretrain.losses.covariance import squared_covariances
from pretrain.losses.gram import LEAST_ROWS, accumulated_product, gram, gram_of, symmetric_product


@pytest.mark.parametrize("rows", [1, 7, LEAST_ROWS - 1, LEAST_ROWS, LEAST_ROWS + 3])
@pytest.mark.parametrize("columns", [1, 40])
def test_a_symmetric_product_is_the_product_with_the_transpose(rows: int, columns: int) -> None:
    a = torch.randn(2, rows, columns, dtype=torch.float64)
    for matrices in (a, a.mT.contiguous().mT):
        torch.testing.assert_close(symmetric_product(matrices), a @ a.mT)


@pytest.mark.parametrize("rows", [7, LEAST_ROWS + 3])
def test_an_accumulated_product_is_the_weighted_sum(rows: int) -> None:
    c, a = torch.randn(rows, rows, dtype=torch.float64), torch.randn(rows, 9, dtype=torch.float64)
    c = c + c.mT
    before = c.clone()
    torch.testing.assert_close(accumulated_product(c, a, 0.9, 0.2), 0.9 * c + 0.2 * a @ a.mT)
    assert c.equal(before)


def test_the_gradient_of_a_gram_matrix_is_autograd_s() -> None:
    a = torch.randn(LEAST_ROWS + 1, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(a), len(a), dtype=torch.float64)  # not symmetric
    for value in (gram_of(a, 0.3), gram(a[None], 0.3, torch.float64)[0]):
        (actual,) = torch.autograd.grad((value * weight).sum(), a)
        (expected,) = torch.autograd.grad((0.3 * a @ a.mT * weight).sum(), a)
        torch.testing.assert_close(actual, expected)


def test_a_gram_matrix_can_be_wider_than_its_input() -> None:
    a = torch.randn(1, 5, 9, requires_grad=True)
    product = gram(a, 1.0, torch.float64)
    assert product.dtype == torch.float64
    assert torch.autograd.grad(product.sum(), a)[0].dtype == torch.float32


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (9, 1), (1, 9)])
def test_squared_covariances_are_those_of_the_covariance_matrix(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    x = x - x.mean(dim=1, keepdim=True)
    covariance = x @ x.T / max(1, shape[1] - 1)
    expected = (covariance - torch.diag(covariance.diagonal())).square().sum()
    torch.testing.assert_close(squared_covariances(x), expected, rtol=1e-9, atol=1e-12)
