"""Linear probe: a linear classifier trained on a frozen backbone."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pretrain.data.loaders.build import training_loader
from pretrain.distributed import rank, sum_over_ranks, world_size
from pretrain.evaluate.knn import joint_accuracy
from pretrain.evaluate.protocol_kinds import Linear
from pretrain.evaluate.ranks import Progress, joint_loss, row_offset, sum_gradients, with_empty_batches
from pretrain.evaluate.selection import best_epoch
from pretrain.optim import LARC
from pretrain.recipe_sections import Data, Views
from pretrain.repeatable import derive_seed
from whitebench.errors import UserError
from whitebench.files import write_atomically
from whitebench.records import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pretrain.evaluate.features import FrozenEncoder

PROBE = "probe.safetensors"
"""File of the trained probe in the folder of its run."""
CROPS = Views(size=224, scale=(0.08, 1.0), interpolation="bilinear")
"""Random resized crop and flip of every ImageNet probe; its size becomes the target's."""


def evaluate(frozen: "FrozenEncoder", protocol: Linear, run: Run | None) -> dict[str, Any]:
    """Trains the probe by `protocol`; {"top1", "top5"} on the validation split, last epoch, in per cent.

    If it trains on augmented crops, it is evaluated after every epoch, and `best_epoch` joins them.

    Args:
        run: None except on rank 0.
    Raises:
        UserError: the loss is not finite.
    """
    torch.manual_seed(frozen.options.seed)
    test, test_labels = frozen.features("val", interpolation=protocol.interpolation)
    probe = linear_head(test.shape[1], len(frozen.manifest.classes), protocol.init_std).to(frozen.device)
    batches: Embedded | Augmented
    if protocol.augment:
        batches = Augmented(frozen, protocol.batch, frozen.manifest.labelled("train"))
    else:
        train = frozen.features("train", interpolation=protocol.interpolation)
        batches = Embedded(*train, protocol.batch, frozen.options.seed)
    optimizer, progress = _optimizer(probe, protocol), Progress(run)
    for epoch in range(_resume(probe, optimizer, progress), protocol.epochs):
        loss = train_epoch(probe, optimizer, with_rates(batches, epoch, protocol))
        if not math.isfinite(loss):
            raise UserError(f"{protocol.name}: the probe's loss is {loss} in epoch {epoch + 1}: it has diverged")
        if protocol.augment or (epoch + 1) % 50 == 0 or epoch + 1 == protocol.epochs:
            top = joint_accuracy(probe(test), test_labels)
            progress.log(step=epoch + 1, epoch=epoch + 1, epochs=protocol.epochs, loss=loss, **top)
        if protocol.augment:
            progress.save(_state(probe, optimizer, epoch + 1))
    if run:
        save_probe(run, probe)
    best = best_epoch(progress.folder) if protocol.augment and run else {}
    with torch.no_grad():
        return {**joint_accuracy(probe(test), test_labels), **best}


def learning_rate(protocol: Linear, done: float) -> float:
    """The rate after `done` epochs; except for `cosine-by-step`, it changes only at whole epochs."""
    epoch = done if protocol.schedule == "cosine-by-step" else int(done)
    if protocol.schedule in ("cosine", "cosine-by-step"):
        return protocol.base_lr * 0.5 * (1 + math.cos(math.pi * epoch / protocol.epochs))
    if protocol.schedule == "step":
        return protocol.base_lr * 0.1 ** sum(epoch >= step for step in protocol.steps)
    return protocol.base_lr * (protocol.final_lr / protocol.base_lr) ** (epoch / max(1, protocol.epochs - 1))


