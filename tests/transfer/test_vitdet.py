"""ViTDet here is Detectron2's: the same network, optimizer, augmentation and schedule; it trains, stops and goes on."""

import copy
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.coco_folder import write_coco
from tests.support.vit_backbone import vit_content, write_vit
from transfer.convert import IMAGENET_MEAN, IMAGENET_STD, Converted, read_d2
from transfer.protocol import build_cfg, load_protocol, published_cfg, resolve
from transfer.records import Options
from transfer.stages import detect_stage
from transfer.vit_backbones import global_blocks
from whitebench.errors import Interrupted
from whitebench.records import Record, stage_folder

pytestmark = pytest.mark.filterwarnings("ignore")


def weights(arch: str) -> Converted:
    return Converted({}, {"arch": arch, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "parent": "x"})


@pytest.fixture(scope="module")
def official() -> Iterator[Any]:
    """Detectron2's own Python config of ViTDet, ViT-B."""
    from detectron2.model_zoo import get_config

    return get_config("common/models/mask_rcnn_vitdet.py")


@pytest.fixture(scope="module")
def vitdet_b() -> Any:
    """vitdet-b-100ep, whole."""
    from detectron2.modeling import build_model

    protocol = load_protocol("vitdet-b-100ep")
    return build_model(build_cfg(protocol, resolve(protocol), weights("timm:vit_base_patch16_224")))


def test_network_is_that_of_detectron2s_own_config(official: Any, vitdet_b: Any) -> None:
    from detectron2.config import instantiate

    expected, ours = instantiate(official.model), vitdet_b
    assert shapes(ours) == shapes(expected)
    for a, b in ((ours.proposal_generator, expected.proposal_generator), (ours.roi_heads, expected.roi_heads)):
        for key in ("pre_nms_topk", "post_nms_topk", "nms_thresh", "batch_size_per_image", "positive_fraction"):
            assert getattr(a, key, None) == getattr(b, key, None), key
    assert blocks(ours) == blocks(expected)


def blocks(model: Any) -> list[Any]:
    """Window, relative positions and drop path of each block."""
    return [
        (block.window_size, block.attn.use_rel_pos, round(getattr(block.drop_path, "drop_prob", 0), 6))
        for block in model.backbone.net.blocks
    ]


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_small_network_gives_the_losses_of_detectron2s_config(official: Any) -> None:
    """Both in full, with the same weights and the same image."""
    from detectron2.config import instantiate
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances, PolygonMasks
    from detectron2.utils.events import EventStorage

    config = copy.deepcopy(official.model)
    net = config.backbone.net
    net.img_size, net.embed_dim, net.depth, net.num_heads, net.drop_path_rate = 64, 48, 2, 3, 0.0
    net.window_block_indexes, net.window_size, net.pretrain_img_size = [0], 2, 64
    config.backbone.square_pad = 64
    protocol = load_protocol("vitdet-b-100ep")
    cfg = build_cfg(protocol, resolve(protocol, image_size=64), vit_content("timm:vit_base_patch16_224"), classes=80)
    cfg.defrost()
    cfg.MODEL.VIT.WINDOW, cfg.MODEL.VIT.GLOBAL_BLOCKS, cfg.MODEL.VIT.DROP_PATH = 2, 1, 0.0
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 2000, 1000
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 512
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(config.pixel_mean), list(config.pixel_std)
    torch.manual_seed(0)
    expected, ours = instantiate(config), build_model(cfg)
    ours.load_state_dict(expected.state_dict())
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    truth = Instances((48, 64))
    truth.gt_boxes, truth.gt_classes = Boxes(torch.tensor([[4.0, 4.0, 30.0, 40.0]])), torch.tensor([5])
    truth.gt_masks = PolygonMasks([[np.array([4.0, 4, 30, 4, 30, 40])]])
    losses = []
    for model in (expected, ours):
        torch.manual_seed(1)
        with EventStorage():
            losses.append(model.train()([{"image": image, "instances": truth}]))
    assert losses[0].keys() == losses[1].keys()
    assert {key: float(value) for key, value in losses[1].items()} == pytest.approx(
        {key: float(value) for key, value in losses[0].items()}, rel=1e-5
    )


