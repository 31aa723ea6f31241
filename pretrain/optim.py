"""Optimizers and learning rates of the papers."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import recipe
from whitebench.errors import UserError


def build_optimizer(
    module: nn.Module, optimizer: recipe.Optimizer, batch: int, constant: Iterable[nn.Module] = ()
) -> torch.optim.Optimizer:
    """The recipe's optimizer over all trainable parameters of `module`, at its base rate for this global batch.

    Parameters of one dimension (biases, norms) have a group of their own, which decays only with `decay_1d`. Groups of
    the parts in `constant` bear the mark "constant": their rate is not to follow the schedule. A group's rate is
    its "share" of the base rate.
    """
    held = {id(parameter) for part in constant for parameter in part.parameters()}
    groups = []
    for fixed in (False, True):
        trainable = [p for p in module.parameters() if p.requires_grad and (id(p) in held) is fixed]
        for flat in (False, True):
            decay = optimizer.weight_decay if optimizer.decay_1d or not flat else 0.0
            members = [p for p in trainable if (p.ndim <= 1) is flat]
            share = optimizer.lr_1d / optimizer.lr if flat and optimizer.lr_1d is not None else 1.0
            if members:
                own = {"lr": base_rate(optimizer, batch) * share, "share": share}
                groups.append({"params": members, "weight_decay": decay, "constant": fixed, **own})
    if not groups:
        raise UserError("nothing to optimize: the method has no trainable parameters")
    rate = base_rate(optimizer, batch)
    if optimizer.name == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=(optimizer.momentum, 0.999))
    if optimizer.name in ("lars", "larc"):
        return LARS(groups, lr=rate, momentum=optimizer.momentum, adapt_1d=optimizer.name == "larc")
    return torch.optim.SGD(groups, lr=rate, momentum=optimizer.momentum)


def base_rate(optimizer: recipe.Optimizer, batch: int) -> float:
    """The peak learning rate for a global batch: scaled linearly, unless `lr_batch` is None."""
    return optimizer.lr if optimizer.lr_batch is None else optimizer.lr * batch / optimizer.lr_batch


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888), as SimCLR and Barlow Twins use it.

    The update of a weight, weight decay included, is scaled by trust * |weight| / |update| before momentum. Parameters
    of one dimension are scaled only with `adapt_1d`: then it is what linear probes call LARC (without clipping).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        adapt_1d: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt_1d": adapt_1d}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        update = gradient.add(parameter, alpha=group["weight_decay"])
        if parameter.ndim > 1 or group["adapt_1d"]:
            update *= self._adaptation(parameter, update, group["trust"])
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        velocity = state["momentum"].mul_(group["momentum"]).add_(update)
        parameter.sub_(velocity, alpha=group["lr"])

    @staticmethod
    def _adaptation(parameter: Tensor, update: Tensor, trust: float) -> Tensor:
        """trust * |weight| / |update|; 1 where either is zero. Without a branch: the device need not be waited for."""
        weight_norm, update_norm = parameter.norm(), update.norm()
        return torch.where((weight_norm > 0) & (update_norm > 0), trust * weight_norm / update_norm, 1.0)


class LearningRate:
    """The learning rate of each step, a pure function of the step: a resumed run needs no state of it.

    Warm-up is linear, W steps: the first step runs at base / W, the W-th at base. After it, `cosine` falls to
    final_lr * base at the very last step (as INTL's official code counts); `cosine-by-epoch` is a function of the epoch
    alone, counted from the start of training (as CW-RGP's); `step` multiplies by gamma from each epoch in `steps` on.
    """

    def __init__(
        self, schedule: recipe.Schedule, optimizer: recipe.Optimizer, batch: int, steps_per_epoch: int
    ) -> None:
        self.schedule, self.steps_per_epoch = schedule, steps_per_epoch
        self.base = base_rate(optimizer, batch)
        self.total = schedule.epochs * steps_per_epoch
        self.warmup = schedule.warmup_iterations or round(schedule.warmup_epochs * steps_per_epoch)
        self.milestones = [epoch + schedule.epochs if epoch < 0 else epoch for epoch in schedule.steps]

    def __call__(self, step: int) -> float:
        """The rate of step 0, 1, ..."""
        if step < self.warmup:
            return self.base * (step + 1) / self.warmup
        epoch = step // self.steps_per_epoch
        if self.schedule.kind == "cosine":
            return self._cosine((step + 1 - self.warmup) / max(1, self.total - self.warmup))
        if self.schedule.kind == "cosine-by-epoch":
            return self._cosine(epoch / self.schedule.epochs)
        if self.schedule.kind == "step":
            return self.base * self.schedule.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        return self.base

    def _cosine(self, progress: float) -> float:
        share = (1 + math.cos(math.pi * progress)) / 2
        return self.base * (share + (1 - share) * self.schedule.final_lr)
