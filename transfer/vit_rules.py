"""Rules for detectors with a vision transformer: that it is what ViTDet trains, and that a frozen one is frozen.

ViTDet's values are read from the suite's own vitdet-b-100ep and vitdet-l-100ep, which tests compare with Detectron2's
files; a protocol of one's own is compared with the one of its depth.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transfer.finding import Finding
from transfer.protocol import load_protocol, published_cfg
from transfer.vit_backbones import FROZEN_VIT, VITDET

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

    from transfer.protocol import Protocol

REFERENCES = {12: "vitdet-b-100ep", 24: "vitdet-l-100ep"}
"""By the transformer's depth."""
LVIS_REFERENCE = "vitdet-b-lvis-100ep"
LAYER_NORM = "LN"
RULES = {
    "window attention": ("MODEL.VIT.WINDOW", "MODEL.VIT.GLOBAL_BLOCKS"),
    "relative positions": ("MODEL.VIT.REL_POS",),
    "drop path": ("MODEL.VIT.DROP_PATH",),
    "layer decay": ("SOLVER.LAYER_DECAY",),
    "weight decay": ("SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM"),
    "warm-up": ("SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_FACTOR"),
    "large-scale jittering": ("INPUT.LSJ.ENABLED", "INPUT.LSJ.MIN_SCALE", "INPUT.LSJ.MAX_SCALE", "INPUT.LSJ.SIZE"),
    "test size": ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"),
    "padding": ("MODEL.VIT.SQUARE_PAD",),
    "flip": ("INPUT.RANDOM_FLIP",),
    "pyramid": ("MODEL.FPN.NORM", "MODEL.FPN.OUT_CHANNELS"),
    "RPN": ("MODEL.RPN.CONV_DIMS",),
    "box head": ("MODEL.ROI_BOX_HEAD.NUM_CONV", "MODEL.ROI_BOX_HEAD.NUM_FC", "MODEL.ROI_BOX_HEAD.NORM"),
    "mask head": ("MODEL.ROI_MASK_HEAD.NORM",),
    "class loss": ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "MODEL.ROI_BOX_HEAD.USE_FED_LOSS"),
    "sampling": ("DATALOADER.SAMPLER_TRAIN",),
}
"""Keys that have ViTDet's values, whatever the schedule is."""
HEAD_RULES = ("pyramid", "RPN", "box head", "mask head", "flip", "weight decay")
"""Those that also hold for a frozen transformer."""


def check_transformer_rules(cfg: "CfgNode", protocol: "Protocol", model: "nn.Module | None") -> Iterator[Finding]:
    """What breaks ViTDet's rules; of a frozen transformer, what is trained of it."""
    if protocol.frozen:
        yield from check_frozen_transformer(cfg, model)
    elif cfg.MODEL.BACKBONE.NAME != VITDET or cfg.MODEL.BACKBONE.FREEZE_AT:
        node = cfg.MODEL.BACKBONE
        text = f"the backbone is {node.NAME}, FREEZE_AT {node.FREEZE_AT}; ViTDet trains {VITDET}"
        yield Finding("frozen layers", ("MODEL.BACKBONE.NAME", "MODEL.BACKBONE.FREEZE_AT"), text)
    if not protocol.papers_rules:
        return
    name = REFERENCES.get(cfg.MODEL.VIT.DEPTH, REFERENCES[12])
    on_lvis = any("lvis" in name for name in cfg.DATASETS.TEST)
    reference = published_cfg(load_protocol(LVIS_REFERENCE if on_lvis else name))
    for rule, keys in RULES.items():
        if not protocol.frozen or rule in HEAD_RULES:
            yield from _differences(rule, keys, cfg, reference)
    yield from _check_schedule(cfg, protocol, reference)
    if model is not None and not protocol.frozen:
        yield from _check_model(cfg, model)