def test_rates_and_decays_of_all_parameters_are_detectron2s(vitdet_b: Any) -> None:
    from detectron2.config import instantiate
    from detectron2.model_zoo import get_config
    from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

    from transfer.optimizers import build_optimizer

    model = vitdet_b
    config = get_config("common/optim.py").AdamW  # as projects/ViTDet sets it for ViT-B
    config.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=12, lr_decay_rate=0.7)
    config.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
    config.params.model = model
    expected = instantiate(config)
    ours = build_optimizer("adamw", published_cfg(load_protocol("vitdet-b-100ep")), model)
    assert settings(ours, model) == settings(expected, model)
    rates = {name: rate for name, (rate, _) in settings(ours, model).items()}
    assert rates["backbone.net.patch_embed.proj.weight"] == pytest.approx(1e-4 * 0.7**13)
    assert rates["backbone.simfp_2.0.weight"] == pytest.approx(1e-4)
    assert ours.defaults["betas"] == (0.9, 0.999)


def settings(optimizer: Any, model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize(("name", "arch"), [("vitdet-b-100ep", "base"), ("vitdet-l-100ep", "large")])
def test_schedule_and_input_are_the_published_ones(name: str, arch: str) -> None:
    """Values of projects/ViTDet, which the wheel of Detectron2 does not hold."""
    cfg = published_cfg(load_protocol(name))
    assert (cfg.SOLVER.MAX_ITER, list(cfg.SOLVER.STEPS)) == (184375, [163889, 177546])
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == (64, 1e-4, 0.1)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR, cfg.SOLVER.AMP.ENABLED) == (250, 0.001, True)
    assert {"base": (0.7, 0.1), "large": (0.8, 0.4)}[arch] == (cfg.SOLVER.LAYER_DECAY, cfg.MODEL.VIT.DROP_PATH)
    assert dict(cfg.INPUT.LSJ) == {"ENABLED": True, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0, "SIZE": 1024}
    assert (
        global_blocks(cfg.MODEL.VIT.DEPTH, cfg.MODEL.VIT.GLOBAL_BLOCKS)
        == {
            "base": [2, 5, 8, 11],
            "large": [5, 11, 17, 23],
        }[arch]
    )


def test_settings_on_lvis_are_the_published_ones() -> None:
    """Values of projects/ViTDet/configs/LVIS/mask_rcnn_vitdet_b_100ep.py."""
    cfg = published_cfg(load_protocol("vitdet-b-lvis-100ep"))
    assert (cfg.SOLVER.MAX_ITER, list(cfg.SOLVER.STEPS), cfg.SOLVER.BASE_LR) == (156250, [138889, 150463], 2e-4)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST) == (1203, 0.02)
    box = cfg.MODEL.ROI_BOX_HEAD
    assert (box.USE_SIGMOID_CE, box.USE_FED_LOSS, box.FED_LOSS_FREQ_WEIGHT_POWER) == (True, True, 0.5)
    assert box.FED_LOSS_NUM_CLASSES == 50
    assert (cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD) == ("RepeatFactorTrainingSampler", 0.001)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 300


def test_rate_over_the_schedule_is_that_of_detectron2s_scheduler() -> None:
    from detectron2.solver import WarmupParamScheduler, build_lr_scheduler
    from fvcore.common.param_scheduler import MultiStepParamScheduler

    total = 184375
    multi = MultiStepParamScheduler([1.0, 0.1, 0.01], milestones=[163889, 177546], num_updates=total)
    expected = WarmupParamScheduler(multi, 0.001, 250 / total, "linear")
    parameter = torch.nn.Parameter(torch.zeros(1))
    ours = build_lr_scheduler(published_cfg(load_protocol("vitdet-b-100ep")), torch.optim.AdamW([parameter]))
    for step in (0, 1, 100, 249, 250, 163888, 163889, 177545, 177546, 184374):
        assert ours._multiplier(step / total) == pytest.approx(expected(step / total), rel=1e-12), step


