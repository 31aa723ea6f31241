"""A vision transformer arrives in Detectron2 whole, or is refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.vit_backbone import VIT_TINY, vit_backbone, vit_content
from transfer.convert import Converted, converted, load_proven, read_d2, write_d2
from transfer.protocol import build_cfg, load_protocol, resolve
from transfer.vit_convert import fold_layer_scale
from transfer.vit_maps import prove_vit
from whitebench.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
HELD: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (VIT_TINY, {}),
    "patches of 8": (VIT_TINY, {"patch_size": 8}),
    "no bias of qkv": (VIT_TINY, {"qkv_bias": False}),
    "norm after pooling": (VIT_TINY, {"global_pool": "avg"}),
    "no class token": (VIT_TINY, {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    "class token without a position": (VIT_TINY, {"no_embed_class": True}),
    "other heads": (VIT_TINY, {"num_heads": 12}),
    "LayerScale": ("timm:deit3_small_patch16_224", {}),
    "LayerScale and patches of 14": ("timm:vit_small_patch14_dinov2", {"img_size": 70}),
}
FROZEN_ONLY: dict[str, tuple[str, dict[str, Any], str]] = {
    "registers": ("timm:vit_small_patch14_reg4_dinov2", {"img_size": 70}, "it has 4 register tokens"),
    "rotary positions": ("timm:vit_small_patch16_dinov3", {}, "its blocks are not plain ones .Eva"),
    "normalised queries": (VIT_TINY, {"qk_norm": True}, "it normalises queries and keys"),
    "norm before the blocks": (VIT_TINY, {"pre_norm": True}, "it has a norm before its blocks"),
    "distilled": ("timm:deit_small_distilled_patch16_224", {}, "its blocks are not plain ones .VisionTransformerDist"),
}


@pytest.mark.parametrize("kind", HELD)
def test_maps_of_photos_are_timms_and_every_tensor_is_counted(kind: str) -> None:
    arch, options = HELD[kind]
    backbone = vit_backbone(arch, **options)
    content = converted(backbone)
    proof, metrics = prove_vit(backbone, content)
    scales = sum("gamma" in name for name in backbone.tensors)
    assert (proof.matched, proof.left_over) == (len(backbone.tensors) - scales, 0)
    assert metrics["vitdet"] == "yes"
    not_in_vitdet = {"cls_token", "norm.weight", "norm.bias"} & content.tensors.keys()
    assert metrics["vitdet_tensors"] == proof.matched - len(not_in_vitdet)
    assert metrics["maps"].keys() == {"frozen", "vitdet"}
    assert max(metrics["maps"].values()) < 1e-5
    assert (metrics["class_token_effect"] > 1e-3) == ("cls_token" in content.tensors)


@pytest.mark.parametrize("kind", FROZEN_ONLY)
def test_what_detectron2s_vit_does_not_have_is_named_and_the_frozen_form_has_it(kind: str) -> None:
    arch, options, reason = FROZEN_ONLY[kind]
    backbone = vit_backbone(arch, **options)
    content = converted(backbone)
    proof, metrics = prove_vit(backbone, content)
    scales = sum("gamma" in name and "ls" in name for name in backbone.tensors)
    assert proof.matched == len(backbone.tensors) - scales
    assert metrics["maps"].keys() == {"frozen"}
    with pytest.raises(UserError, match=rf"protocol sample-vitdet trains .*{reason}.* frozen .*sample-sfp-frozen"):
        build_cfg(load_protocol("sample-vitdet"), resolve(load_protocol("sample-vitdet")), content)
    build_cfg(load_protocol("sample-sfp-frozen"), resolve(load_protocol("sample-sfp-frozen")), content)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("timm:convnext_tiny", {}, r"timm:convnext_tiny: not a plain vision transformer \(ConvNeXt of timm\)"),
        ("timm:vit_small_patch32_224", {}, "patches of 32 pixels; a feature pyramid needs 4, 8, 16"),
        ("timm:vit_smal_patch16_224", {}, "timm .* has no such network; did you mean"),
        (VIT_TINY, {"depht": 3}, "timm cannot build it with .*depht"),
    ],
)
def test_other_networks_are_refused_by_name(arch: str, options: dict[str, Any], message: str) -> None:
    from transfer.vit_structure import read_structure

    with pytest.raises(UserError, match=message) as error:
        read_structure(arch, options, {})
    assert "\n" not in str(error.value)


def test_positions_that_are_no_square_are_refused() -> None:
    from transfer.vit_structure import read_structure

    with pytest.raises(UserError, match="its 12 position embeddings do not form a square"):
        read_structure(VIT_TINY, {}, {"pos_embed": (1, 12, 192), "patch_embed.proj.weight": (192, 3, 16, 16)})


def test_folded_layer_scale_is_the_same_function_in_float64() -> None:
    from timm.models.vision_transformer import Block

    torch.manual_seed(0)
    block, plain = Block(12, 3, init_values=0.5).double(), Block(12, 3).double()
    block.ls1.gamma.data.normal_()
    block.ls2.gamma.data.normal_()
    named = {f"blocks.0.{name}": tensor for name, tensor in block.state_dict().items()}
    folded = fold_layer_scale(named, depth=1)
    plain.load_state_dict({name.removeprefix("blocks.0."): tensor for name, tensor in folded.items()})
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    assert (block(x) - plain(x)).abs().max() < 1e-6  # folded weights are float32
    assert (block(x) - x).abs().max() > 0.1


def test_unfolded_layer_scale_would_not_pass() -> None:
    backbone = vit_backbone("timm:deit3_small_patch16_224")
    content = converted(backbone)
    raw = {name: backbone.tensors[name].numpy() for name in content.tensors}
    with pytest.raises(UserError, match="the maps of the frozen transformer differ from timm's"):
        prove_vit(backbone, Converted(raw, content.metadata))


@pytest.mark.parametrize("change", ["missing", "left over", "changed", "not finite"])
def test_proof_fails_where_a_tensor_is_wrong(change: str) -> None:
    from transfer.vit_backbones import frozen_vit
    from transfer.vit_maps import _cfg

    content = vit_content()
    network = frozen_vit(_cfg(content))
    load_proven(network, content)
    name = "blocks.1.mlp.fc1.weight"
    if change == "missing":
        del content.tensors[name]
    elif change == "left over":
        content.tensors["blocks.2.mlp.fc1.weight"] = content.tensors[name]
    elif change == "changed":
        network.network.blocks[1].mlp.fc1.weight.data[0, 0] += 1
    else:
        content.tensors[name][0, 0] = np.nan
    from transfer.convert import prove

    with pytest.raises(UserError, match=r"do not fit|does not hold|not finite"):
        prove(network, content)


def test_file_is_loaded_alike_by_detectron2s_own_reader(tmp_path: Path) -> None:
    """Also into a whole detector, whose norms have names like the transformer's last one."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    content = vit_content(embed_dim=96, num_heads=3)
    write_d2(tmp_path / "d2.pkl", content)
    again = read_d2(tmp_path / "d2.pkl")
    assert again.metadata == content.metadata
    assert {name: array.tobytes() for name, array in again.tensors.items()} == {
        name: np.ascontiguousarray(array).tobytes() for name, array in content.tensors.items()
    }
    protocol = load_protocol("sample-vitdet")
    cfg = build_cfg(protocol, resolve(protocol), content)
    torch.manual_seed(0)
    ours, official = build_model(cfg), build_model(cfg)
    official.load_state_dict(ours.state_dict())
    load_proven(ours, content)
    DetectionCheckpointer(official).load(str(tmp_path / "d2.pkl"))
    ours_state, official_state = ours.state_dict(), official.state_dict()
    assert all(torch.equal(ours_state[name], official_state[name]) for name in ours_state)


