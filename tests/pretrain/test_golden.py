"""Losses and transforms equal the values that the methods' official implementations give, in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.losses.whitening import Transform, whiten
from pretrain.methods.cwrgp import cwrgp_loss
from pretrain.methods.intl import intl_ema_loss, intl_loss, trace_loss

SHARED = Path(__file__).parents[2].parent / "shared"
GOLDEN = SHARED / "reference" / "golden.json"
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text())["cases"] if GOLDEN.exists() else []
needs_golden = pytest.mark.skipif(not CASES, reason=f"no golden values at {GOLDEN}")


def golden_input(n: int, d: int, view: int, seed: float) -> Tensor:
    i = torch.arange(n * d, dtype=torch.float64)
    wave = (0.7 * i + seed).sin() + 0.5 * (0.013 * i.square() + seed).cos() + 0.1 * (1.3 * i + 2 * view + seed).sin()
    return wave.view(n, d)


def golden_permutation(d: int, view: int) -> Tensor:
    j = torch.arange(d, dtype=torch.float64)
    x = (12.9898 * j + 78.233 * view).sin() * 43758.5453
    return (x - x.floor()).argsort()


def cases(kind: str) -> list[Any]:
    found = [pytest.param(case, id=f"{case['n']}x{case['d']}") for case in CASES if case["case"] == kind]
    return found or [pytest.param({}, marks=pytest.mark.skip(reason=f"no golden values at {GOLDEN}"))]


def views_of(case: dict[str, Any]) -> list[Tensor]:
    return [golden_input(case["n"], case["d"], v, case["seed"]).requires_grad_() for v in range(case.get("views", 2))]


def assert_equal(tensor: Tensor | None, expected: dict[str, Any], relative: float) -> None:
    assert tensor is not None
    assert float(tensor.norm()) == pytest.approx(expected["norm"], rel=relative)
    assert tensor.flatten()[:4].tolist() == pytest.approx(expected["first"], rel=relative, abs=relative * 1e-2)


@pytest.mark.parametrize("case", cases("cwrgp"))
def test_cwrgp_equals_the_official_values_and_gradients(case: dict[str, Any]) -> None:
    views = views_of(case)
    orders = [golden_permutation(case["d"], v) for v in range(len(views))]
    loss = cwrgp_loss(views, case["groups"], permutations=orders)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-8)
    assert_equal(views[0].grad, case["grad0"], 1e-6)
    whitened = whiten(views[0].detach(), groups=case["groups"], permutation=orders[0])
    assert_equal(whitened, case["whitened0"], 1e-8)


@pytest.mark.parametrize("case", cases("intl"))
@pytest.mark.parametrize("given", [True, False], ids=["trade-off given", "trade-off of the paper"])
def test_intl_equals_the_official_values_and_gradients(case: dict[str, Any], given: bool) -> None:
    views = views_of(case)
    loss = intl_loss(views, iterations=case["iterations"], trade_off=case["trade_off"] if given else None)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-8)
    assert_equal(views[0].grad, case["grad0"], 1e-6)
    whitened = whiten(views[0].detach(), "iternorm", iterations=case["iterations"])
    assert_equal(whitened, case["whitened0"], 1e-8)
    assert float(trace_loss(whitened, "channel")) == pytest.approx(case["trace0"], abs=1e-8)


@pytest.mark.parametrize("case", cases("intl_ema"))
def test_intl_with_a_target_equals_the_official_values_and_gradients(case: dict[str, Any]) -> None:
    target, online = views_of(case)
    loss = intl_ema_loss([online], target, iterations=case["iterations"], trade_off=case["trade_off"])
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-8)
    assert_equal(online.grad, case["grad1"], 1e-6)
    assert target.grad is None


@pytest.mark.parametrize("case", cases("intl_batch_axis"))
def test_intl_on_the_batch_axis_equals_the_official_values_and_gradients(case: dict[str, Any]) -> None:
    views = views_of(case)
    loss = intl_loss(views, iterations=case["iterations"], axis="batch")
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-8)
    assert_equal(views[0].grad, case["grad0"], 1e-6)


@needs_golden
@pytest.mark.parametrize("transform", ["cholesky", "zca", "pca"])
def test_batch_whitening_equals_the_official_values(transform: Transform) -> None:
    (case,) = [case for case in CASES if case["case"] == f"bw_{transform}"]
    whitened = whiten(golden_input(case["n"], case["d"], 0, case["seed"]), transform, axis="batch")
    assert_equal(whitened.abs(), case["whitened_abs"], 1e-8)
    assert float((whitened.T.cov() - torch.eye(case["d"])).abs().max()) < 1e-12


def test_iternorm_equals_the_hand_derived_values() -> None:
    """sin(1..24) as [4, 6], T = 4: first row and trace loss, derived from the definition in float64."""
    h = torch.arange(1, 25, dtype=torch.float64).sin().view(4, 6)
    t = whiten(h, "iternorm")
    row = [1.0654085348, 0.6326709301, -0.3459058791, -0.9706228873, -0.6671181583, 0.2855674598]
    assert t[0].tolist() == pytest.approx(row, abs=1e-9)
    assert float(trace_loss(t, "channel")) == pytest.approx(1.2147624841, abs=1e-9)
