"""Optimizers of a fine-tuning, with Detectron2's own groups of parameters."""

from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def build_optimizer(name: str, cfg: "CfgNode", model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD as Detectron2's config describes it, or AdamW with SOLVER's rate and weight decay.

    With SOLVER.LAYER_DECAY below 1, the rate of a transformer's block falls with its distance from the heads, and
    positions have no weight decay, as in ViTDet.

    Args:
        name: see `transfer.protocol.Protocol.optimizer`.
    """
    from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
    from detectron2.solver import build_optimizer as build_sgd
    from detectron2.solver import get_default_optimizer_params

    if name == "sgd":
        sgd: torch.optim.Optimizer = build_sgd(cfg, model)
        return sgd
    solver, arguments = cfg.SOLVER, {}
    if "VIT" in cfg.MODEL:
        rate = partial(get_vit_lr_decay_rate, lr_decay_rate=solver.LAYER_DECAY, num_layers=cfg.MODEL.VIT.DEPTH)
        arguments = {
            "base_lr": solver.BASE_LR,
            "lr_factor_func": rate,
            "overrides": {"pos_embed": {"weight_decay": 0.0}},
        }
    groups = get_default_optimizer_params(model, weight_decay_norm=solver.WEIGHT_DECAY_NORM, **arguments)
    return torch.optim.AdamW(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, fused=True)
