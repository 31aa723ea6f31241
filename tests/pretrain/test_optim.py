"""Optimizers against hand-made or independent steps; learning rates at points worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.networks import build_backbone
from pretrain.optim import (
    LARC,
    LARS,
    LearningRate,
    SoloLARS,
    base_rate,
    build_optimizer,
    clip_gradients,
    weight_decay_at,
)
from pretrain.recipe import load
from pretrain.recipe_sections import Optimizer, Schedule
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


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("lars", LARS),
        ("larc", LARC),
    ],
)
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


def test_larc_takes_a_hand_computed_step() -> None:
    """|w| = 5, |g| = 5: the step is lr * trust * 5 / (5 + 0.5 * 5) * (g + 0.5 w), for weights and biases alike."""
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LARC([weight, bias], lr=2.0, momentum=0.0, weight_decay=0.5, trust=0.01)
    weight.grad, bias.grad = torch.tensor([[4.0, 3.0]]), torch.tensor([4.0, 3.0])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([[3.0 - 0.04 / 3 * 5.5, 4.0 - 0.04 / 3 * 5.0]]))
    torch.testing.assert_close(bias.data, weight.data[0])


@pytest.mark.parametrize("kind", [LARS, LARC])
@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_nothing_is_adapted_where_a_norm_is_zero(kind: type[LARS], zero: str) -> None:
    weight = nn.Parameter(torch.zeros(2, 2) if zero == "weight" else torch.ones(2, 2))
    weight.grad = torch.ones(2, 2) if zero == "weight" else torch.zeros(2, 2)
    before = weight.detach().clone()
    kind([weight], lr=0.1, momentum=0.9).step()
    torch.testing.assert_close(weight.data, before - 0.1 * weight.grad)


def test_larc_does_not_decay_what_has_no_gradient_but_lars_does() -> None:
    for kind, decayed in ((LARS, 1 - 0.1 * 0.001), (LARC, 1.0)):
        weight = nn.Parameter(torch.ones(2, 2))
        weight.grad = torch.zeros(2, 2)
        kind([weight], lr=0.1, momentum=0.9, weight_decay=0.5).step()
        torch.testing.assert_close(weight.data, torch.full((2, 2), decayed))


# --- clipping and weight decay ----------------------------------------------------------------------------------------


def test_gradients_are_clipped_each_by_its_own_norm_or_all_by_theirs_together() -> None:
    large, small = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    for norm, expected in (("tensor", ([1.5, 2.0], [0.5])), ("global", ([3 * 2.5 / 26**0.5, 4 * 2.5 / 26**0.5], None))):
        large.grad, small.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.5 if norm == "tensor" else 1.0])
        clip_gradients([large, small, nn.Parameter(torch.zeros(3))], clip=2.5, norm=norm)
        assert large.grad.tolist() == pytest.approx(expected[0], rel=1e-5)
        assert small.grad.tolist() == pytest.approx(expected[1] or [2.5 / 26**0.5], rel=1e-5)


def test_weight_decay_follows_a_cosine_where_it_has_an_end() -> None:
    dino = Optimizer(weight_decay=0.04, final_weight_decay=0.4)
    assert [weight_decay_at(dino, share) for share in (0, 0.5, 1)] == pytest.approx([0.04, 0.22, 0.4])
    assert weight_decay_at(Optimizer(weight_decay=1e-4), 0.7) == 1e-4


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


def test_a_warm_up_that_ends_within_an_epoch_is_followed_by_the_base_rate_to_its_end() -> None:
    """As CW-RGP's ImageNet code, which sets the rate of an epoch at its start and lets warm-up overwrite it."""
    rate = rates(epochs=4, warmup_iterations=13, kind="cosine-by-epoch")
    assert rate(12) == rate(13) == rate(19) == 1.0
    assert rate(20) == pytest.approx(0.5)
    ends_with_it = rates(epochs=4, warmup_iterations=10, kind="cosine-by-epoch")
    assert ends_with_it(9) == 1.0
    assert ends_with_it(10) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_a_milestone_within_warm_up_is_overwritten_as_by_multi_step_lr() -> None:
    rate = rates(epochs=4, warmup_iterations=13, kind="step", steps=(1, 3), gamma=0.1)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.1)
    for step in range(40):
        if step < 13:
            optimizer.param_groups[0]["lr"] = (step + 1) / 13
        assert rate(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % 10 == 0:
            scheduler.step()


COUNTED = {
    "from-one": ([0.25, 0.5, 0.75, 1.0], math.cos(math.pi / 16), 0.0),
    "from-zero": ([0.0, 0.25, 0.5, 0.75], 1.0, (1 - math.cos(math.pi / 16)) / 2),
    "inclusive": ([0.0, 1 / 3, 2 / 3, 1.0], 1.0, (1 - math.cos(math.pi / 16)) / 2),
}
"""Counting -> rates of 4 steps of warm-up, of the next step (as its cosine), and of the last of 16 after it."""


@pytest.mark.parametrize("counting", COUNTED)
def test_steps_are_counted_as_the_official_codes_count_them(counting: Any) -> None:
    warm, cosine, last = COUNTED[counting]
    rate = rates(epochs=2, steps_per_epoch=10, warmup_iterations=4, counting=counting)
    assert [rate(step) for step in range(4)] == pytest.approx(warm)
    assert rate(4) == pytest.approx((1 + cosine) / 2)
    assert rate(19) == pytest.approx(last)


def test_warm_up_can_start_above_zero() -> None:
    """SwAV's 0.3 of 4.8, reached at the very first step."""
    rate = rates(lr=4.8, epochs=2, warmup_iterations=10, warmup_from=1 / 16, counting="inclusive")
    assert [rate(0), rate(9)] == pytest.approx([0.3, 4.8])


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


@pytest.mark.parametrize("clipped", [True, False])
def test_solo_learns_lars_scales_weights_by_the_ratio_of_norms(clipped: bool) -> None:
    weight, bias = nn.Parameter(torch.full((2, 2), 3.0)), nn.Parameter(torch.full((2,), 3.0))
    optimizer = SoloLARS([{"params": [weight], "weight_decay": 0.1}, {"params": [bias]}], 0.5, 0.9, clipped)
    expected, velocity = weight.detach().clone(), torch.zeros(2, 2)
    for step in range(3):
        gradient = torch.tensor([[1.0, 2.0], [2.0, 4.0]]) * (step + 1) * (1e-4 if step == 1 else 1)
        weight.grad, bias.grad = gradient, torch.ones(2)
        ratio = 0.02 * float(expected.norm()) / (float(gradient.norm()) + 0.1 * float(expected.norm()) + 1e-8)
        ratio = min(ratio / 0.5, 1.0) if clipped else ratio
        velocity = 0.9 * velocity + (gradient + 0.1 * expected) * ratio
        expected = expected - 0.5 * velocity
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)
    torch.testing.assert_close(bias.detach(), torch.full((2,), 3 - 0.5 * (1 + 1.9 + 2.71)))


