"""Fine-tuning: backbone and linear head are trained together, on all labels or a part of them."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pretrain import resume
from pretrain.data.batch import Batch
from pretrain.data.betons.manifest import Manifest, read_manifest
from pretrain.data.loaders.build import Loader, training_loader
from pretrain.data.normalise import Normalise
from pretrain.distributed import convert_sync_bn, rank, sum_over_ranks, world_size
from pretrain.evaluate.features import centre_crops, collect, labelled_count, load_backbone, normalise_for
from pretrain.evaluate.knn import joint_accuracy
from pretrain.evaluate.layer_decay import parameter_groups
from pretrain.evaluate.linear import linear_head
from pretrain.evaluate.mixing import Mixing
from pretrain.evaluate.online import evaluating
from pretrain.evaluate.protocol_kinds import Finetune, Semi
from pretrain.evaluate.ranks import Progress, joint_loss, own_share, sum_gradients, with_empty_batches
from pretrain.evaluate.selection import best_epoch
from pretrain.evaluate.subset import choose
from pretrain.optim import clip_gradients
from pretrain.recipe_sections import Data, Views
from pretrain.repeatable import derive_seed, make_repeatable
from pretrain.timm_networks import feature_width
from whitebench.errors import UserError
from whitebench.records import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pretrain.checkpoint import Backbone
    from pretrain.evaluate.target import Options, Target


def evaluate(
    backbone: "Backbone", protocol: Finetune, target: "Target", options: "Options", run: Run | None
) -> dict[str, Any]:
    """Fine-tunes by `protocol`; see `FineTuning.fit`."""
    tuning = FineTuning(backbone, protocol, target, options, lambda network: build_optimizer(network, protocol))
    return tuning.fit(run, lambda done: rate_share(protocol, done))


def build_optimizer(network: "Classifier", protocol: Finetune) -> torch.optim.Optimizer:
    """Its groups keep their base rate under "base": that of the head times the layer decay."""
    groups = parameter_groups(
        network.backbone,
        network.head,
        rate=protocol.base_lr,
        weight_decay=protocol.weight_decay,
        layer_decay=protocol.layer_decay,
        decay_1d=protocol.decay_1d,
    )
    if protocol.optimizer == "adamw":
        return torch.optim.AdamW(groups, protocol.base_lr)
    return torch.optim.SGD(groups, protocol.base_lr, momentum=0.9, nesterov=protocol.nesterov)


def rate_share(protocol: Finetune, done: float) -> float:
    """Of all base rates after `done` epochs: warm-up from 0, then cosine by step or steps at whole epochs."""
    if done < protocol.warmup_epochs:
        return done / protocol.warmup_epochs
    if protocol.schedule == "step":
        return protocol.gamma ** sum(int(done) >= step for step in protocol.steps)
    end = protocol.final_lr / protocol.base_lr
    progress = (done - protocol.warmup_epochs) / (protocol.epochs - protocol.warmup_epochs)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))


class Classifier(nn.Module):
    """Backbone and linear head: uint8 [B, 3, S, S] -> logits [B, classes]."""

    def __init__(self, backbone: "Backbone", classes: int, init_std: float | None) -> None:
        super().__init__()
        self.normalise: Normalise = normalise_for(backbone)
        self.backbone = load_backbone(backbone)
        self.head = linear_head(feature_width(self.backbone), classes, init_std)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        """On the network's device, float32."""
        normal: Tensor = self.normalise(images.to(self.head.weight.device, non_blocking=True))
        return normal

    def classify(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] -> logits [B, classes]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


