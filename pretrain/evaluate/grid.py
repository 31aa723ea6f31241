"""A grid of linear probes in one pass: rates x weight decays x inputs, on the same features.

Probes do not see each other: each ends with the weights that it would have alone. The one to report is chosen on a
held-out part of the training images.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.data.betons.format import read_samples
from pretrain.distributed import sum_over_ranks
from pretrain.evaluate.blocks import LastBlocks
from pretrain.evaluate.knn import joint_accuracy
from pretrain.evaluate.linear import Augmented, Embedded, learning_rate, linear_head, save_probe
from pretrain.evaluate.protocol_kinds import Linear, LinearGrid
from pretrain.evaluate.ranks import Progress, joint_loss, sum_gradients
from pretrain.evaluate.subset import every_labelled
from pretrain.recipe_sections import Views
from pretrain.repeatable import derive_seed
from whitebench.errors import UserError
from whitebench.records import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pretrain.evaluate.features import FrozenEncoder

Labelled = tuple[Tensor, Tensor]
"""Features [N, F] and labels [N]."""


@dataclass(frozen=True)
class Probe:
    """One point of the grid."""

    protocol: Linear
    last_blocks: int
    head: nn.Linear

    @property
    def setting(self) -> dict[str, float]:
        return {
            "lr": self.protocol.lr,
            "weight_decay": self.protocol.weight_decay,
            "last_blocks": self.last_blocks,
        }


def evaluate(frozen: "FrozenEncoder", protocol: LinearGrid, run: Run | None) -> dict[str, Any]:
    """Trains all probes; {"top1", "top5"} of the selected one on the validation split, in per cent.

    With them: "selected" (its setting), "held_out" (images that selected it), "held_out_top1" (its accuracy on these),
    and "probes": every setting with its accuracy on the held-out images.

    Args:
        run: None except on rank 0.
    Raises:
        UserError: a class with a single training image; no probe has a finite loss.
    """
    frozen.network, frozen.cached = LastBlocks(frozen.network, max(protocol.last_blocks)), False
    train, held_out = split_training_set(frozen, protocol)
    test = frozen.features("val", interpolation=protocol.interpolation)
    widths = frozen.network.widths
    probes = build_probes(protocol, widths, len(frozen.manifest.classes), frozen.options.seed, frozen.device)
    trained, chosen = fit(probes, widths, train, held_out, protocol, Progress(run))
    with torch.no_grad():
        top = joint_accuracy(chosen.head(test[0][:, -widths[chosen.last_blocks] :]), test[1])
    if run and chosen.last_blocks == 1:
        save_probe(run, chosen.head)
    return {**top, **trained, "selected": chosen.setting}


def split_training_set(frozen: "FrozenEncoder", protocol: LinearGrid) -> tuple[Embedded | Augmented, Labelled]:
    """Batches of the images to train on, and this process's share of the held-out ones."""
    every = every_labelled(frozen.manifest)
    labels = read_samples(frozen.manifest.beton("train")).label[every]
    out = held_out_mask(labels, protocol.held_out, frozen.options.seed, frozen.manifest.classes)
    held_out = frozen.features("train", interpolation=protocol.interpolation, indices=every[out])
    if protocol.augment:
        crops = Views(size=224, scale=(0.08, 1.0), interpolation=protocol.interpolation)
        return Augmented(frozen, protocol.batch, every[~out], crops), held_out
    train = frozen.features("train", interpolation=protocol.interpolation, indices=every[~out])
    return Embedded(*train, protocol.batch, frozen.options.seed), held_out


def held_out_mask(
    labels: "NDArray[np.int64]", share: float, seed: int, classes: tuple[str, ...]
) -> "NDArray[np.bool_]":
    """Which images are held out: of each class its share, rounded, at least one, by a draw of `seed`.

    Raises:
        UserError: a class with a single image.
    """
    mask = np.zeros(len(labels), bool)
    generator = np.random.default_rng(derive_seed(seed, "held out"))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise UserError(
                f"class '{classes[label]}' has a single training image; a grid of probes holds out one of each class"
            )
        mask[generator.permutation(members)[: max(1, round(share * len(members)))]] = True
    return mask


