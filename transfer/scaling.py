"""Scales a published config down: shorter schedules, smaller images, fewer regions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transfer.vit_backbones import cfg_has_vit

if TYPE_CHECKING:
    from detectron2.config import CfgNode

PROPOSALS = ("PRE_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TRAIN", "PRE_NMS_TOPK_TEST", "POST_NMS_TOPK_TEST")


@dataclass(frozen=True)
class Settings:
    """What options can scale, resolved."""

    iterations: int
    image_size: int
    """Shorter side at test time, pixels; the sizes in training, and numbers of regions by area, keep their ratio."""
    batch: int
    lr: float


def scale(cfg: "CfgNode", settings: Settings) -> None:
    """Schedule and sizes in proportion; precise batch norm never takes more steps than training did.

    Smaller images get fewer regions, in proportion to their area: on a CPU they are nearly all of the cost.
    """
    solver, sizes = cfg.SOLVER, cfg.INPUT
    share = settings.iterations / solver.MAX_ITER
    if share != 1:
        steps = {int(step * share) for step in solver.STEPS}
        solver.STEPS = tuple(sorted(step for step in steps if 0 < step < settings.iterations))
        solver.WARMUP_ITERS = max(1, round(solver.WARMUP_ITERS * share))
        if cfg.TEST.PRECISE_BN.ENABLED:
            cfg.TEST.PRECISE_BN.NUM_ITER = min(cfg.TEST.PRECISE_BN.NUM_ITER, settings.iterations)
    share = settings.image_size / sizes.MIN_SIZE_TEST
    if share != 1:
        sizes.MIN_SIZE_TRAIN = tuple(round(size * share) for size in sizes.MIN_SIZE_TRAIN)
        sizes.MAX_SIZE_TRAIN = round(sizes.MAX_SIZE_TRAIN * share)
        sizes.MAX_SIZE_TEST = round(sizes.MAX_SIZE_TEST * share)
        if cfg_has_vit(cfg) and sizes.LSJ.ENABLED:
            sizes.LSJ.SIZE = round(sizes.LSJ.SIZE * share)
        for key in ("IMAGE_SIZE", "SQUARE_PAD") if cfg_has_vit(cfg) and cfg.MODEL.VIT.SQUARE_PAD else ():
            cfg.MODEL.VIT[key] = round(cfg.MODEL.VIT[key] * share)
    if share < 1:
        for node, key in ((cfg.MODEL.ROI_HEADS, "BATCH_SIZE_PER_IMAGE"), *((cfg.MODEL.RPN, key) for key in PROPOSALS)):
            node[key] = max(1, round(node[key] * share**2))
    solver.MAX_ITER, solver.IMS_PER_BATCH, solver.BASE_LR = settings.iterations, settings.batch, settings.lr
    sizes.MIN_SIZE_TEST = settings.image_size
