"""Linear probe: a linear classifier trained on a frozen backbone."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain import resume
from pretrain.data import training_loader
from pretrain.evaluate.knn import top_accuracy
from pretrain.evaluate.protocols import Linear
from pretrain.optim import LARS
from pretrain.recipe import Data, Views
from pretrain.repeatable import derive_seed
from results.record import Run

if TYPE_CHECKING:
    from pretrain.evaluate.features import FrozenBackbone

CROPS = Views(size=224, scale=(0.08, 1.0), interpolation="bilinear")
"""Random resized crop and flip of every ImageNet probe; its size becomes the target's."""


def evaluate(frozen: "FrozenBackbone", protocol: Linear, run: Run) -> dict[str, float]:
    """Trains the probe by `protocol`; {"top1", "top5"} on the validation split, last epoch, in per cent."""
    torch.manual_seed(frozen.options.seed)
    test, test_labels = frozen.features("val")
    probe = _probe(test.shape[1], len(frozen.manifest.classes), protocol).to(frozen.device)
    batches = _Augmented(frozen, protocol) if protocol.augment else _Embedded(frozen, protocol)
    optimizer = _optimizer(probe, protocol)
    for epoch in range(_resume(probe, optimizer, run), protocol.epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(protocol, epoch)
        loss = _train_epoch(probe, optimizer, batches.epoch(epoch))
        if protocol.augment or (epoch + 1) % 50 == 0 or epoch + 1 == protocol.epochs:
            top = top_accuracy(probe(test), test_labels)
            run.log(step=epoch + 1, epoch=epoch + 1, epochs=protocol.epochs, loss=loss, **top)
        if protocol.augment:
            resume.save(run.folder, _state(probe, optimizer, epoch + 1))
    with torch.no_grad():
        return top_accuracy(probe(test), test_labels)


def learning_rate(protocol: Linear, epoch: int) -> float:
    """Of an epoch (from 0)."""
    if protocol.schedule == "cosine":
        return protocol.base_lr * 0.5 * (1 + math.cos(math.pi * epoch / protocol.epochs))
    if protocol.schedule == "step":
        return protocol.base_lr * 0.1 ** sum(epoch >= step for step in protocol.steps)
    return protocol.base_lr * (protocol.final_lr / protocol.base_lr) ** (epoch / max(1, protocol.epochs - 1))


class _Embedded:
    """Features of the training split's centre crops, shuffled anew each epoch."""

    def __init__(self, frozen: "FrozenBackbone", protocol: Linear) -> None:
        self.features, self.labels = frozen.features("train")
        self.batch, self.seed = protocol.batch, frozen.options.seed

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        for chosen in torch.randperm(len(self.labels), generator=generator).split(self.batch):
            chosen = chosen.to(self.labels.device)
            yield self.features[chosen], self.labels[chosen]


class _Augmented:
    """Features of random resized crops, the backbone run on each."""

    def __init__(self, frozen: "FrozenBackbone", protocol: Linear) -> None:
        crops = Views(size=frozen.target.crop, scale=CROPS.scale, interpolation=CROPS.interpolation)
        options = frozen.options
        data = Data(dataset=frozen.target.dataset, views=(crops,), loader=options.loader)
        self.frozen = frozen
        self.loader = training_loader(
            data, frozen.manifest, seed=options.seed, batch=protocol.batch, workers=options.workers
        )

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for raw in self.loader.epoch(epoch):
            features = self.frozen(raw.views[0])
            yield features, raw.label.to(features.device)


def _probe(features: int, classes: int, protocol: Linear) -> nn.Linear:
    probe = nn.Linear(features, classes)
    if protocol.init_std is not None:
        nn.init.normal_(probe.weight, std=protocol.init_std)
        nn.init.zeros_(probe.bias)
    return probe


def _optimizer(probe: nn.Module, protocol: Linear) -> torch.optim.Optimizer:
    if protocol.optimizer == "adam":
        return torch.optim.Adam(probe.parameters(), protocol.base_lr, weight_decay=protocol.weight_decay)
    rate, decay = protocol.base_lr, protocol.weight_decay
    if protocol.optimizer == "larc":
        return LARS(probe.parameters(), rate, momentum=0.9, weight_decay=decay, trust=1e-3, adapt_1d=True)
    return torch.optim.SGD(probe.parameters(), rate, momentum=0.9, weight_decay=decay)


def _train_epoch(probe: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Mean loss of the epoch."""
    losses = []
    for features, labels in batches:
        loss = F.cross_entropy(probe(features), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


def _state(probe: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, object]:
    return {"probe": probe.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}


def _resume(probe: nn.Module, optimizer: torch.optim.Optimizer, run: Run) -> int:
    """Loads what an interrupted run left; the epoch to go on with."""
    state = resume.load(run.folder)
    epoch = 0
    if state is not None:
        probe.load_state_dict(state["probe"])
        optimizer.load_state_dict(state["optimizer"])
        epoch = int(state["epoch"])
    run.rewind(epoch)
    return epoch
