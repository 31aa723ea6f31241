"""Losses, gradients and states equal the values that the methods' official implementations give, in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.losses.whitening import whiten
from pretrain.methods.intl import trace_loss
from tests.golden_cases import EVALUATORS, Case, details, evaluate, inp

DATA = Path(__file__).parents[1] / "data"
CASES: list[Case] = [
    case for name in ("golden", "golden_more") for case in json.loads((DATA / f"{name}.json").read_text())["cases"]
]
LOOSE = {"all4one": 1e-6}
"""The official code computes all4one's position code in float32."""
every = pytest.mark.parametrize("case", CASES, ids=[f"{place}-{case['case']}" for place, case in enumerate(CASES)])


def is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"norm", "first"}


def assert_equal(actual: Any, expected: Any, relative: float, name: str) -> None:
    """`expected` is a number, a list, or a tensor's norm and first four values; a norm of 0 is exact."""
    if is_tensor(expected):
        assert float(actual.detach().norm()) == pytest.approx(expected["norm"], rel=relative), name
        scale = max(map(abs, expected["first"]))
        first = actual.detach().flatten()[:4].tolist()
        assert first == pytest.approx(expected["first"], rel=relative, abs=relative * scale), name
    else:
        values = torch.as_tensor(actual, dtype=torch.float64).detach()
        torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=relative, atol=0, msg=name)


@every
def test_losses_and_gradients_equal_the_official_ones(case: Case) -> None:
    loss, gradients = evaluate(case)
    relative = LOOSE.get(case["case"], 1e-7)
    if "loss" in case:
        assert loss is not None
        assert loss.dtype == torch.float64
        assert float(loss) == pytest.approx(case["loss"], rel=relative)
    recorded = [name for name in case if name in gradients]
    for name in recorded:
        assert_equal(gradients[name], case[name], relative, name)
    assert recorded or "loss" not in case or case["case"] == "cw_pca_abs"


@every
def test_states_terms_and_outputs_equal_the_official_ones(case: Case) -> None:
    seen = details(case)
    inputs = {"case", "source", "call", "loss", "cov_err"} | set(evaluate(case)[1])
    for name, value in case.items():
        if name not in inputs and (is_tensor(value) or name in seen):
            assert_equal(seen[name], value, LOOSE.get(case["case"], 1e-7), name)


def test_every_evaluator_has_a_case() -> None:
    kinds = {case["case"] for case in CASES}
    assert {kind for kind in EVALUATORS if kind != "bw"} <= kinds
    assert {"bw_zca", "bw_pca", "bw_cholesky"} <= kinds


@every
def test_cases_of_other_shapes_and_seeds_can_be_evaluated(case: Case) -> None:
    """Larger inputs, another seed: the loss is another one, and finite."""
    other = {**case, "seed": case["seed"] + 0.37}
    if "n" in case:
        other["n"] = case["n"] + (case.get("window") or 4)
        other["d"] = case["d"] + 16
    if case["case"] == "all4one":
        other["queue"] = case["queue"] + 5
    loss, gradients = evaluate(other)
    if loss is not None:
        assert loss.isfinite()
        assert float(loss) != case["loss"]
        assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_gradients_are_known_by_name_and_by_view() -> None:
    _, gradients = evaluate(CASES[0])
    assert gradients[1] is gradients["grad1"]
    with pytest.raises(KeyError):
        gradients["grad7"]


@pytest.mark.parametrize("transform", ["cholesky", "zca", "pca"])
def test_batch_whitening_gives_the_identity_as_covariance(transform: Any) -> None:
    (case,) = [case for case in CASES if case["case"] == f"bw_{transform}"]
    whitened = whiten(inp(case["n"], case["d"], 0, case["seed"]), transform, axis="batch")
    assert float((whitened.T.cov() - torch.eye(case["d"])).abs().max()) < 1e-12


@pytest.mark.parametrize("case", [case for case in CASES if case["case"] == "intl"], ids=lambda case: str(case["n"]))
def test_intl_s_own_trade_off_is_the_papers(case: Case) -> None:
    assert float(evaluate({**case, "trade_off": None})[0]) == pytest.approx(case["loss"], rel=1e-7)  # type: ignore[arg-type]


def test_iternorm_equals_the_hand_derived_values() -> None:
    """sin(1..24) as [4, 6], T = 4: first row and trace loss, derived from the definition in float64."""
    h = torch.arange(1, 25, dtype=torch.float64).sin().view(4, 6)
    t = whiten(h, "iternorm")
    row = [1.0654085348, 0.6326709301, -0.3459058791, -0.9706228873, -0.6671181583, 0.2855674598]
    assert t[0].tolist() == pytest.approx(row, abs=1e-9)
    assert float(trace_loss(t, "channel")) == pytest.approx(1.2147624841, abs=1e-9)
