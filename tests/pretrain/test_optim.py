"""Optimizers against hand-made or independent steps; learning rates at points worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.networks import build_backbone
from pretrain.optim import LARS, LearningRate, base_rate, build_optimizer
from pretrain.recipe import Optimizer, Schedule
from whitebench.errors import UserError


def rates(batch: int = 256, steps_per_epoch: int = 10, lr: float = 1.0, **schedule: Any) -> LearningRate:
    return LearningRate(Schedule(**schedule), Optimizer(lr=lr), batch, steps_per_epoch)


# --- parameter groups -------------------------------------------------------------------------------------------------


def test_norms_and_biases_are_told_by_dimension_not_by_name() -> None:
    backbone = build_backbone("resnet18")
    optimizer = build_optimizer(backbone, Optimizer(weight_decay=1e-4, decay_1d=False), 256)
    decayed, exempt = optimizer.param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (1e-4, 0.0)
    assert {p.ndim for p in decayed["params"]} == {4}
    assert {p.ndim for p in exempt["params"]} == {1}
    downsampling_norm = backbone.get_submodule("layer2.0.downsample.1").weight
    assert any(p is downsampling_norm for p in exempt["params"])
    assert len(decayed["params"]) + len(exempt["params"]) == len(list(backbone.parameters()))


def test_everything_decays_where_the_paper_says_so() -> None:
    optimizer = build_optimizer(nn.Linear(3, 2), Optimizer(weight_decay=1e-4, decay_1d=True), 256)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 1e-4]


def test_only_trainable_parameters_are_optimized() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False))
    groups = build_optimizer(network, Optimizer(), 256).param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in network[0].parameters()}
    with pytest.raises(UserError, match="nothing to optimize"):
        build_optimizer(network[1], Optimizer(), 256)


def test_parts_of_constant_rate_have_marked_groups_of_their_own() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    groups = build_optimizer(network, Optimizer(), 256, constant=[network[1]]).param_groups
    held = {id(p) for group in groups if group["constant"] for p in group["params"]}
    assert held == {id(p) for p in network[1].parameters()}
    assert sum(len(group["params"]) for group in groups) == 4


def test_biases_and_norms_have_a_rate_of_their_own_where_one_is_given() -> None:
    groups = build_optimizer(nn.Linear(3, 2), Optimizer(name="lars", lr=0.2, lr_1d=0.0048), 2048).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.2 * 8, 0.0048 * 8])
    assert [group["share"] for group in groups] == pytest.approx([1, 0.024])


@pytest.mark.parametrize(("name", "scaled"), [("lars", False), ("larc", True)])
def test_larc_scales_biases_too(name: Any, scaled: bool) -> None:
    optimizer = build_optimizer(nn.Linear(3, 2), Optimizer(name=name), 256)
    assert all(group["adapt_1d"] is scaled for group in optimizer.param_groups)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("lars", LARS)])
def test_the_named_optimizer_is_built_at_its_base_rate(name: Any, kind: type) -> None:
    optimizer = build_optimizer(nn.Linear(3, 2), Optimizer(name=name, lr=0.3, momentum=0.8), 512)
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.6)
        assert group.get("momentum", group.get("betas", (None,))[0]) == 0.8


def test_the_base_rate_scales_with_the_batch_unless_told_not_to() -> None:
    assert base_rate(Optimizer(lr=0.05), 512) == pytest.approx(0.1)
    assert base_rate(Optimizer(lr=3e-3, lr_batch=None), 512) == 3e-3


# --- LARS -------------------------------------------------------------------------------------------------------------


def test_lars_equals_an_independent_implementation() -> None:
    """On weights, at weight decay so small that the two ways to put it into the ratio agree."""
    reference = pytest.importorskip("lightly.utils.lars").LARS
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-9}
    pairs = [(ours, LARS([ours], **settings)), (theirs, reference([theirs], **settings))]
    for step in range(5):
        for weight, optimizer in pairs:
            optimizer.zero_grad()
            (weight - step).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_lars_takes_a_hand_computed_step() -> None:
    """|w| = 5, update = grad + 0.5 w = (4.5, 6), |update| = 7.5: the step is lr * trust * 5 / 7.5 * update."""
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LARS([weight, bias], lr=2.0, momentum=0.0, weight_decay=0.5, trust=0.01)
    weight.grad, bias.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([3.0, 4.0])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([[3.0 - 0.06, 4.0 - 0.08]]))
    torch.testing.assert_close(bias.data, torch.tensor([3.0 - 9.0, 4.0 - 12.0]))


def test_lars_can_adapt_biases_too_as_linear_probes_want_it() -> None:
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LARS([weight, bias], lr=2.0, momentum=0.9, adapt_1d=True)
    for parameter in (weight, bias):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(weight.data[0], bias.data)


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_lars_does_not_adapt_where_a_norm_is_zero(zero: str) -> None:
    weight = nn.Parameter(torch.zeros(2, 2) if zero == "weight" else torch.ones(2, 2))
    weight.grad = torch.ones(2, 2) if zero == "weight" else torch.zeros(2, 2)
    before = weight.detach().clone()
    LARS([weight], lr=0.1, momentum=0.9).step()
    torch.testing.assert_close(weight.data, before - 0.1 * weight.grad)


def test_lars_goes_on_from_its_saved_state() -> None:
    def train(weight: nn.Parameter, optimizer: LARS, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (weight - 3).square().sum().backward()
            optimizer.step()

    straight = nn.Parameter(torch.ones(3, 3))
    train(straight, LARS([straight], lr=0.5), 6)
    first = nn.Parameter(torch.ones(3, 3))
    stopped = LARS([first], lr=0.5)
    train(first, stopped, 3)
    second = nn.Parameter(first.detach().clone())
    resumed = LARS([second], lr=0.5)
    resumed.load_state_dict(stopped.state_dict())
    train(second, resumed, 3)
    assert second.equal(straight)


# --- learning rates ---------------------------------------------------------------------------------------------------


def test_cosine_is_updated_every_step_and_ends_at_its_share_of_the_base_rate() -> None:
    """INTL's recipe: two epochs of warm-up, then a cosine to 0.001 of the base, reached at the very last step."""
    rate = rates(lr=0.5, epochs=10, warmup_epochs=2, final_lr=0.001)
    assert rate(0) == pytest.approx(0.5 / 20)
    assert rate(9) == pytest.approx(0.25)
    assert rate(19) == pytest.approx(0.5)
    assert rate(59) == pytest.approx(0.5 * (0.5 + 0.5 * 0.001))  # halfway through the 80 steps of the cosine
    assert rate(39) == pytest.approx(0.5 * (q := (1 + math.sqrt(0.5)) / 2) + 0.0005 * (1 - q))
    assert rate(99) == pytest.approx(0.0005)


