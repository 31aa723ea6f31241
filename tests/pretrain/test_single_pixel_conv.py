"""A convolution that skips its padding is the convolution."""

import copy

import pytest
import torch
from torch import nn

from pretrain.networks import build_backbone
from pretrain.single_pixel_conv import SinglePixelConv2d


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_outputs_and_gradients_are_those_of_the_convolution(side: int, stride: int) -> None:
    plain = nn.Conv2d(3, 5, 3, stride, padding=1, bias=False).double()
    quick = copy.deepcopy(plain)
    quick.__class__ = SinglePixelConv2d
    x = torch.randn(4, 3, side, side, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [network(image) for network, image in zip((plain, quick), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0])
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(quick.weight.grad, plain.weight.grad)


def test_a_rectangle_with_one_row_of_output_is_convolved_in_full() -> None:
    plain = nn.Conv2d(3, 5, 3, padding=1, bias=False).double()
    quick = copy.deepcopy(plain)
    quick.__class__ = SinglePixelConv2d
    x = torch.randn(2, 3, 1, 4, dtype=torch.float64)
    torch.testing.assert_close(quick(x), plain(x))


def test_only_taps_that_meet_pixels_are_used_in_the_last_stage_of_a_small_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convolved: list[tuple[int, ...]] = []
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: convolved.append(tuple(x.shape[1:])) or forward(self, x))
    build_backbone("resnet18")(torch.randn(2, 3, 32, 32))
    assert len(convolved) == 20 - 4  # of layer 4, only the 1x1 convolution of the shortcut remains
    assert (512, 1, 1) not in convolved
