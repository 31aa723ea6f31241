"""Transformers and ConvNeXts of other projects: equal tokens of two photos, every tensor used, named or refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.checkpoint import read_backbone
from pretrain.evaluate.features import load_backbone
from tests.conftest import REPOSITORY
from tests.support.formats import under
from tests.support.plain_vit import plain_vit
from tests.support.vit_formats import FORMATS, VitFormat, photos, tokens, tokens_of
from whitebench.errors import UserError


def written(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.project)
def test_a_transformer_of_another_project_gives_the_same_tokens_of_two_photos(form: VitFormat, tmp_path: Path) -> None:
    chosen, other = form.build(1), form.build(2)
    path = written(tmp_path / "ckpt.pth", form.layout(dict(chosen.state_dict()), dict(other.state_dict())))
    images = photos()
    backbone = read_backbone(path)
    expected = tokens(chosen, images)
    assert torch.allclose(tokens_of(backbone, images), expected, atol=2e-5 * float(expected.abs().max()))
    if form.other:
        assert form.other in backbone.origin.partition("also there")[2]
        second = tokens(other, images)
        asked = read_backbone(path, encoder=form.other)
        assert torch.allclose(tokens_of(asked, images), second, atol=2e-5 * float(second.abs().max()))
        assert not torch.allclose(expected, second, atol=0.1)


def test_the_table_of_formats_has_a_row_for_each() -> None:
    rows = (REPOSITORY / "docs" / "formats.md").read_text().partition("## Vision transformers")[2]
    assert [form.project for form in FORMATS if f"| {form.project} |" not in rows] == []


def plain(**options: Any) -> dict[str, Tensor]:
    return dict(plain_vit(**options).state_dict())


def test_tensors_that_features_do_not_need_are_named_with_the_reason(tmp_path: Path) -> None:
    content = {**plain(), "mask_token": torch.ones(1, 192), "decoder_embed.weight": torch.ones(3, 192)}
    origin = read_backbone(written(tmp_path / "x.pth", {**content, "head.weight": torch.ones(3, 192)})).origin
    assert "not used: mask_token (the token of masked patches, of pretraining only)" in origin
    assert "not used: decoder_embed.weight (a decoder)" in origin
    assert "not used: head.weight (a head)" in origin
    assert "3 attention heads, as networks of width 192 have" in origin


def test_a_mask_of_dinov3s_biases_that_was_never_filled_masks_the_keys(tmp_path: Path) -> None:
    network = plain_vit(registers=4, scale="ls", rotary=True)
    state = {
        n: torch.full_like(t, torch.nan) if n.endswith("bias_mask") else t for n, t in network.state_dict().items()
    }
    backbone = read_backbone(written(tmp_path / "x.pth", state))
    assert torch.allclose(tokens_of(backbone, photos()), network(photos()), atol=1e-4)


def test_position_embeddings_of_another_size_are_resized_when_images_are(tmp_path: Path) -> None:
    network = plain_vit()
    backbone = read_backbone(written(tmp_path / "x.pth", network.state_dict()))
    assert backbone.options["img_size"] == 32
    resized = plain_vit(side=6)
    resized.load_state_dict({**network.state_dict(), "pos_embed": resized.pos_embed})
    grid = network.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    larger = F.interpolate(grid, (6, 6), mode="bicubic", antialias=True).flatten(2).mT
    resized.pos_embed.copy_(torch.cat([network.pos_embed[:, :1], larger], dim=1))
    assert torch.allclose(tokens_of(backbone, photos(48)), resized(photos(48)), atol=1e-4)


def without(state: dict[str, Tensor], pattern: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not re.search(pattern, name)}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("a distillation token", {"dist_token": torch.ones(1, 1, 192)}, "a distillation token"),
    (
        "relative positions",
        {"blocks.0.attn.relative_position_bias_table": torch.ones(9, 3)},
        "relative position biases",
    ),
    ("an unknown token", {"prompt_token": torch.ones(1, 5, 192)}, "prompt_token is 1x5x192: an unknown token"),
    ("an unknown tensor of a block", {"blocks.1.adapter.weight": torch.ones(3, 3)}, "no place .* blocks.1.adapter"),
    (
        "one layer scale of four",
        {"blocks.0.ls1.gamma": torch.ones(192)},
        "tensors are missing, e.g. blocks.0.ls2.gamma",
    ),
    ("attention pooling", {"attn_pool.q.weight": torch.ones(3, 3)}, "attention pooling"),
    ("a grid that is not square", {"pos_embed": torch.ones(1, 13, 192)}, "not those of a square grid"),
    ("no positions", {"pos_embed": None}, "without position embeddings"),
    ("a missing block", {"blocks.1.": None}, "some of them are missing"),
    ("a missing bias", {"blocks.1.mlp.fc2.bias": None}, "1 of a timm:vit_base.* missing, e.g. blocks.1.mlp.fc2.bias"),
    ("not finite", {"norm.weight": torch.full((192,), torch.nan)}, "norm.weight has values that are not finite"),
    ("whole numbers", {"norm.weight": torch.ones(192, dtype=torch.int64)}, "norm.weight is of type int64"),
    (
        "four channels",
        {"patch_embed.proj.weight": torch.ones(192, 4, 8, 8)},
        "not a convolution of square patches of RGB",
    ),
    ("a token of two sizes", {"cls_token": torch.ones(1, 1, 96)}, "cls_token is 1x1x96"),
    ("half of BEiT's biases", {"blocks.0.attn.q_bias": torch.ones(192)}, "one of them is missing"),
    ("another size stated", {"arch": "vit_small"}, "of width 192, but it states arch: 'vit_small'"),
    ("heads that do not divide", {"args": {"num_heads": 7}}, "7 attention heads, by which its width 192"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_changes_features_is_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state: dict[str, Any] = plain(depth=3)
    for name, value in change.items():
        if value is None:
            state = without(state, f"^{re.escape(name)}")
        else:
            state[name] = value
    with pytest.raises(UserError, match=message):
        read_backbone(written(tmp_path / "x.pth", state))


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_quickgelu_224", "vit_base_patch16_rpn_224"])
def test_a_network_of_timm_that_only_looks_like_a_plain_one_is_refused(name: str, tmp_path: Path) -> None:
    state = plain(width=768, heads=12, depth=1)
    with pytest.raises(UserError, match=f"states arch: '{name}', whose features differ"):
        read_backbone(written(tmp_path / "x.pth", {"arch": name, "state_dict": state}))


def test_rotary_positions_of_another_base_and_biases_of_keys_are_refused(tmp_path: Path) -> None:
    state = plain(registers=4, scale="ls", rotary=True)
    other = {**state, "rope_embed.periods": state["rope_embed.periods"] ** 2}
    with pytest.raises(UserError, match=r"rope_embed.periods are not DINOv3's"):
        read_backbone(written(tmp_path / "x.pth", other))
    with pytest.raises(UserError, match=r"qkv.bias is not zero for keys"):
        read_backbone(written(tmp_path / "y.pth", without(state, "bias_mask")))


def test_heads_are_taken_from_what_is_stated_and_never_guessed_for_an_unusual_width(tmp_path: Path) -> None:
    network = plain_vit(width=80, heads=5)
    path = written(tmp_path / "model.pth", {"state_dict": network.state_dict()})
    with pytest.raises(UserError, match="width 80: its number of attention heads is neither stated"):
        read_backbone(path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 5}))
    assert torch.allclose(tokens_of(read_backbone(path), photos()), network(photos()), atol=1e-4)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_act": "quick_gelu"}))
    with pytest.raises(UserError, match="hidden_act"):
        read_backbone(path)


def convnext() -> nn.Module:
    """torchvision's own, small."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    torch.manual_seed(0)
    settings = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, 24, 1), CNBlockConfig(24, 32, 3), CNBlockConfig(32, None, 1)]
    network = ConvNeXt(settings, layer_scale=0.5, num_classes=3)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network.eval().requires_grad_(False)


