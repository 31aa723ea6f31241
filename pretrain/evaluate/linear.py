"""Linear probe: a linear classifier trained on a frozen backbone."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain import resume
from pretrain.data.loaders.build import training_loader
from pretrain.evaluate.knn import top_accuracy
from pretrain.evaluate.protocols import Linear
from pretrain.evaluate.selection import best_epoch
from pretrain.optim import LARC
from pretrain.recipe import Data, Views
from pretrain.repeatable import derive_seed
from whitebench.errors import UserError
from whitebench.records import Run

if TYPE_CHECKING:
    from pretrain.evaluate.features import FrozenEncoder

CROPS = Views(size=224, scale=(0.08, 1.0), interpolation="bilinear")
"""Random resized crop and flip of every ImageNet probe; its size becomes the target's."""


def evaluate(frozen: "FrozenEncoder", protocol: Linear, run: Run) -> dict[str, Any]:
    """Trains the probe by `protocol`; {"top1", "top5"} on the validation split, last epoch, in per cent.

    If it trains on augmented crops, it is evaluated after every epoch, and `best_epoch` joins them.
    Raises:
        UserError: the loss is not finite.
    """
    torch.manual_seed(frozen.options.seed)
    test, test_labels = frozen.features("val", interpolation=protocol.interpolation)
    probe = linear_head(test.shape[1], len(frozen.manifest.classes), protocol.init_std).to(frozen.device)
    batches = _Augmented(frozen, protocol) if protocol.augment else _Embedded(frozen, protocol)
    optimizer = _optimizer(probe, protocol)
    for epoch in range(_resume(probe, optimizer, run), protocol.epochs):
        loss = _train_epoch(probe, optimizer, _with_rates(batches, epoch, protocol))
        if not math.isfinite(loss):
            raise UserError(f"{protocol.name}: the probe's loss is {loss} in epoch {epoch + 1}: it has diverged")
        if protocol.augment or (epoch + 1) % 50 == 0 or epoch + 1 == protocol.epochs:
            top = top_accuracy(probe(test), test_labels)
            run.log(step=epoch + 1, epoch=epoch + 1, epochs=protocol.epochs, loss=loss, **top)
        if protocol.augment:
            resume.save(run.folder, _state(probe, optimizer, epoch + 1))
    best = best_epoch(run.folder) if protocol.augment else {}
    with torch.no_grad():
        return {**top_accuracy(probe(test), test_labels), **best}


def learning_rate(protocol: Linear, done: float) -> float:
    """The rate after `done` epochs; except for `cosine-by-step`, it changes only at whole epochs."""
    epoch = done if protocol.schedule == "cosine-by-step" else int(done)
    if protocol.schedule in ("cosine", "cosine-by-step"):
        return protocol.base_lr * 0.5 * (1 + math.cos(math.pi * epoch / protocol.epochs))
    if protocol.schedule == "step":
        return protocol.base_lr * 0.1 ** sum(epoch >= step for step in protocol.steps)
    return protocol.base_lr * (protocol.final_lr / protocol.base_lr) ** (epoch / max(1, protocol.epochs - 1))


class _Embedded:
    """Features of the training split's centre crops, in another order each epoch."""

    def __init__(self, frozen: "FrozenEncoder", protocol: Linear) -> None:
        self.features, self.labels = frozen.features("train", interpolation=protocol.interpolation)
        self.batch, self.seed = protocol.batch, frozen.options.seed
        self.batches_per_epoch = -(-len(self.labels) // self.batch)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        for chosen in torch.randperm(len(self.labels), generator=generator).split(self.batch):
            chosen = chosen.to(self.labels.device)
            yield self.features[chosen], self.labels[chosen]


class _Augmented:
    """Features of random resized crops, the backbone run on each."""

    def __init__(self, frozen: "FrozenEncoder", protocol: Linear) -> None:
        crops = Views(size=frozen.target.crop, scale=CROPS.scale, interpolation=CROPS.interpolation)
        options = frozen.options
        data = Data(dataset=frozen.target.dataset, views=(crops,), loader=options.loader)
        self.frozen = frozen
        self.loader = training_loader(
            data,
            frozen.manifest,
            seed=options.seed,
            batch=protocol.batch,
            workers=options.workers,
            indices=frozen.manifest.labelled("train"),
        )
        self.batches_per_epoch = self.loader.batches_per_epoch

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for raw in self.loader.epoch(epoch):
            features = self.frozen(raw.views[0])
            yield features, raw.label.to(features.device)


def linear_head(features: int, classes: int, init_std: float | None) -> nn.Linear:
    """[N, features] -> [N, classes]; weights from N(0, init_std) and zero bias, or torch's default where None."""
    head = nn.Linear(features, classes)
    if init_std is not None:
        nn.init.normal_(head.weight, std=init_std)
        nn.init.zeros_(head.bias)
    return head


def _optimizer(probe: nn.Module, protocol: Linear) -> torch.optim.Optimizer:
    if protocol.optimizer == "adam":
        return torch.optim.Adam(probe.parameters(), protocol.base_lr, weight_decay=protocol.weight_decay)
    rate, decay = protocol.base_lr, protocol.weight_decay
    if protocol.optimizer == "larc":
        return LARC(probe.parameters(), rate, momentum=0.9, weight_decay=decay)
    return torch.optim.SGD(probe.parameters(), rate, momentum=0.9, weight_decay=decay)


def _with_rates(
    batches: "_Embedded | _Augmented", epoch: int, protocol: Linear
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Learning rate, features and labels of every batch of an epoch (from 0)."""
    for number, (features, labels) in enumerate(batches.epoch(epoch)):
        yield learning_rate(protocol, epoch + number / batches.batches_per_epoch), features, labels


def _train_epoch(
    probe: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[float, Tensor, Tensor]]
) -> float:
    """Mean loss of the epoch."""
    losses = []
    for rate, features, labels in batches:
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(probe(features), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


def _state(probe: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, object]:
    return {"probe": probe.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}


def _resume(probe: nn.Module, optimizer: torch.optim.Optimizer, run: Run) -> int:
    """Loads what an interrupted run left; the epoch to resume with."""
    state = resume.load(run.folder)
    epoch = 0
    if state is not None:
        probe.load_state_dict(state["probe"])
        optimizer.load_state_dict(state["optimizer"])
        epoch = int(state["epoch"])
    run.rewind(epoch)
    return epoch
