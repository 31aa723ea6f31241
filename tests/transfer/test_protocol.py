"""A protocol says what its source says, key by key; whatever a run does otherwise is named."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.convert import IMAGENET_MEAN, IMAGENET_STD, Converted
from transfer.deviations import deviations, schedule_lines
from transfer.linter import Finding, lint, not_yet_named
from transfer.protocol import (
    build_cfg,
    check_fit,
    load_protocol,
    protocol_names,
    published_cfg,
    resolve,
)
from whitebench.errors import UserError

MOCO = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.MASK_ON": True,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
    "INPUT.MIN_SIZE_TEST": 800,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
}
"""facebookresearch/moco, detection/configs: Base-RCNN-C4-BN, coco_R_50_C4_2x and coco_R_50_C4_2x_moco, joined."""
MOCO_VOC = {
    **MOCO,
    "MODEL.MASK_ON": False,
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "INPUT.MIN_SIZE_TRAIN": [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
    "DATASETS.TRAIN": ["voc_2007_trainval", "voc_2012_trainval"],
    "DATASETS.TEST": ["voc_2007_test"],
    "SOLVER.STEPS": [18000, 22000],
    "SOLVER.MAX_ITER": 24000,
    "SOLVER.WARMUP_ITERS": 100,
}
"""facebookresearch/moco, detection/configs: Base-RCNN-C4-BN, pascal_voc_R_50_C4_24k and _24k_moco, joined."""
MMSELFSUP = {
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.FPN.NORM": "SyncBN",
    "TEST.PRECISE_BN.ENABLED": True,
    "SOLVER.STEPS": [60000, 80000],
    "SOLVER.MAX_ITER": 90000,
}
"""open-mmlab/mmselfsup, benchmarks/detection/configs/coco_R_50_FPN_1x.yaml."""
PUBLISHED: dict[str, dict[str, Any]] = {
    "c4-24k": MOCO_VOC,
    "c4-1x": {**MOCO, "SOLVER.MAX_ITER": 90000, "SOLVER.STEPS": [60000, 80000]},
    "c4-2x": {**MOCO, "SOLVER.MAX_ITER": 180000, "SOLVER.STEPS": [120000, 160000]},
    "fpn-1x": MMSELFSUP,
    "fpn-2x": {**MMSELFSUP, "SOLVER.MAX_ITER": 180000, "SOLVER.STEPS": [120000, 160000]},
}


CLASSES = {"c4-24k": 20}


def at(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple) else cfg


def weights(arch: str = "resnet50", mean: tuple[float, ...] = IMAGENET_MEAN) -> Converted:
    return Converted({}, {"arch": arch, "mean": list(mean), "std": list(IMAGENET_STD), "parent": "x"})


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in PUBLISHED.items() for key in keys])
def test_protocol_equals_its_source(name: str, key: str) -> None:
    assert at(published_cfg(load_protocol(name)), key) == PUBLISHED[name][key]


@pytest.mark.parametrize("name", protocol_names())
def test_unscaled_run_deviates_in_what_one_process_and_the_data_need_only(name: str) -> None:
    protocol = load_protocol(name)
    classes = published_cfg(protocol).MODEL.ROI_HEADS.NUM_CLASSES
    masks = published_cfg(protocol).INPUT.MASK_FORMAT
    cfg = build_cfg(protocol, resolve(protocol), weights(protocol.backbones[0]), classes, masks)
    expected = (
        "NORM: BN, published SyncBN (the same statistics, over the whole batch)",
        "SOLVER.AMP.ENABLED: False, published True (a CPU has no fp16 training)",
    )
    assert all(line.endswith(expected) for line in deviations(cfg, protocol))


@pytest.mark.parametrize("name", PUBLISHED)
def test_config_that_a_run_writes_down_says_what_the_sources_say(name: str, tmp_path: Path) -> None:
    from detectron2.config import get_cfg

    protocol = load_protocol(name)
    cfg = build_cfg(protocol, resolve(protocol), weights(), processes=8, device="cuda", classes=CLASSES.get(name, 80))
    (tmp_path / "detectron2.yaml").write_text(cfg.dump())
    read = get_cfg()
    read.merge_from_file(str(tmp_path / "detectron2.yaml"), allow_unsafe=False)
    assert {key: at(read, key) for key in PUBLISHED[name]} == PUBLISHED[name]


def test_padding_that_differs_from_a_published_gpu_is_named() -> None:
    from transfer.detect import padding_deviation

    published = load_protocol("c4-1x")
    assert padding_deviation(published, 2) == []
    line = "padding: 16 images per process padded to one size, published 2 per GPU"
    assert padding_deviation(published, 16) == [line]
    assert padding_deviation(load_protocol("sample"), 4) == []  # no paper's protocol


def rules(findings: list[Finding]) -> list[str]:
    return [finding.rule for finding in findings]


@pytest.mark.parametrize("name", protocol_names())
def test_no_built_in_protocol_breaks_a_rule(name: str) -> None:
    protocol = load_protocol(name)
    content = weights(protocol.backbones[0])
    assert lint(published_cfg(protocol), protocol, content, processes=8) == []
    assert lint(build_cfg(protocol, resolve(protocol), content), protocol, content) == []


WRONG = {
    "BGR": ("FORMAT: RGB", "FORMAT: BGR", "channel order: images come as BGR"),
    "mean in 0..1": ("[123.675, 116.28, 103.53]", "[0.485, 0.456, 0.406]", "pixel mean: .* 0..255, not in 0..1"),
    "std of one": ("[58.395, 57.12, 57.375]", "[1.0, 1.0, 1.0]", "pixel std: "),
    "stride": ("STRIDE_IN_1X1: false", "STRIDE_IN_1X1: true", "stride: strides stand in 1x1"),
    "frozen": ("FREEZE_AT: 0", "FREEZE_AT: 2", "frozen layers: stages below 2"),
    "norm": ("NORM: SyncBN", "NORM: FrozenBN", "batch norm: MODEL.RESNETS.NORM is FrozenBN"),
    "no extra norm": ("Res5ROIHeadsExtraNorm", "Res5ROIHeads", "extra norm: Res5ROIHeads has no norm after res5"),
    "no precise norm": ("ENABLED: true", "ENABLED: false", "precise batch norm: off"),
    "rate": ("BASE_LR: 0.02", "BASE_LR: 0.01", "learning rate: 0.01 for 16 images; .* 0.02$"),
    "rate of another batch": ("IMS_PER_BATCH: 16", "IMS_PER_BATCH: 8", "learning rate: 0.02 for 8 .* 0.01$"),
    "steps": ("[60000, 80000]", "[60000]", r"steps: the rate falls at \[60000\] of 90000; .* 67% and 89%"),
    "length": ("MAX_ITER: 90000", "MAX_ITER: 12000", "length: 12000 iterations"),
    "sizes": ("[640, 672, 704, 736, 768, 800]", "[800]", "training sizes: "),
    "proposals": ("PRE_NMS_TOPK_TEST: 6000", "PRE_NMS_TOPK_TEST: 1000", r"test proposals: \[1000, 1000\]"),
}
"""Planted in a protocol's file, which `deviations` takes for the truth."""


