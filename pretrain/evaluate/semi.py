"""Semi-supervised evaluation: backbone and linear head are fine-tuned on a part of the training labels.

Short compared with a pretraining: a stopped run starts over.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.data.betons.manifest import Manifest, read_manifest
from pretrain.data.loaders.build import training_loader
from pretrain.data.normalise import Normalise
from pretrain.evaluate.features import centre_crops, collect, load_backbone, normalise_for
from pretrain.evaluate.knn import top_accuracy
from pretrain.evaluate.linear import linear_head
from pretrain.evaluate.online import evaluating
from pretrain.evaluate.protocols import Semi
from pretrain.evaluate.selection import best_epoch
from pretrain.evaluate.subset import choose
from pretrain.recipe import Data, Views
from pretrain.repeatable import derive_seed, make_repeatable
from pretrain.timm_networks import feature_width
from whitebench.errors import UserError
from whitebench.records import Run

if TYPE_CHECKING:
    from pretrain.checkpoint import Backbone
    from pretrain.evaluate.target import Options, Target


def evaluate(backbone: "Backbone", protocol: Semi, target: "Target", options: "Options", run: Run) -> dict[str, Any]:
    """Fine-tunes by `protocol`; {"top1", "top5"} on the validation split, last epoch, in per cent.

    `best_epoch` joins them, and "labelled", the number of images whose labels were used.
    """
    make_repeatable(options.threads)
    torch.manual_seed(derive_seed(options.seed, "head"))
    run.rewind(0)
    manifest = read_manifest(target.dataset)
    labelled = choose(manifest, protocol, options.seed, options.list)
    network = Classifier(backbone, len(manifest.classes), protocol.init_std)
    network = network.to(options.device).to(memory_format=torch.channels_last)
    optimizer = _optimizer(network, protocol)
    crops = Views(size=target.crop, scale=protocol.scale, interpolation="bilinear", flip_p=protocol.flip_p)
    loader = training_loader(
        Data(dataset=target.dataset, views=(crops,), loader=options.loader),
        manifest,
        seed=options.seed,
        batch=protocol.batch,
        workers=options.workers,
        indices=labelled,
    )
    for epoch in range(protocol.epochs):
        share = rate_share(protocol, epoch)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * share
        loss = _train_epoch(network, optimizer, loader.epoch(epoch))
        if not math.isfinite(loss):
            raise UserError(f"{protocol.name}: the loss is {loss} in epoch {epoch + 1}: fine-tuning has diverged")
        top = _evaluate(network, manifest, target, options)
        run.log(step=epoch + 1, epoch=epoch + 1, epochs=protocol.epochs, loss=loss, **top)
    return {**top, **best_epoch(run.folder), "labelled": len(labelled)}


def rate_share(protocol: Semi, epoch: int) -> float:
    """Of both base rates, in an epoch (from 0)."""
    if protocol.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / protocol.epochs))
    if protocol.schedule == "step":
        return protocol.gamma ** sum(epoch >= step for step in protocol.steps)
    return 1.0


class Classifier(nn.Module):
    """Backbone and linear head: uint8 [B, 3, S, S] -> logits [B, classes]."""

    def __init__(self, backbone: "Backbone", classes: int, init_std: float | None) -> None:
        super().__init__()
        self.normalise: Normalise = normalise_for(backbone)
        self.backbone = load_backbone(backbone)
        self.head = linear_head(feature_width(self.backbone), classes, init_std)

    def forward(self, images: Tensor) -> Tensor:
        device = self.head.weight.device
        logits: Tensor = self.head(self.backbone(self.normalise(images.to(device, non_blocking=True))))
        return logits


def _optimizer(network: Classifier, protocol: Semi) -> torch.optim.Optimizer:
    """Its groups keep their base rate under "base"."""
    parts = ((network.backbone, protocol.lr_backbone), (network.head, protocol.lr_head))
    groups = [{"params": list(part.parameters()), "lr": rate, "base": rate} for part, rate in parts]
    return torch.optim.SGD(groups, momentum=0.9, weight_decay=protocol.weight_decay)


def _train_epoch(network: Classifier, optimizer: torch.optim.Optimizer, batches: Iterable[Batch]) -> float:
    """Mean loss of the epoch's batches."""
    network.train()
    losses = []
    for raw in batches:
        logits = network(raw.views[0])
        loss = F.cross_entropy(logits, raw.label.to(logits.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


@torch.no_grad()
def _evaluate(network: Classifier, manifest: Manifest, target: "Target", options: "Options") -> dict[str, float]:
    """On the centre crops of the validation split."""
    with evaluating(network):
        crops = centre_crops(manifest, "val", target, options)
        return top_accuracy(*collect(network, crops, manifest.split("val").count))
