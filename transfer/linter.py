"""Rules for what is about to be trained, checked before the first iteration.

`transfer.deviations` compares a run with its protocol's file, key by key. A file of one's own can be wrong
itself, and a model can differ from its config: so these rules check the config and the built model against what the
weights need and what the papers do (facebookresearch/moco, detection/configs).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transfer.detectron import FROZEN
from transfer.finding import Finding
from transfer.vit_backbones import cfg_has_vit
from transfer.vit_rules import check_transformer_rules

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

    from transfer.convert import Converted
    from transfer.protocol import Protocol

SYNCHRONISED = ("SyncBN", "naiveSyncBN", "nnSyncBN")
RATE, BATCH = 0.02, 16
"""The papers' learning rate and batch; with another batch the rate is in proportion."""
COCO_STEPS, VOC_STEPS = (2 / 3, 8 / 9), (18 / 24, 22 / 24)
"""Where the rate falls, in parts of the schedule: 60k and 80k of 90k; 18k and 22k of 24k."""
COCO_LENGTHS, VOC_LENGTHS = (90_000, 180_000), (24_000,)
COCO_SIZES, VOC_SIZES = tuple(range(640, 801, 32)), tuple(range(480, 801, 32))
CITYSCAPES_STEPS, CITYSCAPES_LENGTHS, CITYSCAPES_SIZES = (18 / 24,), (12_000,), tuple(range(800, 1025, 32))
"""Of Detectron2's file, whose 24k iterations are of 8 images."""
C4_PROPOSALS = (6000, 1000)
"""At test time, before and after suppression."""
PRECISE_BATCHES = 200
EXTRA_NORM = "roi_heads.res5.norm"


def lint(
    cfg: "CfgNode", protocol: "Protocol", content: "Converted", model: "nn.Module | None" = None, processes: int = 1
) -> list[Finding]:
    """What breaks a rule. The papers' rules apply unless the protocol has `papers_rules: false`.

    A protocol with `frozen: true` has the papers' rules, but for the backbone, of which nothing may be trained,
    whatever `papers_rules` says. Detectors with a vision transformer have the rules of ViTDet.

    Args:
        cfg: as it is run.
        content: the backbone: what normalisation and layout its weights need.
        model: built from `cfg`, before the first iteration; None: only the config is checked.
        processes: in one, plain batch norm has the statistics of the whole batch, as synchronised norms have in many.
    """
    findings = list(_check_weights(cfg, content))
    if cfg_has_vit(cfg):
        return [*findings, *check_transformer_rules(cfg, protocol, model)]
    if protocol.frozen and not protocol.papers_rules:
        findings += _check_frozen_layers(cfg, frozen=True)
        findings += _check_frozen_model(cfg, model) if model is not None else []
    if protocol.papers_rules:
        findings += [
            *_check_frozen_layers(cfg, protocol.frozen),
            *_check_training(cfg, processes),
            *_check_schedule(cfg, protocol.optimizer),
            *_check_input(cfg),
        ]
        findings += _check_model(cfg, model, protocol.frozen) if model is not None else []
    return findings


def not_yet_named(findings: list[Finding], deviations: list[str]) -> list[str]:
    """Lines for findings about keys that are not in `deviations`."""
    named = {line.partition(":")[0] for line in deviations}
    return [str(finding) for finding in findings if not named.intersection(finding.keys)]