def facebook_convnext(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names of facebookresearch/ConvNeXt, models/convnext.py."""
    renamed = {}
    for name, tensor in state.items():
        match = re.match(r"features\.(\d)\.(\d+)\.(.*)", name)
        if match:
            number, inner, rest = int(match[1]), match[2], match[3]
            block = {"block.0": "dwconv", "block.2": "norm", "block.3": "pwconv1", "block.5": "pwconv2"}
            for old, new in block.items():
                rest = rest.replace(old, new)
            rest, tensor = ("gamma", tensor.flatten()) if rest == "layer_scale" else (rest, tensor)
            name = (
                f"downsample_layers.{number // 2}.{inner}.{rest}"
                if number % 2 == 0
                else f"stages.{number // 2}.{inner}.{rest}"
            )
        renamed[name.replace("classifier.0.", "norm.").replace("classifier.2.", "head.")] = tensor
    return renamed


@pytest.mark.parametrize("layout", ["torchvision", "facebook", "timm", "prefixed"])
def test_convnexts_give_the_same_maps_of_two_photos(layout: str, tmp_path: Path) -> None:
    network: Any = convnext()
    state = dict(network.state_dict())
    if layout != "torchvision":
        state = facebook_convnext(state)
    if layout == "timm":
        state = dict(read_backbone(written(tmp_path / "first.pth", state)).tensors)
    content = {"model": under("module.backbone.", state)} if layout == "prefixed" else {"model": state}
    backbone = read_backbone(written(tmp_path / "x.pth", content))
    expected = network.features(photos(64))
    assert torch.allclose(tokens_of(backbone, photos(64)), expected, atol=1e-5 * float(expected.abs().max()))
    pooled = network.classifier[0](network.avgpool(expected)).flatten(1)
    assert torch.allclose(load_backbone(backbone).eval()(photos(64)), pooled, atol=1e-5 * float(pooled.abs().max()))


def test_a_convnext_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    state = facebook_convnext(dict(convnext().state_dict()))
    with pytest.raises(UserError, match=r"tensors are missing, e.g. stages.2.blocks.1.mlp.fc1.bias"):
        read_backbone(written(tmp_path / "x.pth", without(state, r"stages\.2\.1\.pwconv1\.bias")))
    with pytest.raises(UserError, match=r"are missing, e.g. stages.0.blocks.0.mlp.grn"):
        read_backbone(written(tmp_path / "y.pth", {**state, "stages.0.0.grn.gamma": torch.ones(8)}))