def test_augmentation_is_detectron2s_large_scale_jittering() -> None:
    from transfer.mappers import training_mapper

    cfg = published_cfg(load_protocol("vitdet-b-100ep"))
    mapper = training_mapper(cfg)
    flip, resize, crop = mapper.augmentations.augs
    assert type(flip).__name__, type(resize).__name__ == ("RandomFlip", "ResizeScale")
    assert (flip.horizontal, flip.prob) == (True, 0.5)
    assert (resize.min_scale, resize.max_scale, resize.target_height, resize.target_width) == (0.1, 2.0, 1024, 1024)
    assert (crop.crop_size, crop.pad) == ((1024, 1024), False)
    assert (mapper.recompute_boxes, mapper.image_format) == (True, "RGB")
    sample = training_mapper(published_cfg(load_protocol("sample-vitdet")))
    assert [type(step).__name__ for step in sample.augmentations.augs] == ["ResizeScale", "FixedSizeCrop"]  # digits


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_pyramid_has_strides_4_to_64_for_every_patch(patch: int) -> None:
    from detectron2.modeling import build_model

    protocol = load_protocol("sample-sfp-frozen")
    cfg = build_cfg(protocol, resolve(protocol), vit_content(patch_size=patch, img_size=4 * patch))
    backbone = build_model(cfg).backbone
    maps = backbone(torch.zeros(1, 3, 64, 96))
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    assert strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    expected = {"p2": (16, 24), "p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2)}
    assert {name: tuple(level.shape[-2:]) for name, level in maps.items()} == expected
    assert backbone.padding_constraints["size_divisibility"] == 32


# Training


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("data") / "tiny", coded=True)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def tiny(coco: Path, **changes: Any) -> Options:
    options = Options(protocol="sample-vitdet", coco=coco, iterations=4, image_size=64, batch=2, device="cpu")
    return replace(options, **changes)


def detect(d2_file: Path, options: Options) -> Record:
    return detect_stage(d2_file, options, say=lambda _: None)


def model_of(record: Record) -> dict[str, torch.Tensor]:
    path = stage_folder("detect", record.id) / record.artifacts["model"]["path"]
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return state


@pytest.mark.parametrize("protocol", ["sample-vitdet", "vitdet-s-100ep", "vitdet-1x"])
def test_vitdet_trains_every_part_and_leaves_ap(coco: Path, runs: Path, tmp_path: Path, protocol: str) -> None:
    d2_file = write_vit(tmp_path)
    record = detect(d2_file, tiny(coco, protocol=protocol, lr=0.001))
    assert record.status == "done"
    assert 0 <= record.metrics["box_AP"] <= 100
    assert record.metrics["tensors"] == record.metrics["tensors_expected"] == 27
    before, after = read_d2(d2_file).tensors, model_of(record)
    still = [name for name in before if name in after and np.array_equal(before[name], after[f"backbone.net.{name}"])]
    assert still == []
    moved = [name for name, tensor in after.items() if ".rel_pos_" in name and bool(tensor.abs().max() > 0)]
    assert len(moved) == 4  # tables that start at zero
    assert any(line.startswith("SOLVER.MAX_ITER: 4, published") for line in record.metrics["deviations"])


def test_frozen_transformer_ends_as_it_was_pretrained(coco: Path, runs: Path, tmp_path: Path) -> None:
    d2_file = write_vit(tmp_path, "timm:vit_small_patch14_reg4_dinov2", img_size=70)
    for protocol in ("sample-sfp-frozen", "sfp-frozen"):
        record = detect(d2_file, tiny(coco, protocol=protocol))
        after, before = model_of(record), read_d2(d2_file).tensors
        assert len(before) == 31
        for name, array in before.items():
            assert np.array_equal(after[f"backbone.net.network.{name}"].numpy(), array), name
        assert any(line.startswith("patch embedding: resampled from 14 to 16") for line in record.metrics["deviations"])