def _check_weights(cfg: "CfgNode", content: "Converted") -> Iterator[Finding]:
    """What every protocol needs: the pretrained weights expect RGB, their mean and their strides."""
    if cfg.INPUT.FORMAT != "RGB":
        text = f"images come as {cfg.INPUT.FORMAT}, but the weights were trained on RGB"
        yield Finding("channel order", ("INPUT.FORMAT",), text)
    for key, values, expected in (
        ("PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, content.pixel_mean),
        ("PIXEL_STD", cfg.MODEL.PIXEL_STD, content.pixel_std),
    ):
        if len(values) != 3 or any(abs(value - other) > 0.5 for value, other in zip(values, expected)):
            scale = "; images are in 0..255, not in 0..1" if max(values) <= 1 else ""
            text = f"{_plain(values)}, but the weights were trained with {_plain(expected)}{scale}"
            yield Finding(f"pixel {key[6:].lower()}", (f"MODEL.{key}",), text)
    if not cfg_has_vit(cfg) and cfg.MODEL.RESNETS.STRIDE_IN_1X1 and cfg.MODEL.RESNETS.DEPTH >= 50:
        text = "strides stand in 1x1 convolutions; in the ResNet of the weights they are in the 3x3 ones"
        yield Finding("stride", ("MODEL.RESNETS.STRIDE_IN_1X1",), text)


def _check_frozen_layers(cfg: "CfgNode", frozen: bool) -> Iterator[Finding]:
    freeze_at, text = cfg.MODEL.BACKBONE.FREEZE_AT, None
    if frozen and freeze_at < FROZEN:
        text = f"FREEZE_AT is {freeze_at}; a frozen backbone has {FROZEN}"
    elif not frozen and freeze_at != 0:
        text = f"stages below {freeze_at} stay frozen; the papers fine-tune all layers"
    if text:
        yield Finding("frozen layers", ("MODEL.BACKBONE.FREEZE_AT",), text)


def _check_training(cfg: "CfgNode", processes: int) -> Iterator[Finding]:
    valid = (*SYNCHRONISED, "BN") if processes == 1 else SYNCHRONISED
    for key, norm in _norms(cfg):
        if norm not in valid:
            yield Finding(
                "batch norm", (key,), f"{key} is {norm or 'none'}; the papers synchronise it over the whole batch"
            )
    if _is_c4(cfg) and cfg.MODEL.ROI_HEADS.NAME != "Res5ROIHeadsExtraNorm":
        text = f"{cfg.MODEL.ROI_HEADS.NAME} has no norm after res5; MoCo's Res5ROIHeadsExtraNorm has"
        yield Finding("extra norm", ("MODEL.ROI_HEADS.NAME",), text)
    precise = cfg.TEST.PRECISE_BN
    if not precise.ENABLED:
        text = "off; the papers evaluate with statistics of the final weights"
        yield Finding("precise batch norm", ("TEST.PRECISE_BN.ENABLED",), text)
    elif precise.NUM_ITER < PRECISE_BATCHES:
        text = f"over {precise.NUM_ITER} batches, not {PRECISE_BATCHES}"
        yield Finding("precise batch norm", ("TEST.PRECISE_BN.NUM_ITER",), text)


def _check_schedule(cfg: "CfgNode", optimizer: str) -> Iterator[Finding]:
    solver, (expected, lengths, _) = cfg.SOLVER, _schedule_of(cfg)
    rate = RATE * solver.IMS_PER_BATCH / BATCH
    if optimizer != "sgd":
        yield Finding("optimizer", (), f"{optimizer}; the papers use SGD with momentum 0.9")
    elif abs(solver.BASE_LR - rate) > 0.01 * rate:
        text = (
            f"{solver.BASE_LR:g} for {solver.IMS_PER_BATCH} images; in proportion to {RATE} for {BATCH} it is {rate:g}"
        )
        yield Finding("learning rate", ("SOLVER.BASE_LR",), text)
    for key, value in (("MOMENTUM", 0.9), ("WEIGHT_DECAY", 1e-4), ("GAMMA", 0.1)):
        if solver[key] != value:
            yield Finding(
                key.lower().replace("_", " "), (f"SOLVER.{key}",), f"{solver[key]:g}, in the papers {value:g}"
            )
    shares = tuple(step / solver.MAX_ITER for step in solver.STEPS)
    if len(shares) != len(expected) or any(abs(a - b) > 0.01 for a, b in zip(shares, expected)):
        text = f"the rate falls at {_plain(solver.STEPS)} of {solver.MAX_ITER}; in the papers at " + " and ".join(
            f"{share:.0%}" for share in expected
        )
        yield Finding("steps", ("SOLVER.STEPS",), text)
    lengths = tuple(round(length * BATCH / solver.IMS_PER_BATCH) for length in lengths)
    if solver.MAX_ITER not in lengths:
        text = f"{solver.MAX_ITER} iterations; in the papers {' or '.join(map(str, lengths))}"
        text += f" of {solver.IMS_PER_BATCH} images" if solver.IMS_PER_BATCH != BATCH else ""
        yield Finding("length", ("SOLVER.MAX_ITER",), text)


def _check_input(cfg: "CfgNode") -> Iterator[Finding]:
    node, rpn, (_, _, sizes) = cfg.INPUT, cfg.MODEL.RPN, _schedule_of(cfg)
    if tuple(node.MIN_SIZE_TRAIN) != sizes:
        text = f"shorter sides {_plain(node.MIN_SIZE_TRAIN)}; in the papers {sizes[0]} to {sizes[-1]} by 32"
        yield Finding("training sizes", ("INPUT.MIN_SIZE_TRAIN",), text)
    if sizes[-1] != node.MIN_SIZE_TEST:
        text = f"shorter side {node.MIN_SIZE_TEST}; in the papers {sizes[-1]}"
        yield Finding("test size", ("INPUT.MIN_SIZE_TEST",), text)
    if node.RANDOM_FLIP != "horizontal":
        yield Finding("flip", ("INPUT.RANDOM_FLIP",), f"{node.RANDOM_FLIP}; in the papers horizontal")
    counts = rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST
    if _is_c4(cfg) and counts != C4_PROPOSALS:
        text = f"{_plain(counts)} before and after suppression; in the papers {_plain(C4_PROPOSALS)}"
        yield Finding("test proposals", ("MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RPN.POST_NMS_TOPK_TEST"), text)


def _check_model(cfg: "CfgNode", model: "nn.Module", frozen_backbone: bool) -> Iterator[Finding]:
    """That the built model is what its config says."""
    from detectron2.layers import FrozenBatchNorm2d, get_norm

    if frozen_backbone:
        yield from _check_frozen_model(cfg, model)

    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen and cfg.MODEL.BACKBONE.FREEZE_AT == 0:
        yield Finding("frozen layers", (), f"{len(frozen)} parameters of the model are not trained, e.g. {frozen[0]}")
    needs_extra = _is_c4(cfg) and cfg.MODEL.ROI_HEADS.NAME.endswith("ExtraNorm")
    if needs_extra and _at(model, EXTRA_NORM) is None:
        yield Finding("extra norm", (), "the model has no norm after res5, whatever its config says")
    kind = type(get_norm(cfg.MODEL.RESNETS.NORM, 8))
    norms = _pretrained_norms(cfg, model)
    others = [
        name
        for name, norm in norms
        if type(norm) is not (FrozenBatchNorm2d if frozen_backbone and name != EXTRA_NORM else kind)
    ]
    if others:
        text = f"{len(others)} norms of the model are not {cfg.MODEL.RESNETS.NORM}, e.g. {others[0]}"
        yield Finding("batch norm", (), text)


def _check_frozen_model(cfg: "CfgNode", model: "nn.Module") -> Iterator[Finding]:
    trained = [
        name
        for part in _pretrained_parts(cfg)
        for name, parameter in _named(model, part)
        if parameter.requires_grad and not name.startswith(EXTRA_NORM)
    ]
    if trained:
        yield Finding("frozen layers", (), f"{len(trained)} parameters of the backbone are trained, e.g. {trained[0]}")


def _named(model: "nn.Module", path: str) -> Iterator[tuple[str, Any]]:
    module = _at(model, path)
    for name, parameter in module.named_parameters() if module is not None else ():
        yield f"{path}.{name}", parameter


def _pretrained_parts(cfg: "CfgNode") -> tuple[str, ...]:
    """The modules from stem to res5: in a C4 model res5 is part of the head."""
    return ("backbone", "roi_heads.res5") if _is_c4(cfg) else ("backbone.bottom_up",)


def _pretrained_norms(cfg: "CfgNode", model: "nn.Module") -> Iterator[tuple[str, "nn.Module"]]:
    """Those of stem to res5, and the one after it."""
    from detectron2.layers import FrozenBatchNorm2d
    from torch import nn

    kinds = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    for part in _pretrained_parts(cfg):
        for name, module in _at(model, part).named_modules() if _at(model, part) is not None else ():
            if isinstance(module, kinds):
                yield f"{part}.{name}", module


def _norms(cfg: "CfgNode") -> Iterator[tuple[str, str]]:
    """Keys and values of the norms that the papers synchronise: the backbone's (with the head's res5), and FPN's."""
    yield "MODEL.RESNETS.NORM", cfg.MODEL.RESNETS.NORM
    if not _is_c4(cfg):
        yield "MODEL.FPN.NORM", cfg.MODEL.FPN.NORM


def _at(module: "nn.Module", path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
    return module


def _is_c4(cfg: "CfgNode") -> bool:
    return "fpn" not in str(cfg.MODEL.BACKBONE.NAME)


def _schedule_of(cfg: "CfgNode") -> tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...]]:
    """Steps in parts of the schedule, lengths in iterations of 16 images, and sizes in training, by the data set."""
    names = " ".join(cfg.DATASETS.TEST)
    if "voc" in names:
        return VOC_STEPS, VOC_LENGTHS, VOC_SIZES
    if "cityscapes" in names:
        return CITYSCAPES_STEPS, CITYSCAPES_LENGTHS, CITYSCAPES_SIZES
    return COCO_STEPS, COCO_LENGTHS, COCO_SIZES


def _plain(values: Any) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