def build_probes(
    protocol: LinearGrid, widths: dict[int, int], classes: int, seed: int, device: torch.device
) -> list[Probe]:
    """All points of the grid, each initialised as it would be alone."""
    probes = []
    for last_blocks in protocol.last_blocks:
        for weight_decay in protocol.weight_decays:
            for lr in protocol.lrs:
                torch.manual_seed(seed)
                head = linear_head(widths[last_blocks], classes, protocol.init_std).to(device)
                probes.append(Probe(protocol.single(lr, weight_decay), last_blocks, head))
    return probes


def fit(
    probes: list[Probe],
    widths: dict[int, int],
    batches: Embedded | Augmented,
    held_out: Labelled,
    protocol: LinearGrid,
    progress: Progress,
) -> tuple[dict[str, Any], Probe]:
    """Trains the probes; what is known of them, and the best on the held-out images, the first of equals."""
    heads = nn.ModuleList(probe.head for probe in probes)
    optimizer = _optimizer(probes, protocol)
    losses = torch.full((len(probes),), math.nan)
    for epoch in range(_resume(heads, optimizer, progress), protocol.epochs):
        losses = _train_epoch(probes, widths, optimizer, batches, epoch)
        finite = losses[losses.isfinite()]
        if not len(finite):
            raise UserError(f"{protocol.name}: every probe has diverged in epoch {epoch + 1}")
        if protocol.augment or (epoch + 1) % 50 == 0 or epoch + 1 == protocol.epochs:
            progress.log(step=epoch + 1, epoch=epoch + 1, epochs=protocol.epochs, loss=float(finite.min()))
        if protocol.augment:
            state = {"heads": heads.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            progress.save(state)
    with torch.no_grad():
        features, labels = held_out
        tops = [joint_accuracy(p.head(features[:, -widths[p.last_blocks] :]), labels)["top1"] for p in probes]
    tops = [top if bool(_is_finite(probe.head)) else -1.0 for top, probe in zip(tops, probes, strict=True)]
    best = max(range(len(probes)), key=lambda number: (tops[number], -number))
    settings = [{**p.setting, "held_out_top1": top} for p, top in zip(probes, tops, strict=True)]
    count = int(sum_over_ranks(torch.tensor(len(labels), device=labels.device)))
    return {"held_out": count, "held_out_top1": tops[best], "probes": settings}, probes[best]


def _train_epoch(
    probes: list[Probe],
    widths: dict[int, int],
    optimizer: torch.optim.Optimizer,
    batches: Embedded | Augmented,
    epoch: int,
) -> Tensor:
    """Mean loss of each probe, [P]."""
    sums = []
    for number, (features, labels) in enumerate(batches.epoch(epoch)):
        done = epoch + number / batches.batches_per_epoch
        for probe, group in zip(probes, optimizer.param_groups, strict=True):
            group["lr"] = learning_rate(probe.protocol, done)
        losses = torch.stack([joint_loss(logits, labels) for logits in _logits(probes, widths, features)])
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        sum_gradients(p for probe in probes for p in probe.head.parameters())
        optimizer.step()
        sums.append(losses.detach())
    return sum_over_ranks(torch.stack(sums)).mean(dim=0).cpu()


def _logits(probes: list[Probe], widths: dict[int, int], features: Tensor) -> Iterator[Tensor]:
    """[B, C] of each probe, in their order: one product for all probes with the same input."""
    by_input: dict[int, list[Probe]] = {}
    for probe in probes:
        by_input.setdefault(probe.last_blocks, []).append(probe)
    for last_blocks, group in by_input.items():  # probes of one input follow each other
        weight = torch.cat([probe.head.weight for probe in group])
        bias = torch.cat([probe.head.bias for probe in group])
        yield from nn.functional.linear(features[:, -widths[last_blocks] :], weight, bias).chunk(len(group), dim=1)


def _optimizer(probes: list[Probe], protocol: LinearGrid) -> torch.optim.Optimizer:
    """A group for each probe."""
    groups = [
        {
            "params": list(probe.head.parameters()),
            "lr": probe.protocol.base_lr,
            "weight_decay": probe.protocol.weight_decay,
        }
        for probe in probes
    ]
    if protocol.optimizer == "adam":
        return torch.optim.Adam(groups)
    return torch.optim.SGD(groups, momentum=0.9)


def _resume(heads: nn.ModuleList, optimizer: torch.optim.Optimizer, progress: Progress) -> int:
    state = progress.resume()
    if state is None:
        return 0
    heads.load_state_dict(state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])


def _is_finite(head: nn.Module) -> Tensor:
    return torch.stack([parameter.isfinite().all() for parameter in head.parameters()]).all()