def test_frozen_transformer_has_neither_gradient_nor_drop_path(tmp_path: Path) -> None:
    from detectron2.modeling import build_model

    protocol = load_protocol("sample-sfp-frozen")
    model = build_model(build_cfg(protocol, resolve(protocol), vit_content())).train()
    network = model.backbone.net.network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    maps = model.backbone.net(torch.zeros(1, 3, 64, 64))["last_feat"]
    assert not maps.requires_grad
    assert maps.shape == (1, 48, 4, 4)


def test_interrupted_run_goes_on_and_ends_with_the_same_model(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfer.trainer import FineTuning

    d2_file, step = write_vit(tmp_path), FineTuning._step
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "whole"))
    whole = detect(d2_file, tiny(coco))

    def interrupted(self: FineTuning, batch: list[Any], iteration: int) -> dict[str, float]:
        values = step(self, batch, iteration)
        if iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "parts"))
    monkeypatch.setattr(FineTuning, "_step", interrupted)
    with pytest.raises(Interrupted):
        detect(d2_file, tiny(coco))
    monkeypatch.setattr(FineTuning, "_step", step)
    parts = detect(d2_file, tiny(coco))
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "whole"))
    expected = model_of(whole)
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "parts"))
    found = model_of(parts)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert {key: value for key, value in parts.metrics.items() if "AP" in key} == {
        key: value for key, value in whole.metrics.items() if "AP" in key
    }


def test_trained_vitdet_is_evaluated_again(coco: Path, runs: Path, tmp_path: Path) -> None:
    from transfer.evaluate_trained import evaluate_only

    record = detect(write_vit(tmp_path), tiny(coco))
    metrics, _ = evaluate_only(stage_folder("detect", record.id), coco, device="cpu", say=lambda _: None)
    assert metrics == {key: record.metrics[key] for key in metrics}


# Commands


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining's file with a small ViT."""
    from pretrain.checkpoint import write_backbone
    from tests.support.vit_backbone import vit_backbone

    backbone = vit_backbone()
    path = tmp_path_factory.mktemp("ckpt") / "backbone.safetensors"
    write_backbone(path, backbone.tensors, backbone.metadata)
    return path


def test_command_refuses_protocols_of_resnets_in_one_line(command: Any, ckpt: Path, coco: Path, tmp_path: Path) -> None:
    done = command(
        "transfer/coco_det.py", "--ckpt", str(ckpt), "--protocol", "c4-1x", "--coco", str(coco), "--out", str(tmp_path)
    )
    assert done.returncode == 2
    assert "30 of 30 tensors in timm's transformer as a frozen backbone" in done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert (
        "protocol c4-1x is for resnet50 or resnet101, not for timm:vit_tiny_patch16_224; for it there are: vitdet-1x"
        in line
    )
    assert not (tmp_path / "detect").exists()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_processes_train_vitdet_and_end_with_ap(command: Any, ckpt: Path, coco: Path, tmp_path: Path) -> None:
    """By Detectron2's launcher."""
    arguments = ["--ckpt", str(ckpt), "--coco", str(coco), "--out", str(tmp_path), "--image-size", "64", "--batch", "2"]
    arguments += ["--device", "cpu", "--gpus", "2", "--iterations", "3", "--protocol", "sample-vitdet"]
    done = command("transfer/coco_det.py", *arguments, timeout=1500)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("detect/*/run.json")
    record = json.loads(path.read_text())
    assert record["config"]["world_size"] == 2
    assert 0 <= record["metrics"]["box_AP"] <= 100
    assert record["metrics"]["tensors"] == 27