class Embedded:
    """Features that were computed once, in another order each epoch.

    Of several processes each has the features of its share of the images, and of a joint batch the rows among these.
    """

    def __init__(self, features: Tensor, labels: Tensor, batch: int, seed: int) -> None:
        """`features` may be of half precision, or mapped from a file."""
        self.features, self.labels, self.batch, self.seed = features, labels, batch, seed
        self.start, self.count = row_offset(len(labels), labels.device)
        self.batches_per_epoch = -(-self.count // batch)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        for chosen in torch.randperm(self.count, generator=generator).split(self.batch):
            chosen = chosen[(chosen >= self.start) & (chosen < self.start + len(self.labels))] - self.start
            chosen = chosen.to(self.labels.device)
            yield self.features[chosen].float(), self.labels[chosen]


class Augmented:
    """Features of random resized crops, the backbone run on each."""

    def __init__(
        self, frozen: "FrozenEncoder", batch: int, indices: "NDArray[np.int64] | None", crops: Views = CROPS
    ) -> None:
        """`indices`: of the images; None: all, without an incomplete last batch."""
        crops = replace(crops, size=frozen.target.crop)
        options = frozen.options
        data = Data(dataset=frozen.target.dataset, views=(crops,), loader=options.loader)
        self.frozen, self.crop = frozen, frozen.target.crop
        self.loader = training_loader(
            data,
            frozen.manifest,
            seed=options.seed,
            batch=batch,
            rank=rank(),
            world_size=world_size(),
            workers=options.workers,
            indices=indices,
        )
        self.batches_per_epoch = self.loader.batches_per_epoch

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for raw in with_empty_batches(self.loader.epoch(epoch), self.batches_per_epoch, self.crop):
            features = self.frozen(raw.views[0])
            yield features, raw.label.to(features.device)


def linear_head(features: int, classes: int, init_std: float | None) -> nn.Linear:
    """[N, features] -> [N, classes]; weights from N(0, init_std) and zero bias, or torch's default where None."""
    head = nn.Linear(features, classes)
    if init_std is not None:
        nn.init.normal_(head.weight, std=init_std)
        nn.init.zeros_(head.bias)
    return head


def save_probe(run: Run, probe: nn.Linear) -> None:
    """Leaves the probe's weight [C, F] and bias [C] in the run's folder, for evaluations on other images."""
    from safetensors.torch import save

    path = run.folder / PROBE
    write_atomically(path, save({"weight": probe.weight.detach().cpu(), "bias": probe.bias.detach().cpu()}))
    run.artifact("probe", path)


def load_probe(folder: Path) -> tuple[Tensor, Tensor]:
    """Weight [C, F] and bias [C] of the probe that a linear evaluation left in its folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / PROBE)
        return tensors["weight"], tensors["bias"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"{folder / PROBE}: no readable probe ({error}); remove the folder to train it again"
        ) from error


def _optimizer(probe: nn.Module, protocol: Linear) -> torch.optim.Optimizer:
    if protocol.optimizer == "adam":
        return torch.optim.Adam(probe.parameters(), protocol.base_lr, weight_decay=protocol.weight_decay)
    rate, decay = protocol.base_lr, protocol.weight_decay
    if protocol.optimizer == "larc":
        return LARC(probe.parameters(), rate, momentum=0.9, weight_decay=decay)
    return torch.optim.SGD(probe.parameters(), rate, momentum=0.9, weight_decay=decay)


def with_rates(batches: "Embedded | Augmented", epoch: int, protocol: Linear) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Learning rate, features and labels of every batch of an epoch (from 0)."""
    for number, (features, labels) in enumerate(batches.epoch(epoch)):
        yield learning_rate(protocol, epoch + number / batches.batches_per_epoch), features, labels


def train_epoch(
    probe: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[float, Tensor, Tensor]]
) -> float:
    """Mean loss of the epoch."""
    losses = []
    for rate, features, labels in batches:
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = joint_loss(probe(features), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        sum_gradients(probe.parameters())
        optimizer.step()
        losses.append(loss.detach())
    return sum_over_ranks(torch.stack(losses)).mean().item()


def _state(probe: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, object]:
    return {"probe": probe.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}


def _resume(probe: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> int:
    """Loads what an interrupted run left; the epoch to resume with."""
    state = progress.resume()
    if state is None:
        return 0
    probe.load_state_dict(state["probe"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])
