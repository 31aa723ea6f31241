"""INTL's loss and method; its exact values are in `test_golden`."""

import pytest
import torch

from pretrain.losses.whitening import whiten
from pretrain.methods.intl import intl_ema_loss, intl_loss, trace_floor, trace_loss
from tests.support.method_cases import build, embeddings
from tests.support.tiny_encoder import batch_of


@pytest.mark.parametrize(
    ("n", "iterations", "remaining"), [(64, 4, 0.3287), (64, 7, 0.9832), (128, 5, 0.3597), (256, 4, 0.0952)]
)
def test_trace_floor_is_that_of_an_equal_spectrum(n: int, iterations: int, remaining: float) -> None:
    assert (trace_floor(n, 10**9, iterations) / n) ** 0.5 == pytest.approx(1 - remaining, abs=1e-4)
    assert trace_floor(256, 8192, 4) == pytest.approx(209.6, abs=0.05)


@pytest.mark.parametrize(("n", "d"), [(16, 200), (40, 12)])
def test_no_embedding_has_a_trace_loss_below_the_floor(n: int, d: int) -> None:
    for seed in range(5):
        output = whiten(embeddings(n, d, seed=seed)[0], "iternorm")
        assert float(trace_loss(output, "channel")) >= trace_floor(n, d, 4) - 1e-9


def test_trace_loss_equals_its_definition() -> None:
    z = embeddings(9, 30)[0]
    for axis, dim in (("channel", 1), ("batch", 0)):
        output = whiten(z, "iternorm", axis=axis)  # type: ignore[arg-type]
        expected = (output.var(dim=dim) - 1).square().sum()
        assert float(trace_loss(output, axis)) == pytest.approx(float(expected), rel=1e-12)  # type: ignore[arg-type]


def test_logged_trace_excess_is_zero_at_an_equal_spectrum() -> None:
    basis = torch.linalg.qr(torch.cat([torch.ones(60, 1, dtype=torch.float64), *embeddings(60, 9)], dim=1)).Q
    output = whiten(basis[:, 1:17].T, "iternorm")
    assert float(trace_loss(output, "channel")) == pytest.approx(trace_floor(16, 60, 4), rel=1e-9)


def test_every_view_is_compared_with_the_first() -> None:
    views = embeddings(16, 64, views=4)
    pairs = torch.stack([intl_loss([views[0], other]) for other in views[1:]])
    torch.testing.assert_close(intl_loss(views), pairs.mean())
    single = torch.stack([intl_ema_loss([other], views[0]) for other in views[1:]])
    torch.testing.assert_close(intl_ema_loss(views[1:], views[0]), single.mean())


def test_method_and_loss_agree() -> None:
    method, batch = build("intl", {"iterations": 5, "trade_off": 0.1}), batch_of(16, views=3)
    expected = intl_loss([method.encoder(view).z for view in batch.views], iterations=5, trade_off=0.1)
    torch.testing.assert_close(method(batch).loss, expected)


def test_the_target_moves_towards_the_encoder_before_each_step_and_gets_no_gradient() -> None:
    method, batch = build("intl", {"momentum": 0.9}), batch_of(16)
    target = method.get_submodule("target")
    before = [parameter.clone() for parameter in target.parameters()]
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    method.progress = 0.0
    step = method(batch)
    step.loss.backward()
    for old, new in zip(before, target.parameters()):
        torch.testing.assert_close(new, old + 0.1)
        assert new.grad is None
    online = method.encoder(batch.views[1]).z
    torch.testing.assert_close(step.loss, intl_ema_loss([online], target(batch.views[0]).z))