def test_cosine_by_epoch_is_constant_within_an_epoch() -> None:
    """CW-RGP's ImageNet recipe: warm-up by iterations, a cosine that counts epochs from the start."""
    rate = rates(batch=512, lr=0.05, epochs=4, warmup_iterations=5, kind="cosine-by-epoch")
    assert [rate(step) for step in range(5)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rate(5) == rate(9) == pytest.approx(0.1)
    assert rate(10) == rate(19) == pytest.approx(0.05 * (1 + math.sqrt(0.5)))
    assert rate(20) == rate(29) == pytest.approx(0.05)
    assert rate(30) == rate(39) == pytest.approx(0.05 * (1 - math.sqrt(0.5)))


def test_step_schedule_drops_at_epochs_counted_from_either_end() -> None:
    """CW-RGP's small sets: x 0.2 at 50 and 25 epochs before the end of 1000."""
    rate = rates(lr=3e-3, epochs=1000, warmup_iterations=500, kind="step", steps=(-50, -25), gamma=0.2)
    assert rate(0) == pytest.approx(3e-3 / 500)
    assert rate(499) == rate(9499) == pytest.approx(3e-3)
    assert rate(9500) == rate(9749) == pytest.approx(6e-4)
    assert rate(9750) == rate(9999) == pytest.approx(1.2e-4)
    assert rates(epochs=10, kind="step", steps=(3,), gamma=0.1)(30) == pytest.approx(0.1)


def test_constant_stays_after_warm_up() -> None:
    rate = rates(epochs=3, warmup_epochs=0.5, kind="constant")
    assert [rate(step) for step in (0, 4, 5, 29)] == pytest.approx([0.2, 1, 1, 1])


@pytest.mark.parametrize("kind", ["cosine", "cosine-by-epoch", "step", "constant"])
def test_rates_are_pure_functions_of_the_step(kind: Any) -> None:
    rate = rates(epochs=5, warmup_epochs=1, kind=kind, steps=(2,))
    forwards = [rate(step) for step in range(50)]
    assert [rate(step) for step in reversed(range(50))] == forwards[::-1]
    assert all(0 <= value <= 1 for value in forwards)


def test_a_run_that_is_all_warm_up_has_a_rate_at_every_step() -> None:
    rate = rates(epochs=1, warmup_epochs=1)
    assert [rate(step) for step in (0, 9)] == pytest.approx([0.1, 1.0])
