"""Vision transformers and other networks of timm as backbones: names, options, sizes, files."""

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pretrain.architectures import canonical_backbone, check_sizes, timm_architecture
from pretrain.checkpoint import read_backbone, write_backbone
from pretrain.evaluate.features import load_backbone
from pretrain.networks import build_encoder, embed_by_size
from pretrain.recipe import load
from pretrain.recipe_sections import Network
from pretrain.timm_networks import feature_width, sine_positions
from whitebench.errors import UserError

TINY = {"backbone": "vit_tiny_patch8", "pooling": "cls"}


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("vit_tiny", "vit_tiny_patch16"),
        ("ViT-S/8", "vit_small_patch8"),
        ("vit-ti/16", "vit_tiny_patch16"),
        ("vit_b_16", "vit_base_patch16"),
        ("vit_base_8", "vit_base_patch8"),
        ("vit_small_patch14", "vit_small_patch14"),
        ("resnet18", "resnet18"),
        ("timm:vit_small_patch16_224", "timm:vit_small_patch16_224"),
    ],
)
def test_each_vision_transformer_has_one_spelling_in_a_recipe(spelling: str, canonical: str) -> None:
    assert canonical_backbone(spelling) == canonical
    assert Network(backbone=spelling).backbone == canonical
    assert load("sample/intl-vit", {"network.backbone": "ViT-Ti/8"}).identity() == load("sample/intl-vit").identity()


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("patch", [16, 8])
def test_a_short_name_is_timms_network_of_that_size_and_patch(size: str, patch: int) -> None:
    name = f"vit_{size}_patch{patch}"
    with torch.device("meta"):
        ours = build_encoder(Network(backbone=name)).backbone
        theirs = timm.create_model(f"vit_{size}_patch16_224", num_classes=0, patch_size=patch)
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes
    assert feature_width(ours) == theirs.embed_dim == {"tiny": 192, "small": 384, "base": 768}[size]
    assert timm_architecture(name) == f"timm:vit_{size}_patch16_224"


@pytest.mark.parametrize(
    ("name", "width"),
    [("convnext_tiny", 768), ("wide_resnet50_2", 2048), ("resnet152", 2048), ("mobilenetv3_small_050", 1024)],
)
def test_other_networks_of_timm_are_backbones(name: str, width: int) -> None:
    encoder = build_encoder(Network(backbone=f"timm:{name}", projector=(8,)), [32]).eval()
    assert encoder.feature_dim == feature_width(encoder.backbone) == width
    h, z = encoder(torch.zeros(2, 3, 32, 32))
    assert (h.shape, z.shape) == ((2, width), (2, 8))


def test_pooling_is_the_class_token_or_the_mean_of_the_patches_after_the_norm() -> None:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for pooling in ("cls", "mean"):
        torch.manual_seed(0)
        backbone: Any = build_encoder(Network(backbone="vit_tiny_patch8", pooling=pooling), [16]).backbone.eval()
        tokens = backbone.forward_features(images)
        expected = tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(dim=1)
        assert torch.allclose(backbone(images), expected)
        assert "norm.weight" in backbone.state_dict()
        assert "fc_norm.weight" not in backbone.state_dict()


def test_views_of_several_sizes_share_one_table_of_positions() -> None:
    encoder = build_encoder(Network(backbone="vit_tiny_patch8", projector=(8,)), [32, 16, 32])
    assert encoder.backbone.pos_embed.shape == (1, 17, 192)
    z = embed_by_size(encoder, [torch.zeros(2, 3, side, side) for side in (32, 16, 32)])
    assert [one.shape for one in z] == [(2, 8)] * 3


