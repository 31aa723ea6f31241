"""Detection protocols: reviewed files in Detectron2's own keys, scaled down on request.

A protocol is what its source publishes. Whatever a run does differently is named by `transfer.deviations`, key by key,
and recorded, so that a row of a table is never silently incomparable.
"""

import math
from dataclasses import field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transfer.scaling import Settings, scale
from transfer.vit_backbones import add_vit_keys, has_vit, set_structure
from transfer.vit_structure import is_vit
from whitebench.config import strict, validated
from whitebench.errors import UserError
from whitebench.hashing import canonical
from whitebench.inheritance import Library

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from transfer.convert import Converted
    from transfer.detection_set import DetectionSet

PROTOCOLS = Path(__file__).parent / "protocols"
LIBRARY = Library("protocol", PROTOCOLS, nested=True)
STATED = (
    ("SOLVER", "MAX_ITER"),
    ("SOLVER", "STEPS"),
    ("SOLVER", "IMS_PER_BATCH"),
    ("SOLVER", "BASE_LR"),
    ("INPUT", "MIN_SIZE_TRAIN"),
    ("INPUT", "MIN_SIZE_TEST"),
)
"""What every protocol states, whatever its base states: it can be scaled where Detectron2 is not installed."""


@strict
class Protocol:
    """How a backbone is fine-tuned and evaluated on detection."""

    name: str
    title: str
    source: str
    """Where each setting comes from."""
    backbones: tuple[str, ...]
    """Architectures that fit; * stands for any text, as in timm:vit_small_*."""
    base: str
    """A config of Detectron2's model zoo."""
    frozen: bool = False
    """Whether the backbone is not trained: neither its weights nor its statistics change (see FREEZE_AT)."""
    papers_rules: bool = True
    """Whether the papers' rules apply (see `transfer.linter`); where not, only what the weights need is looked at."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd is Detectron2's usual one; adamw that of its later baselines (ViTDet), with SOLVER's rate and schedule."""
    detectron2: dict[str, Any] = field(default_factory=dict)
    """What the protocol sets on top of `base`, nested by Detectron2's own keys."""

    @property
    def determines(self) -> dict[str, Any]:
        """The keys on which a run depends; those that came later only where they are set, so that ids stay."""
        ignored = {"papers_rules", *(() if self.frozen else ("frozen",))}
        return {key: value for key, value in canonical(self).items() if key not in ignored}


def protocol_names() -> list[str]:
    return LIBRARY.names()


def load_protocol(name: str) -> Protocol:
    """The protocol `name` of `transfer/protocols`, or of a path that ends in .yaml, with what it extends.

    Raises:
        UserError: unknown (the nearest is named), an unknown key, a wrong type, a needed key that is missing.
    """
    protocol: Protocol = validated(Protocol, {"name": Path(name).stem, **LIBRARY.read(name)}, where=name)
    for section, key in STATED:
        if key not in (protocol.detectron2.get(section) or {}):
            raise UserError(f"{name}: detectron2.{section}.{key}: is needed")
    return protocol


def resolve(
    protocol: Protocol,
    *,
    iterations: int | None = None,
    image_size: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
) -> Settings:
    """The protocol's own settings where an option is None.

    The learning rate follows the batch in proportion, and the number of iterations in inverse proportion, so that as
    many images are seen (He's advice in facebookresearch/moco#11; Detectron2's `auto_scale_workers`).

    Raises:
        UserError: a setting that is not positive.
    """
    solver = protocol.detectron2["SOLVER"]
    published_batch, published_lr = solver["IMS_PER_BATCH"], solver["BASE_LR"]
    size = protocol.detectron2["INPUT"]["MIN_SIZE_TEST"] if image_size is None else image_size
    chosen = {"iterations": iterations, "image_size": size, "batch": batch, "lr": lr}
    for name, value in chosen.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}: must be positive, not {value}")
    batch = published_batch if batch is None else batch
    if iterations is None:
        iterations = max(1, round(solver["MAX_ITER"] * published_batch / batch))
    return Settings(iterations, size, batch, published_lr * batch / published_batch if lr is None else lr)


def check_fit(protocol: Protocol, arch: str) -> None:
    """Raises `UserError` where the protocol's detector cannot take such a backbone."""
    if not fits(protocol, arch):
        fitting = fitting_protocols(arch)
        other = f"; for it there are: {', '.join(fitting)}" if fitting else "; no protocol takes it"
        raise UserError(f"protocol {protocol.name} is for {' or '.join(protocol.backbones)}, not for {arch}{other}")