def check_frozen_transformer(cfg: "CfgNode", model: "nn.Module | None") -> Iterator[Finding]:
    """Nothing of the transformer is trained, and it is the one that was pretrained."""
    if cfg.MODEL.BACKBONE.NAME != FROZEN_VIT:
        text = f"the backbone is {cfg.MODEL.BACKBONE.NAME}; a frozen transformer is {FROZEN_VIT}"
        yield Finding("frozen layers", ("MODEL.BACKBONE.NAME",), text)
    if model is not None:
        trained = [name for name, parameter in _transformer(model).named_parameters() if parameter.requires_grad]
        if trained:
            yield Finding(
                "frozen layers", (), f"{len(trained)} parameters of the backbone are trained, e.g. {trained[0]}"
            )


def _differences(rule: str, keys: tuple[str, ...], cfg: "CfgNode", reference: "CfgNode") -> Iterator[Finding]:
    for key in keys:
        value, expected = _at(cfg, key), _at(reference, key)
        if value != expected:
            yield Finding(rule, (key,), f"{key} is {value}; in ViTDet {expected}")


def _check_schedule(cfg: "CfgNode", protocol: "Protocol", reference: "CfgNode") -> Iterator[Finding]:
    solver, published = cfg.SOLVER, reference.SOLVER
    if protocol.optimizer != "adamw":
        yield Finding("optimizer", (), f"{protocol.optimizer}; ViTDet has AdamW")
    if protocol.frozen:  # ours: its length is that of the ResNets' 1x
        return
    rate = published.BASE_LR * solver.IMS_PER_BATCH / published.IMS_PER_BATCH
    if abs(solver.BASE_LR - rate) > 0.01 * rate:
        text = f"{solver.BASE_LR:g} for {solver.IMS_PER_BATCH} images; in proportion to {published.BASE_LR:g} for "
        yield Finding("learning rate", ("SOLVER.BASE_LR",), f"{text}{published.IMS_PER_BATCH} it is {rate:g}")
    shares, expected = ([step / s.MAX_ITER for step in s.STEPS] for s in (solver, published))
    if len(shares) != len(expected) or any(abs(a - b) > 0.01 for a, b in zip(shares, expected)):
        text = f"the rate falls at {list(solver.STEPS)} of {solver.MAX_ITER}; in ViTDet at "
        yield Finding("steps", ("SOLVER.STEPS",), text + " and ".join(f"{share:.1%}" for share in expected))
    images = solver.MAX_ITER * solver.IMS_PER_BATCH
    if images not in _lengths(published):
        text = f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images; in ViTDet {published.MAX_ITER} of "
        yield Finding("length", ("SOLVER.MAX_ITER",), f"{text}{published.IMS_PER_BATCH}")


def _lengths(published: "CfgNode") -> tuple[int, ...]:
    """Images of ViTDet's 100 epochs, and of vitdet-1x, which names its own length in its title."""
    short = published_cfg(load_protocol("vitdet-1x")).SOLVER
    return published.MAX_ITER * published.IMS_PER_BATCH, short.MAX_ITER * short.IMS_PER_BATCH


def _check_model(cfg: "CfgNode", model: "nn.Module") -> Iterator[Finding]:
    """That the built model is what its config says."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        yield Finding("frozen layers", (), f"{len(frozen)} parameters of the model are not trained, e.g. {frozen[0]}")
    blocks = list(getattr(_transformer(model), "blocks", ()))
    windowed = sum(block.window_size > 0 for block in blocks)
    if cfg.MODEL.VIT.WINDOW and windowed != len(blocks) - min(len(blocks), cfg.MODEL.VIT.GLOBAL_BLOCKS):
        yield Finding("window attention", (), f"{windowed} of {len(blocks)} blocks of the model have windows")
    without = sum(not block.attn.use_rel_pos for block in blocks)
    if cfg.MODEL.VIT.REL_POS and without:
        yield Finding("relative positions", (), f"{without} blocks of the model have none")


def _transformer(model: "nn.Module") -> Any:
    return getattr(model.backbone, "net", model.backbone)


def _at(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple) else cfg
