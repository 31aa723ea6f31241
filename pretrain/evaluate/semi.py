"""Semi-supervised evaluation: backbone and linear head are fine-tuned on a part of the training labels."""

import math
from typing import TYPE_CHECKING, Any

import torch

from pretrain.evaluate.finetune import Classifier, FineTuning
from pretrain.evaluate.protocol_kinds import Semi
from whitebench.records import Run

if TYPE_CHECKING:
    from pretrain.checkpoint import Backbone
    from pretrain.evaluate.target import Options, Target


def evaluate(
    backbone: "Backbone", protocol: Semi, target: "Target", options: "Options", run: Run | None
) -> dict[str, Any]:
    """Fine-tunes by `protocol`; see `FineTuning.fit`."""
    tuning = FineTuning(backbone, protocol, target, options, lambda network: _optimizer(network, protocol))
    return tuning.fit(run, lambda done: rate_share(protocol, int(done)))


def rate_share(protocol: Semi, epoch: int) -> float:
    """Of both base rates, in an epoch (from 0)."""
    if protocol.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / protocol.epochs))
    if protocol.schedule == "step":
        return protocol.gamma ** sum(epoch >= step for step in protocol.steps)
    return 1.0


def _optimizer(network: Classifier, protocol: Semi) -> torch.optim.Optimizer:
    """Its groups keep their base rate under "base"."""
    parts = ((network.backbone, protocol.lr_backbone), (network.head, protocol.lr_head))
    groups = [{"params": list(part.parameters()), "lr": rate, "base": rate} for part, rate in parts]
    return torch.optim.SGD(groups, momentum=0.9, weight_decay=protocol.weight_decay)