@pytest.mark.parametrize("fault", WRONG)
def test_linter_catches_what_is_wrong_in_a_protocols_own_file(tmp_path: Path, fault: str) -> None:
    old, new, message = WRONG[fault]
    protocol = load_protocol(written(tmp_path, old, new))
    cfg = published_cfg(protocol)
    assert deviations(cfg, protocol) == []
    found = [str(finding) for finding in lint(cfg, protocol, weights(), processes=8)]
    assert any(re.search(message, line) for line in found), found
    unrelated = {"length", "steps"} if fault in ("length", "steps", "rate of another batch") else set()
    assert {line.partition(":")[0] for line in found} - unrelated - {message.partition(":")[0]} == set()


def plant_frozen(model: Any) -> None:
    model.backbone.res3.requires_grad_(False)


def plant_other_norm(model: Any) -> None:
    from detectron2.layers import FrozenBatchNorm2d

    model.roi_heads.res5[0].conv1.norm = FrozenBatchNorm2d(512)


def plant_no_extra_norm(model: Any) -> None:
    del model.roi_heads.res5.norm


@pytest.fixture(scope="module")
def c4_model() -> Any:
    import torch
    from detectron2.modeling import build_model

    protocol = load_protocol("c4-1x")
    with torch.device("meta"):  # its structure is all that is looked at
        return build_model(build_cfg(protocol, resolve(protocol), weights(), device="meta"))


