"""Backbones, projectors and momentum copies."""

import math

import pytest
import torch
import torchvision
from torch import nn

from pretrain.architectures import RESNETS
from pretrain.networks import MomentumCopy, build_backbone, build_encoder, build_projector, embed_jointly
from pretrain.recipe_sections import Network
from tests.support.tiny_encoder import images, tiny_encoder
from whitebench.errors import UserError


@pytest.mark.parametrize(("arch", "tensors"), [("resnet18", 100), ("resnet50", 265)])
def test_backbones_have_torchvisions_names_without_the_classifier(arch: str, tensors: int) -> None:
    names = set(build_backbone(arch).state_dict())
    expected = {name for name in getattr(torchvision.models, arch)().state_dict() if not name.startswith("fc.")}
    assert names == expected
    assert len([name for name in names if not name.endswith("num_batches_tracked")]) == tensors


@pytest.mark.parametrize("arch", sorted(RESNETS))
def test_features_are_as_wide_as_said(arch: str) -> None:
    backbone = build_backbone(arch).eval()
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, RESNETS[arch])


@pytest.mark.parametrize(("init", "deviation"), [("default", 0.111), ("kaiming", 0.059)])
@pytest.mark.parametrize("stem", ["cifar", "cifar-pad2", "small"])
def test_a_stem_of_3x3_is_drawn_as_the_official_codes_draw_it_or_as_the_other_convolutions(
    stem: str, init: str, deviation: float
) -> None:
    torch.manual_seed(0)
    weight = build_backbone("resnet18", stem, stem_init=init).conv1.weight.detach()
    assert float(weight.std()) == pytest.approx(deviation, rel=0.03)


def test_the_last_layers_bias_is_a_choice() -> None:
    for bias in (True, False):
        last = list(build_projector(4, Network(projector=(8, 6), projector_last_bias=bias)))[-1]
        assert (last.bias is not None) is bias


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("cifar", 32), ("cifar-pad2", 34), ("small", 16)])
def test_stems_reduce_an_image_of_32_pixels_as_their_papers_do(stem: str, side: int) -> None:
    backbone = build_backbone("resnet18", stem)
    shapes = []
    backbone.layer1.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))  # type: ignore[union-attr]
    backbone(torch.zeros(2, 3, 32, 32))
    assert shapes == [(2, 64, side, side)]


def test_zero_init_residual_starts_every_block_as_the_identity() -> None:
    zeros = [
        name
        for name, tensor in build_backbone("resnet18", zero_init_residual=True).state_dict().items()
        if name.endswith("bn2.weight") and not tensor.any()
    ]
    assert len(zeros) == 8


def test_projectors_follow_the_recipe() -> None:
    def kinds(**options: object) -> list[str]:
        return [type(layer).__name__ for layer in build_projector(8, Network(**options)).modules()][1:]  # type: ignore[arg-type]

    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds(projector=(16, 16, 4)) == [*hidden, *hidden, "Linear"]
    assert kinds(projector=(16, 4), projector_last_norm="affine") == [*hidden, "Linear", "BatchNorm1d"]
    assert kinds(projector=(4,)) == ["Linear"]
    assert isinstance(build_projector(8, Network()), nn.Identity)

    plain = build_projector(8, Network(projector=(16, 4), projector_bias=False, projector_last_norm="plain"))
    assert plain[0].bias is None  # type: ignore[index]
    assert plain[3].bias is not None  # type: ignore[index]
    assert plain[4].weight is None  # type: ignore[index]


def test_encoders_give_features_and_embeddings() -> None:
    encoder = build_encoder(Network(backbone="resnet18", projector=(32, 16)))
    h, z = encoder(torch.zeros(2, 3, 32, 32))
    assert (h.shape, z.shape) == ((2, 512), (2, 16))
    assert (encoder.feature_dim, encoder.embedding_dim) == (512, 16)
    assert build_encoder(Network(backbone="resnet18")).embedding_dim == 512


def test_initial_weights_follow_torchs_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        encoder = build_encoder(Network(backbone="resnet18", stem="cifar", projector=(8,)))
        return torch.cat([parameter.flatten() for parameter in encoder.parameters()])

    assert weights(0).equal(weights(0))
    assert not weights(0).equal(weights(1))


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        build_encoder(Network(backbone="resnet52"))
    with pytest.raises(UserError, match="did you mean 'cifar'"):
        build_backbone("resnet18", "cifra")


def test_joint_embedding_normalises_the_projector_over_all_views() -> None:
    encoder = tiny_encoder()
    views = [images(4, 0), images(4, 1, size=10)]
    joint = encoder.projector(torch.cat([encoder.backbone(view) for view in views]))
    for own, expected in zip(embed_jointly(encoder, views), joint.split(4)):
        torch.testing.assert_close(own, expected)


def test_momentum_rises_to_one_by_a_cosine() -> None:
    copy = MomentumCopy(tiny_encoder(), 0.996)
    assert copy.momentum_at(0.0) == pytest.approx(0.996)
    assert copy.momentum_at(0.5) == pytest.approx(0.998)
    assert copy.momentum_at(0.25) == pytest.approx(1 - 0.004 * (1 + math.sqrt(0.5)) / 2)
    assert copy.momentum_at(1.0) == 1


def test_a_momentum_copy_averages_parameters_and_keeps_its_own_statistics() -> None:
    encoder = tiny_encoder()
    copy = MomentumCopy(encoder, 0.75)
    start = [parameter.detach().clone() for parameter in encoder.parameters()]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(3)
    encoder(images(8, 0))
    copy.update(0.75)
    for own, before in zip(copy.parameters(), start):
        torch.testing.assert_close(own, before * 1.5)
        assert not own.requires_grad
    assert not any(buffer.equal(other) for buffer, other in zip(copy.buffers(), encoder.buffers()))
    copy(images(8, 1))
    assert all(buffer.any() for buffer in copy.buffers())
    copy.update(1.0)
    for own, before in zip(copy.parameters(), start):
        torch.testing.assert_close(own, before * 1.5)


def test_a_momentum_copy_does_not_register_the_encoder_it_follows() -> None:
    encoder = tiny_encoder()
    copy = MomentumCopy(encoder, 0.9)
    assert set(copy.state_dict()) == {f"network.{name}" for name in encoder.state_dict()}