def fitting_protocols(arch: str) -> list[str]:
    """Names of the protocols for an architecture: published ones first, then frozen ones, then the sample's."""
    protocols = [load_protocol(name) for name in protocol_names()]
    protocols.sort(key=lambda protocol: (not protocol.papers_rules, protocol.frozen, protocol.name))
    return [protocol.name for protocol in protocols if fits(protocol, arch)]


def fits(protocol: Protocol, arch: str) -> bool:
    """Whether the protocol is for this architecture."""
    return any(fnmatchcase(arch, pattern) for pattern in protocol.backbones)


def check_transformer(protocol: Protocol, content: "Converted") -> None:
    """Raises `UserError` where Detectron2's ViT cannot compute what the checkpoint's transformer does."""
    if not is_vit(content.arch) or protocol.frozen:
        return
    refusal = content.structure.refusal
    if refusal:
        frozen = [name for name in fitting_protocols(content.arch) if load_protocol(name).frozen]
        raise UserError(
            f"protocol {protocol.name} trains Detectron2's ViT, which cannot hold this {content.arch}: {refusal}; "
            f"frozen it can be used as it is: {', '.join(frozen)}"
        )


def check_masks(protocol: Protocol, cfg: "CfgNode", data: "DetectionSet") -> None:
    """Raises `UserError` where the protocol trains masks and the data have boxes alone."""
    if cfg.MODEL.MASK_ON and not data.has_masks:
        other = "" if has_vit(protocol.detectron2) else "c4-24k, or "
        raise UserError(
            f"protocol {protocol.name} needs masks, and these annotations have boxes alone; use {other}a protocol "
            f"of your own that extends {protocol.name} with detectron2: {{MODEL: {{MASK_ON: false}}}}"
        )


def check_federated(protocol: Protocol, cfg: "CfgNode", data: "DetectionSet") -> None:
    """Raises `UserError` where the protocol has a federated loss, and the data do not count images by class."""
    from transfer.detection_set import form

    if cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS and form(data) != "LVIS":
        raise UserError(
            f"protocol {protocol.name} has the federated loss of LVIS, and these annotations are not of its form; use "
            "vitdet-b-100ep or fpn-1x"
        )


def published_form(protocol: Protocol) -> str:
    """Of the data that the protocol's source evaluates on: COCO, LVIS, Cityscapes or VOC."""
    name = " ".join(published_cfg(protocol).DATASETS.TEST)
    return next((form for form in ("LVIS", "Cityscapes", "VOC") if form.lower() in name), "COCO")


def published_cfg(protocol: Protocol) -> "CfgNode":
    """The protocol in Detectron2's form, as published.

    Raises:
        UserError: a key or a type that Detectron2 does not have.
    """
    from transfer.detectron import require_detectron2

    require_detectron2()
    from detectron2.config import CfgNode, get_cfg
    from detectron2.model_zoo import get_config_file

    cfg = get_cfg()
    if has_vit(protocol.detectron2):
        add_vit_keys(cfg)
    try:
        cfg.merge_from_file(get_config_file(protocol.base))
        cfg.merge_from_other_cfg(CfgNode(protocol.detectron2))
    except RuntimeError as error:
        raise UserError(f"protocol {protocol.name}: base '{protocol.base}' is not in Detectron2's model zoo") from error
    except (KeyError, ValueError) as error:
        fault = " ".join(str(error.args[0]).split())
        raise UserError(f"protocol {protocol.name}: {fault}") from error
    return cfg


def build_cfg(
    protocol: Protocol,
    settings: Settings,
    content: "Converted",
    classes: int = 80,
    mask_format: str = "polygon",
    device: str = "cpu",
    seed: int = 0,
    processes: int = 1,
) -> "CfgNode":
    """The config that is run: the published one, scaled to `settings`, for these weights, data and device."""
    from transfer.detectron import set_resnet

    check_fit(protocol, content.arch)
    check_transformer(protocol, content)
    cfg = published_cfg(protocol)
    scale(cfg, settings)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = content.pixel_mean, content.pixel_std
    if is_vit(content.arch):
        set_structure(cfg, content.arch, content.options, content.structure)
    else:
        set_resnet(cfg, content.arch)
    if device == "cpu":
        cfg.SOLVER.AMP.ENABLED = False
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    if cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS:
        cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES = min(cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES, classes)
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.MODEL.DEVICE, cfg.SEED, cfg.MODEL.WEIGHTS = device, seed, ""
    for node in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        if node.NORM == "SyncBN" and processes == 1:  # torch's refuses the CPU; in one process it is plain batch norm
            node.NORM = "BN"
        elif node.NORM == "SyncBN" and device == "cpu":
            node.NORM = "naiveSyncBN"
    cfg.freeze()
    return cfg