@pytest.mark.parametrize("name", ["c4-1x-frozen", "fpn-1x-frozen"])
def test_linter_knows_frozen_backbones(name: str) -> None:
    import torch
    from detectron2.modeling import build_model

    protocol = load_protocol(name)
    cfg = build_cfg(protocol, resolve(protocol), weights(), device="meta")
    with torch.device("meta"):
        model = build_model(cfg)
    assert lint(cfg, protocol, weights(), model) == []
    part = model.roi_heads.res5 if name.startswith("c4") else model.backbone.bottom_up.res5
    next(part.parameters()).requires_grad_(True)
    (finding,) = lint(cfg, protocol, weights(), model)
    assert re.match(r"frozen layers: 1 parameters of the backbone are trained, e\.g\. .*res5", str(finding))
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    assert "FREEZE_AT is 2; a frozen backbone has 5" in str(lint(cfg, protocol, weights())[0])


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_frozen, r"frozen layers: \d+ parameters of the model are not trained, e\.g\. backbone\.res3"),
        (plant_other_norm, r"batch norm: 1 norms of the model are not BN, e\.g\. roi_heads\.res5\.0\.conv1\.norm"),
        (plant_no_extra_norm, "extra norm: the model has no norm after res5"),
    ],
)
def test_linter_looks_at_the_built_model(c4_model: Any, plant: Any, message: str) -> None:
    protocol = load_protocol("c4-1x")
    cfg = build_cfg(protocol, resolve(protocol), weights())
    model = copy.deepcopy(c4_model)
    assert lint(cfg, protocol, weights(), model) == []
    plant(model)
    (found,) = lint(cfg, protocol, weights(), model)
    assert re.match(message, str(found))


def test_many_processes_need_a_synchronised_norm() -> None:
    protocol = load_protocol("fpn-1x")
    cfg = build_cfg(protocol, resolve(protocol), weights())  # for one process
    assert lint(cfg, protocol, weights()) == []
    assert rules(lint(cfg, protocol, weights(), processes=2)) == ["batch norm", "batch norm"]


def test_finding_is_left_out_where_a_deviation_says_so_already() -> None:
    protocol = load_protocol("c4-1x")
    cfg = build_cfg(protocol, resolve(protocol, iterations=900), weights())
    findings = lint(cfg, protocol, weights())
    assert rules(findings) == ["length"]
    assert not_yet_named(findings, deviations(cfg, protocol)) == []
    assert not_yet_named(findings, []) == ["length: 900 iterations; in the papers 90000 or 180000"]


@pytest.mark.parametrize(
    ("name", "backbone"), [("sample", "resnet18-32"), ("sample-full", "resnet34"), ("fpn-1x", "resnet101")]
)
def test_of_a_paper_alone_another_backbone_is_a_deviation(name: str, backbone: str) -> None:
    protocol = load_protocol(name)
    published = published_cfg(protocol)
    cfg = build_cfg(
        protocol,
        resolve(protocol),
        weights(backbone),
        published.MODEL.ROI_HEADS.NUM_CLASSES,
        published.INPUT.MASK_FORMAT,
    )
    structural = [line for line in deviations(cfg, protocol) if line.startswith(("MODEL.RESNETS.", "MODEL.BACKBONE."))]
    assert bool([line for line in structural if "NORM" not in line]) == protocol.papers_rules


PLANTED = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [0.485, 0.456, 0.406],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "TEST.PRECISE_BN.ENABLED": False,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.STEPS": [60000],
}


@pytest.mark.parametrize("key", PLANTED)
def test_linter_names_each_planted_deviation(key: str) -> None:
    protocol = load_protocol("c4-1x")
    cfg = published_cfg(protocol)
    assert deviations(cfg, protocol) == []
    cfg.merge_from_list([key, PLANTED[key]])
    found = deviations(cfg, protocol)
    assert len(found) == 1
    assert found[0].startswith(f"{key}: ")