@pytest.mark.parametrize("name", ["sgd", "lars", "larc", "lars-clipped", "lars-unclipped"])
def test_nesterov_s_momentum_is_torch_s_on_the_scaled_updates(name: Any) -> None:
    """The official wrappers scale the gradients, with decay, and let torch's SGD do the rest."""
    layer, twin = (nn.Linear(4, 3).double() for _ in range(2))
    twin.load_state_dict(layer.state_dict())
    settings = {"lr": 0.1, "lr_batch": None, "weight_decay": 0.01, "decay_1d": False, "nesterov": True}
    ours = build_optimizer(layer, Optimizer(name=name, **settings), 256)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    scaling = build_optimizer(twin, Optimizer(name=name, **{**settings, "nesterov": False}), 256)
    for seed in range(4):
        x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for network in (layer, twin):
            network.zero_grad()
            network(x).square().sum().backward()
        ours.step()
        with torch.no_grad():
            for group in scaling.param_groups:
                for parameter in group["params"]:
                    assert parameter.grad is not None
                    if isinstance(scaling, LARS):
                        parameter.grad = scaling._scaled(parameter, parameter.grad, group)
                    else:
                        parameter.grad.add_(parameter, alpha=group["weight_decay"])
        plain.step()
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_trust_of_layer_wise_scaling_can_be_set() -> None:
    layer = nn.Linear(4, 3)
    for name, default in (("lars", 0.001), ("larc", 0.001), ("lars-clipped", 0.02), ("lars-unclipped", 0.02)):
        for trust, expected in ((None, default), (0.005, 0.005)):
            optimizer = build_optimizer(layer, Optimizer(name=name, trust=trust), 256)  # type: ignore[arg-type]
            assert {group["trust"] for group in optimizer.param_groups} == {expected}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adam", "nesterov": True}, "nesterov: adam has no such form"),
        ({"name": "sgd", "nesterov": True, "momentum": 0.0}, "nesterov: needs momentum"),
        ({"name": "sgd", "trust": 0.01}, "trust: sgd does not scale"),
    ],
)
def test_settings_that_an_optimizer_does_not_have_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("sample/simclr", {"optimizer": settings})