class FineTuning:
    """A classifier, its optimizer and the labelled images, and the loop over them."""

    def __init__(
        self,
        backbone: "Backbone",
        protocol: Semi | Finetune,
        target: "Target",
        options: "Options",
        build: Callable[[Classifier], torch.optim.Optimizer],
    ) -> None:
        make_repeatable(options.threads)
        torch.manual_seed(derive_seed(options.seed, "head"))
        self.protocol, self.target, self.options = protocol, target, options
        self.manifest = read_manifest(target.dataset)
        self.labelled = choose(self.manifest, protocol, options.seed, options.list)
        network = Classifier(backbone, len(self.manifest.classes), protocol.init_std)
        self.network = network.to(options.device).to(memory_format=torch.channels_last)
        convert_sync_bn(self.network, torch.device(options.device))
        self.optimizer = build(self.network)
        ema = protocol.ema if isinstance(protocol, Finetune) else None
        average = get_ema_multi_avg_fn(ema) if ema is not None else None
        self.averaged = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True) if average else None
        classes = len(self.manifest.classes)
        self.mixing = Mixing(protocol, classes, options.seed) if isinstance(protocol, Finetune) else None
        self.loader = _loader(protocol, target, options, self.manifest, self.labelled)
        self.top: dict[str, float] = {}

    def fit(self, run: Run | None, rate_share: Callable[[float], float]) -> dict[str, Any]:
        """Trains to the end, from where it stopped before; {"top1", "top5"} on the validation split, last epoch, in %.

        `best_epoch` joins them, and "labelled", the number of images whose labels were used. Where the protocol
        averages weights, the values are those of the average, and "top1_plain" is that of the weights themselves.

        Args:
            run: None except on rank 0.
            rate_share: of all base rates, after this many epochs.
        Raises:
            UserError: the loss is not finite.
        """
        progress, protocol = Progress(run), self.protocol
        for epoch in range(self._resume(progress), protocol.epochs):
            torch.manual_seed(derive_seed(self.options.seed, "epoch", epoch, rank()))
            loss = self._train_epoch(epoch, rate_share)
            if not math.isfinite(loss):
                raise UserError(f"{protocol.name}: the loss is {loss} in epoch {epoch + 1}: fine-tuning has diverged")
            self.top = self._accuracy(self.averaged.module if self.averaged else self.network)
            progress.log(step=epoch + 1, epoch=epoch + 1, epochs=protocol.epochs, loss=loss, **self.top)
            progress.save_if_due(lambda: self._state(epoch + 1))  # noqa: B023  called at once
        plain = {"top1_plain": self._accuracy(self.network)["top1"]} if self.averaged else {}
        if run is None:
            return {}
        resume.forget(progress.folder)
        return {**self.top, **plain, **best_epoch(progress.folder), "labelled": len(self.labelled)}

    def _train_epoch(self, epoch: int, rate_share: Callable[[float], float]) -> float:
        """Mean loss of the epoch's joint batches."""
        self.network.train()
        losses, count = [], self.loader.batches_per_epoch
        batches = with_empty_batches(self.loader.epoch(epoch), count, self.target.crop)
        for number, raw in enumerate(batches):
            share = rate_share(epoch + number / count)
            for group in self.optimizer.param_groups:
                group["lr"] = group["base"] * share
            losses.append(self._step(raw, epoch * count + number))
        return sum_over_ranks(torch.stack(losses)).mean().item()

    def _step(self, raw: Batch, step: int) -> Tensor:
        """One update; this process's share of the joint loss."""
        images = self.network.normalised(raw.views[0])
        labels, smoothing = raw.label.to(images.device), 0.0
        if self.mixing is not None:
            images, labels = self.mixing(images, labels, step)
        if isinstance(self.protocol, Finetune):
            smoothing = self.protocol.smoothing
        loss = joint_loss(self.network.classify(images), labels, smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        sum_gradients(self.network.parameters())
        if isinstance(self.protocol, Finetune) and self.protocol.clip is not None:
            clip_gradients(self.network.parameters(), self.protocol.clip, "global")
        self.optimizer.step()
        if self.averaged:
            self.averaged.update_parameters(self.network)
        return loss.detach()

    @torch.no_grad()
    def _accuracy(self, network: nn.Module) -> dict[str, float]:
        """On the centre crops of the validation split, of which each process has its share."""
        share = own_share(labelled_count(self.manifest, "val"))
        with evaluating(network):
            crops = centre_crops(
                self.manifest, "val", self.target, self.options, interpolation=self.protocol.interpolation
            )
            return joint_accuracy(*collect(network, crops, share.stop - share.start))

    def _state(self, epoch: int) -> dict[str, Any]:
        averaged = {"averaged": self.averaged.state_dict()} if self.averaged else {}
        parts = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {"epoch": epoch, "top": self.top, **parts, **averaged}

    def _resume(self, progress: Progress) -> int:
        """Loads what an interrupted run left; the epoch to resume with."""
        state = progress.resume()
        if state is None:
            return 0
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        self.top = state["top"]
        return int(state["epoch"])


def _loader(
    protocol: Semi | Finetune,
    target: "Target",
    options: "Options",
    manifest: Manifest,
    labelled: "NDArray[np.int64]",
) -> Loader:
    """Random resized crops and flips of the labelled images."""
    crops = Views(size=target.crop, scale=protocol.scale, interpolation=protocol.interpolation, flip_p=protocol.flip_p)
    return training_loader(
        Data(dataset=target.dataset, views=(crops,), loader=options.loader),
        manifest,
        seed=options.seed,
        batch=protocol.batch,
        rank=rank(),
        world_size=world_size(),
        workers=options.workers,
        indices=labelled,
    )