@pytest.mark.parametrize("stated", [{"id": "intl-s0-0123456789ab"}, {"recipe": "dino.pth"}])
def test_a_converted_transformer_is_not_taken_for_a_checkpoint(tmp_path: Path, stated: dict[str, str]) -> None:
    """What was done for Detectron2 cannot be undone; the message says which file to give."""
    from pretrain.checkpoint import read_backbone

    backbone = vit_backbone()
    metadata = {key: value for key, value in backbone.metadata.items() if key not in ("id", "recipe")}
    write_d2(tmp_path / "d2.pkl", converted(replace(backbone, metadata={**metadata, **stated})))
    for path in (tmp_path / "d2.pkl", tmp_path):  # also by its folder
        with pytest.raises(UserError, match=f"form for Detectron2.*{next(iter(stated.values()))}") as error:
            read_backbone(path)
        assert "\n" not in str(error.value)


def test_timms_plain_resnet_is_torchvisions(tmp_path: Path) -> None:
    import timm

    from pretrain.checkpoint import Backbone
    from transfer.detectron import detectron2_resnet

    network = timm.create_model("resnet18", pretrained=False, num_classes=0)
    tensors = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    content = converted(Backbone("timm:resnet18", "imagenet", tensors, {}, "x", "0"))
    assert content.arch == "resnet18"
    assert load_proven(detectron2_resnet("resnet18"), content).matched == 100


@pytest.mark.long
def test_every_layout_that_is_read_arrives_in_a_detector(tmp_path: Path) -> None:
    """Checkpoints of all projects that `read_backbone` knows: proven, or with a reason why ViTDet cannot take them."""
    from pretrain.checkpoint import read_backbone
    from tests.support.vit_formats import FORMATS

    refused = {}
    for form in FORMATS:
        torch.save(form.layout(dict(form.build(1).state_dict()), dict(form.build(2).state_dict())), tmp_path / "c.pth")
        backbone = read_backbone(tmp_path / "c.pth")
        proof, metrics = prove_vit(backbone, converted(backbone))
        scales = sum("ls1.gamma" in name or "ls2.gamma" in name for name in backbone.tensors)
        assert proof.matched == len(backbone.tensors) - scales, form.project
        assert max(metrics["maps"].values()) < 1e-5, form.project
        if metrics["vitdet"] != "yes":
            refused[form.project] = metrics["vitdet"]
    assert {"DINO", "DINOv2", "MAE", "MoCo v3, ViT-S", "iBOT with layer scale", "LeJEPA"} & refused.keys() == set()
    assert refused["DINOv2 with registers"] == "it has 4 register tokens, and its maps depend on them"
    assert all("DINOv3" in name or "SwiGLU" in name or "registers" in name for name in refused)
