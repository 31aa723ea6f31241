"""The linter knows what ViTDet trains, and what a frozen transformer is; commands name the nearest right protocol."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.vit_backbone import VIT_TINY, vit_content
from transfer.coco_det import default_protocol
from transfer.convert import Converted
from transfer.deviations import deviations
from transfer.linter import lint, not_yet_named
from transfer.protocol import build_cfg, check_fit, load_protocol, published_cfg, resolve
from whitebench.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
VIT_B = "timm:vit_base_patch16_224"
WRONG = {
    "windows": ("MODEL: {VIT: {WINDOW: 0}}", "window attention: MODEL.VIT.WINDOW is 0; in ViTDet 14"),
    "global blocks": (
        "MODEL: {VIT: {GLOBAL_BLOCKS: 12}}",
        "window attention: MODEL.VIT.GLOBAL_BLOCKS is 12; in ViTDet 4",
    ),
    "positions": ("MODEL: {VIT: {REL_POS: false}}", "relative positions: "),
    "drop path": ("MODEL: {VIT: {DROP_PATH: 0.0}}", "drop path: MODEL.VIT.DROP_PATH is 0.0; in ViTDet 0.1"),
    "frozen": (
        "MODEL: {BACKBONE: {FREEZE_AT: 5}}",
        "frozen layers: the backbone is build_vitdet_backbone, FREEZE_AT 5",
    ),
    "layer decay": ("SOLVER: {LAYER_DECAY: 1.0}", "layer decay: SOLVER.LAYER_DECAY is 1.0; in ViTDet 0.7"),
    "rate": (
        "SOLVER: {BASE_LR: 0.001}",
        "learning rate: 0.001 for 64 images; in proportion to 0.0001 for 64 it is 0.0001",
    ),
    "weight decay": ("SOLVER: {WEIGHT_DECAY: 0.05}", "weight decay: SOLVER.WEIGHT_DECAY is 0.05; in ViTDet 0.1"),
    "steps": ("SOLVER: {STEPS: [90000]}", "steps: the rate falls at [90000] of 184375; in ViTDet at 88.9% and 96.3%"),
    "length": (
        "SOLVER: {MAX_ITER: 100000, STEPS: [88889, 96295]}",
        "length: 100000 iterations of 64 images; in ViTDet",
    ),
    "jittering": (
        "INPUT: {LSJ: {ENABLED: false}}",
        "large-scale jittering: INPUT.LSJ.ENABLED is False; in ViTDet True",
    ),
    "test size": ("INPUT: {MIN_SIZE_TEST: 800}", "test size: INPUT.MIN_SIZE_TEST is 800; in ViTDet 1024"),
    "BGR": ("INPUT: {FORMAT: BGR}", "channel order: images come as BGR"),
    "mean": ("MODEL: {PIXEL_MEAN: [0.5, 0.5, 0.5]}", "pixel mean: "),
    "norm": ("MODEL: {FPN: {NORM: BN}}", "pyramid: MODEL.FPN.NORM is BN; in ViTDet LN"),
    "box head": ("MODEL: {ROI_BOX_HEAD: {NUM_CONV: 0}}", "box head: MODEL.ROI_BOX_HEAD.NUM_CONV is 0; in ViTDet 4"),
}


def own(folder: Path, base: str, change: str) -> Any:
    (folder / "own.yaml").write_text(f"extends: {base}\ntitle: own\ndetectron2: {{{change}}}\n")
    return load_protocol(str(folder / "own.yaml"))


@pytest.mark.parametrize("fault", WRONG)
def test_what_differs_from_vitdet_in_a_protocols_own_file_is_named(tmp_path: Path, fault: str) -> None:
    change, message = WRONG[fault]
    protocol = own(tmp_path, "vitdet-b-100ep", change)
    cfg, content = published_cfg(protocol), vit_content(VIT_B)
    assert deviations(cfg, protocol) == []
    content.metadata.update(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    lines = [str(finding) for finding in lint(cfg, protocol, content)]
    assert len(lines) == 1
    assert lines[0].startswith(message)


def test_sgd_is_named() -> None:
    from dataclasses import replace

    protocol = replace(load_protocol("vitdet-b-100ep"), optimizer="sgd")
    content = vit_content(VIT_B)
    content.metadata.update(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    lines = [str(finding) for finding in lint(published_cfg(protocol), protocol, content)]
    assert lines == ["optimizer: sgd; ViTDet has AdamW"]


def built(name: str, **changes: Any) -> tuple[Any, Any, Any, Any]:
    from detectron2.modeling import build_model

    protocol, content = load_protocol(name), vit_content(VIT_B if "-b-" in name else VIT_TINY)
    content.metadata.update(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    cfg = build_cfg(protocol, resolve(protocol), content)
    return cfg, protocol, content, build_model(cfg)


def test_the_built_model_is_looked_at() -> None:
    cfg, protocol, content, model = built("vitdet-b-100ep")
    clean = [str(finding) for finding in lint(cfg, protocol, content, model)]
    assert not_yet_named(lint(cfg, protocol, content, model), deviations(cfg, protocol)) == []
    model.backbone.net.blocks[0].attn.use_rel_pos = False
    model.backbone.net.patch_embed.requires_grad_(False)
    more = {str(finding) for finding in lint(cfg, protocol, content, model)} - set(clean)
    assert more == {
        "relative positions: 1 blocks of the model have none",
        "frozen layers: 2 parameters of the model are not trained, e.g. backbone.net.patch_embed.proj.weight",
    }


@pytest.mark.parametrize("name", ["sfp-frozen", "sample-sfp-frozen"])
def test_a_trained_parameter_of_a_frozen_transformer_is_named(name: str, tmp_path: Path) -> None:
    cfg, protocol, content, model = built(name)
    assert lint(cfg, protocol, content, model) == []
    next(model.backbone.net.parameters()).requires_grad_(True)
    (finding,) = lint(cfg, protocol, content, model)
    assert str(finding).startswith("frozen layers: 1 parameters of the backbone are trained, e.g. network.")
    protocol = own(tmp_path, name, "MODEL: {BACKBONE: {NAME: build_vitdet_backbone}}")
    assert any(
        "a frozen transformer is build_frozen_vit" in str(f) for f in lint(published_cfg(protocol), protocol, content)
    )


def test_frozen_resnet_of_the_sample_is_looked_at() -> None:
    from detectron2.modeling import build_model

    metadata = {"arch": "resnet18", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "parent": "x"}
    protocol, content = load_protocol("sample-frozen"), Converted({}, metadata)
    cfg = build_cfg(protocol, resolve(protocol), content)
    model = build_model(cfg)
    assert lint(cfg, protocol, content, model) == []
    next(model.backbone.bottom_up.res5.parameters()).requires_grad_(True)
    assert [finding.rule for finding in lint(cfg, protocol, content, model)] == ["frozen layers"]


@pytest.mark.parametrize(
    ("protocol", "arch", "first"),
    [
        ("vitdet-b-100ep", "resnet50", "c4-1x"),
        ("vitdet-1x", "resnet18", "r18-fpn-1x"),
        ("sfp-frozen", "resnet50", "c4-1x"),
        ("c4-1x", "timm:vit_small_patch16_224", "vitdet-1x, vitdet-s-100ep, sfp-frozen"),
        ("c4-1x-frozen", "timm:vit_base_patch16_224", "vitdet-1x, vitdet-b-100ep"),
        ("vitdet-b-100ep", "timm:vit_small_patch16_224", "vitdet-1x, vitdet-s-100ep"),
    ],
)
def test_another_kind_of_backbone_gets_the_protocols_for_it(protocol: str, arch: str, first: str) -> None:
    with pytest.raises(
        UserError, match=rf"protocol {protocol} is for .*, not for {arch}; for it there are: {first}"
    ) as e:
        check_fit(load_protocol(protocol), arch)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("arch", "on_sample", "name"),
    [
        ("resnet50", False, "c4-1x"),
        ("resnet18", True, "sample"),
        ("timm:vit_tiny_patch16_224", True, "sample-vitdet"),
        ("timm:vit_base_patch16_224.mae", False, "vitdet-b-100ep"),
        ("timm:vit_small_patch14_dinov2", False, "vitdet-s-100ep"),
        ("timm:vit_large_patch16_224", False, "vitdet-l-100ep"),
        ("", False, "c4-1x"),
        ("resnet18-16", True, "sample"),
        ("resnet34", True, "sample-full"),
        ("resnet50", True, "sample-r50"),
        ("resnet101", True, "sample-r50"),
        ("timm:vit_base_patch16_224", True, "sample-vitdet"),
    ],
)
def test_default_protocol_fits_the_backbone(arch: str, on_sample: bool, name: str) -> None:
    assert default_protocol(arch, on_sample) == name


def test_what_detectron2_cannot_hold_is_tried_frozen_on_the_sample_alone() -> None:
    """On COCO the published protocol is refused, with the names of the frozen ones: a default trains the backbone."""
    assert default_protocol("timm:vit_small_patch16_dinov3", on_sample=True, trainable=False) == "sample-sfp-frozen"
    assert default_protocol("timm:vit_small_patch16_dinov3", on_sample=False, trainable=False) == "vitdet-s-100ep"
    assert default_protocol("resnet50", on_sample=True, trainable=True) == "sample-r50"