def test_fixed_positions_and_a_frozen_patch_embedding_are_not_trained() -> None:
    encoder = build_encoder(Network(**TINY, positions="sincos", frozen_patch_embedding=True, vit_init="moco"), [32])
    frozen = {name for name, p in encoder.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    table = encoder.backbone.pos_embed
    assert torch.equal(table[0, 1:], sine_positions(4, 192))
    assert not table[0, 0].any()
    assert len({tuple(row) for row in table[0].tolist()}) == 17


def test_drop_path_rises_to_the_recipes_rate_and_is_off_in_evaluation() -> None:
    backbone: Any = build_encoder(Network(**TINY, drop_path=0.3), [16]).backbone
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.blocks]
    assert rates == pytest.approx([0.3 * k / 11 for k in range(12)])
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(backbone.eval()(x), backbone(x))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"network.backbone": "vit_smal_16"}, "did you mean 'vit_small_patch16'"),
        ({"network.backbone": "timm:vit_tny_patch16_224"}, "did you mean 'timm:vit_tiny_patch16_224'"),
        ({"network.backbone": "timm:vit_tiny_patch16_224.augreg"}, "names pretrained weights"),
        ({"network.backbone": "convnext_tiny"}, "did you mean 'timm:convnext_tiny'"),
        ({"data.views.0.size": 50}, "size: 50 pixels are not a multiple of the patch .*; use 48 or 56"),
        ({"evaluation.crop": 36}, "evaluation.crop: 36 pixels"),
        ({"network.backbone": "resnet18"}, "network.pooling: a resnet18 has no such setting"),
        ({"network.stem": "cifar"}, "network.stem: only of torchvision's ResNets"),
        ({"network.pooling": "first"}, "network.pooling"),
    ],
)  # fmt: skip
def test_a_recipe_that_does_not_fit_its_network_is_refused_when_it_is_read(
    overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load("sample/intl-vit", overrides)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"backbone": "timm:convnext_tiny", "pooling": "cls"}, "network.pooling=cls: timm:convnext_tiny has no such"),
        ({"backbone": "timm:convnext_tiny", "heads": 3}, "network.heads: timm:convnext_tiny has no such option"),
        ({"backbone": "timm:convnext_tiny", "positions": "sincos"}, "no table of position embeddings"),
        ({"backbone": "timm:convnext_tiny", "frozen_patch_embedding": True}, "no patch embedding"),
        ({"backbone": "vit_tiny", "heads": 5}, "timm cannot build it with .*num_heads=5"),
    ],
)
def test_options_that_a_network_does_not_take_are_named(network: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_encoder(Network(**network), [32])


def test_without_timm_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        build_encoder(Network(**TINY), [32])
    assert load("sample/intl-vit", {"network.backbone": "timm:vit_tiny_patch16_224"})  # planning needs no timm


def test_sizes_below_one_patch_have_one_alternative() -> None:
    with pytest.raises(UserError, match=r"--crop: 5 pixels .*; use 16$"):
        check_sizes("vit_base_patch16", {"--crop": 5})


@pytest.mark.parametrize("network", [{**TINY, "heads": 6}, {"backbone": "timm:convnext_atto"}])
def test_a_backbone_of_timm_comes_back_from_its_file(network: dict[str, Any], tmp_path: Path) -> None:
    encoder = build_encoder(Network(**network), [32]).eval()
    architecture = timm_architecture(network["backbone"])
    metadata = {"arch": architecture, "architecture": architecture, "options": encoder.options}
    write_backbone(tmp_path / "backbone.safetensors", encoder.backbone.state_dict(), metadata)
    backbone = read_backbone(tmp_path)
    assert backbone.arch == architecture
    assert backbone.is_timm
    assert len(backbone.tensors) == len(encoder.backbone.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_backbone(backbone).eval()(images), encoder.backbone(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 100_000}, "impossible depth"),
        ({"img_size": 10**9}, "impossible img_size"),
        ([1], "not a mapping"),
        ({"dept": 3}, "timm cannot build it"),
        ({"depth": 3}, "tensors have no place in a timm:vit_tiny_patch16_224"),
    ],
)
def test_a_file_with_impossible_options_is_refused(options: Any, message: str, tmp_path: Path) -> None:
    from json import dumps

    from safetensors.torch import save_file

    state = build_encoder(Network(**TINY), [32]).backbone.state_dict()
    metadata = {"arch": "timm:vit_tiny_patch16_224", "options": options}
    save_file(state, tmp_path / "backbone.safetensors", {"whitebench": dumps(metadata)})
    with pytest.raises(UserError, match=message):
        read_backbone(tmp_path)
