"""Whitening as the last layer of a projector or an encoder, for any method."""

from typing import Any, Literal

import pytest
import torch

from pretrain.networks import build_encoder
from pretrain.recipe_sections import Network
from pretrain.whitening_layer import Whitening
from whitebench.errors import UserError

Transform = Literal["zca", "iternorm"]
both = pytest.mark.parametrize("transform", ["zca", "iternorm"])


def correlated(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x @ torch.randn(d, d, generator=generator, dtype=torch.float64) + 3


@pytest.mark.parametrize("groups", [1, 3])
def test_zca_gives_groups_the_identity_as_covariance(groups: int) -> None:
    layer = Whitening(6, "zca", groups, eps=1e-12).double()
    y = layer(correlated(40, 6)).detach()
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(6, dtype=torch.float64))
    blocks = torch.block_diag(*[torch.ones(6 // groups, 6 // groups, dtype=torch.float64)] * groups)
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(y.T.cov(correction=0) * blocks, eye, rtol=1e-6, atol=1e-6)


def test_iternorm_comes_closer_to_the_identity_with_its_iterations() -> None:
    x, eye, distances = correlated(60, 4), torch.eye(4, dtype=torch.float64), []
    for iterations in (2, 5, 12):
        y = Whitening(4, "iternorm", iterations=iterations).double()(x).detach()
        distances.append(float((y.T.cov(correction=0) - eye).norm()))
    assert distances[0] > distances[1] > distances[2]


@both
def test_evaluation_takes_running_averages_that_follow_the_batches(transform: Transform) -> None:
    layer, x = Whitening(5, transform, momentum=1.0).double(), correlated(50, 5)
    trained = layer(x)
    layer.eval()
    torch.testing.assert_close(layer(x), trained)
    assert layer(x[:1]).shape == (1, 5)  # one image can be evaluated
    assert not layer(x).equal(Whitening(5, transform).double().eval()(x))


@both
@pytest.mark.parametrize("x", [torch.ones(8, 4), torch.zeros(8, 4), torch.randn(3, 4), torch.randn(8, 4) * 1e-6])
def test_hard_inputs_give_finite_outputs_and_gradients(transform: Transform, x: torch.Tensor) -> None:
    x = x.clone().requires_grad_()
    y = Whitening(4, transform)(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@both
def test_the_layer_keeps_the_dtype_of_autocast_and_computes_wider(transform: Transform) -> None:
    x = correlated(40, 4).float()
    exact = Whitening(4, transform)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = Whitening(4, transform)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert float((half.float() - exact).norm() / exact.norm()) < 0.05


@both
@pytest.mark.parametrize("position", ["projector", "encoder"])
def test_any_network_can_end_its_projector_or_encoder_with_it(transform: Any, position: Any) -> None:
    options: dict[str, Any] = {"whitening": transform, "whitening_at": position, "whitening_groups": 2}
    network = Network(backbone="resnet18", stem="cifar", projector=(12,), **options)
    encoder = build_encoder(network)
    (layer,) = [module for module in encoder.modules() if isinstance(module, Whitening)]
    assert len(layer.weight) == (12 if position == "projector" else 512)
    assert not any(isinstance(module, Whitening) for module in encoder.backbone.modules())
    z = encoder(torch.randn(20, 3, 8, 8)).z
    assert z.shape == (20, 12)
    z.sum().backward()


def test_a_recipe_without_it_has_the_network_that_it_had() -> None:
    names = build_encoder(Network(backbone="resnet18", projector=(16, 8))).projector.state_dict().keys()
    assert "0.weight" in names


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="10 channels cannot be cut into 4 groups"):
        Whitening(10, "zca", 4)