def test_scaling_is_in_proportion_and_named() -> None:
    protocol = load_protocol("c4-1x")
    cfg = build_cfg(protocol, resolve(protocol, iterations=900, image_size=400, batch=4), weights())
    assert list(cfg.SOLVER.STEPS) == [600, 800]
    assert cfg.SOLVER.WARMUP_ITERS == 10
    assert pytest.approx(0.005) == cfg.SOLVER.BASE_LR
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == [320, 336, 352, 368, 384, 400]
    assert cfg.INPUT.MAX_SIZE_TEST == 666
    assert cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 128
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 250
    named = {line.split(":")[0] for line in deviations(cfg, protocol)}
    assert {"SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "INPUT.MIN_SIZE_TEST"} <= named
    assert {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.RPN.POST_NMS_TOPK_TEST"} <= named


@pytest.mark.parametrize(
    ("batch", "iterations", "steps"), [(8, 180_000, [120_000, 160_000]), (32, 45_000, [30_000, 40_000])]
)
def test_another_batch_sees_as_many_images(batch: int, iterations: int, steps: list[int]) -> None:
    protocol = load_protocol("c4-1x")
    settings = resolve(protocol, batch=batch)
    cfg = build_cfg(protocol, settings, weights())
    assert iterations == cfg.SOLVER.MAX_ITER
    assert list(cfg.SOLVER.STEPS) == steps
    assert pytest.approx(0.02 * batch / 16) == cfg.SOLVER.BASE_LR
    assert schedule_lines(protocol, settings)[0].startswith(
        f"schedule: {iterations} iterations of {batch} images see as"
    )
    assert rules(lint(cfg, protocol, weights())) == []


def test_share_of_the_images_is_named_where_it_is_another() -> None:
    protocol = load_protocol("c4-1x")
    assert schedule_lines(protocol, resolve(protocol)) == []
    (line,) = schedule_lines(protocol, resolve(protocol, batch=8, iterations=90_000))
    assert line == "images seen: 720000, 0.5 of the published 1440000; --iterations 180000 sees as many"


def test_own_normalisation_of_a_checkpoint_is_used_and_named() -> None:
    protocol = load_protocol("c4-1x")
    cfg = build_cfg(protocol, resolve(protocol), weights(mean=(0.5, 0.5, 0.5)))
    assert list(cfg.MODEL.PIXEL_MEAN) == [127.5] * 3
    assert any(line.startswith("MODEL.PIXEL_MEAN") and "checkpoint" in line for line in deviations(cfg, protocol))


@given(iterations=st.integers(1, 200_000), size=st.integers(16, 1600), batch=st.integers(1, 64))
def test_any_scale_gives_a_schedule_that_detectron2_accepts(iterations: int, size: int, batch: int) -> None:
    protocol = load_protocol("c4-2x")
    cfg = build_cfg(protocol, resolve(protocol, iterations=iterations, image_size=size, batch=batch), weights())
    steps = list(cfg.SOLVER.STEPS)
    assert steps == sorted(set(steps))
    assert all(0 < step < iterations for step in steps)
    assert min(cfg.SOLVER.WARMUP_ITERS, cfg.MODEL.RPN.POST_NMS_TOPK_TEST, *cfg.INPUT.MIN_SIZE_TRAIN) >= 1


@pytest.mark.parametrize("option", ["iterations", "image_size", "batch", "lr"])
def test_settings_that_are_not_positive_are_refused_by_name(option: str) -> None:
    with pytest.raises(UserError, match=f"{option}: must be positive"):
        resolve(load_protocol("c4-1x"), **{option: 0})


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown protocol 'c4-1'; did you mean 'c4-1x'"):
        load_protocol("c4-1")


@pytest.mark.parametrize(("protocol", "arch"), [("c4-1x", "resnet18"), ("sample", "resnet50"), ("fpn-1x", "resnet34")])
def test_backbone_that_does_not_fit_is_refused_with_what_would(protocol: str, arch: str) -> None:
    with pytest.raises(UserError, match=rf"protocol {protocol} is for .* not for {arch}; for it there are: "):
        check_fit(load_protocol(protocol), arch)


def test_protocols_extend_each_other_key_by_key(tmp_path: Path) -> None:
    own = tmp_path / "boxes.yaml"
    own.write_text("extends: fpn-1x\ntitle: boxes\ndetectron2: {MODEL: {MASK_ON: false, FPN: {NORM: GN}}}\n")
    protocol, base = load_protocol(str(own)), load_protocol("fpn-1x")
    assert (protocol.name, protocol.title, protocol.source) == ("boxes", "boxes", base.source)
    model = protocol.detectron2["MODEL"]
    assert model == {**base.detectron2["MODEL"], "MASK_ON": False, "FPN": {"NORM": "GN"}}
    assert protocol.detectron2["SOLVER"] == base.detectron2["SOLVER"]


def written(folder: Path, old: str, new: str) -> str:
    from transfer.protocol import PROTOCOLS

    text = (PROTOCOLS / "c4-1x.yaml").read_text()
    assert old in text
    (folder / "own.yaml").write_text(text.replace(old, new))
    return str(folder / "own.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("backbones:", "backbone:", r"backbone: unknown key; did you mean 'backbones'"),
        ("title: Mask", "titel: Mask", "titel: unknown key"),
        ("MAX_ITER: 90000", "MAX_ITERS: 90000", r"detectron2\.SOLVER\.MAX_ITER: is needed"),
        ("FREEZE_AT: 0", "FREEZE: 0", r"MODEL\.BACKBONE\.FREEZE"),
        ("FREEZE_AT: 0", "FREEZE_AT: none", r"FREEZE_AT|[Tt]ype mismatch"),
        ("mask_rcnn_R_50_C4_1x.yaml", "mask_rcnn_R_50_C5.yaml", "not in Detectron2's model zoo"),
        ("title:", "title: [", "not readable as YAML"),
    ],
)
def test_faulty_protocol_files_are_one_clear_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = written(tmp_path, old, new)
    with pytest.raises(UserError, match=message) as error:
        published_cfg(load_protocol(path))
    assert "\n" not in str(error.value)
