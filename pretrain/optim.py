"""Optimizers and learning rates of the papers."""

import math
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import recipe_sections
from whitebench.errors import UserError

FINAL = ("norm.", "fc_norm.", "head.")
"""The last norm of timm's networks, by its names."""


def build_optimizer(
    module: nn.Module, optimizer: recipe_sections.Optimizer, batch: int, constant: Iterable[nn.Module] = ()
) -> torch.optim.Optimizer:
    """The recipe's optimizer over all trainable parameters of `module`, at its base rate for this global batch.

    Parameters of one dimension (biases, norms) have a group of their own, which decays only with `decay_1d`. Groups of
    parts in `constant` are marked "constant": their rate does not follow the schedule. A group's rate is its "share" of
    the base rate; with `layer_decay`, each layer of the backbone has groups of its own. "decays" says whether a group
    takes part in a schedule of the weight decay.
    """
    constant_ids = {id(parameter) for part in constant for parameter in part.parameters()}
    shares = layer_shares(module, optimizer.layer_decay)
    groups = []
    for fixed, layer_share in product((False, True), sorted(set(shares.values()) | {1.0})):
        trainable = [p for p in module.parameters() if p.requires_grad and (id(p) in constant_ids) is fixed]
        for flat in (False, True):
            decays = optimizer.decay_1d or not flat
            members = [p for p in trainable if (p.ndim <= 1) is flat and shares.get(id(p), 1.0) == layer_share]
            share = optimizer.lr_1d / optimizer.lr if flat and optimizer.lr_1d is not None else 1.0
            share *= layer_share
            if members:
                rates = {"lr": base_rate(optimizer, batch) * share, "share": share}
                decay = optimizer.weight_decay if decays else 0.0
                groups.append({"params": members, "weight_decay": decay, "decays": decays, "constant": fixed, **rates})
    if not groups:
        raise UserError("nothing to optimize: the method has no trainable parameters")
    rate = base_rate(optimizer, batch)
    if optimizer.name in ("adam", "adamw"):
        adam = torch.optim.Adam if optimizer.name == "adam" else torch.optim.AdamW
        betas = (optimizer.momentum, optimizer.beta_2)
        return adam(groups, lr=rate, betas=betas, fused=True)  # 3 times as fast on a CPU
    form: dict[str, Any] = {"lr": rate, "momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
    if optimizer.name == "sgd":
        return torch.optim.SGD(groups, **form)
    if optimizer.trust is not None:
        form["trust"] = optimizer.trust
    if optimizer.name in ("lars", "larc"):
        return (LARS if optimizer.name == "lars" else LARC)(groups, **form)
    return SoloLARS(groups, **form, clipped=optimizer.name == "lars-clipped")


def layer_shares(module: nn.Module, decay: float | None) -> dict[int, float]:
    """id of each parameter of the backbone to its layer's share of the rate: decay^(layers above it).

    As BEiT and MAE count them: patch embedding, tokens and positions are the first layer, then each block is one, and
    the final norm is the last, with the full rate.

    Raises:
        UserError: the backbone is not timm's.
    """
    if decay is None:
        return {}
    backbone: Any = getattr(getattr(module, "encoder", None), "backbone", None)
    if not hasattr(backbone, "group_matcher"):
        raise UserError("optimizer.layer_decay: needs a backbone of timm, e.g. network.backbone=vit_small_patch16")
    from timm.models import group_parameters

    layers = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    final = {name for name in layers if name.startswith(FINAL)}  # timm counts it to the last block
    last = 1 + max(layer for name, layer in layers.items() if name not in final)
    named = backbone.named_parameters()
    return {id(p): decay ** (0 if name in final else last - layers[name]) for name, p in named}


def base_rate(optimizer: recipe_sections.Optimizer, batch: int) -> float:
    """The peak learning rate for a global batch: scaled linearly, unless `lr_batch` is None."""
    return optimizer.lr if optimizer.lr_batch is None else optimizer.lr * batch / optimizer.lr_batch


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888), as SimCLR and Barlow Twins use it.

    The update of a weight, u = gradient + decay * weight, is scaled by trust * |weight| / |u| before momentum; that of
    a parameter of one dimension is not.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})
        self.nesterov = nesterov

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, self._scaled(parameter, parameter.grad, group), group)
        return loss

    def _scaled(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        update = gradient.add(parameter, alpha=group["weight_decay"])
        if parameter.ndim <= 1:
            return update
        # Where a norm is zero, the update stays as it is. Without a branch: the device need not be waited for.
        norm, update_norm = parameter.norm(), update.norm()
        ratio = group["trust"] * norm / update_norm
        return update * torch.where((norm > 0) & (update_norm > 0), ratio, 1.0)

    def _move(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        velocity = state["momentum"].mul_(group["momentum"]).add_(update)
        if self.nesterov:
            velocity = update.add(velocity, alpha=group["momentum"])
        parameter.sub_(velocity, alpha=group["lr"])


class LARC(LARS):
    """LARS in the form of apex's LARC without clipping, which SwAV, SimSiam's linear probes and others train with.

    Every parameter is scaled, those of one dimension too, and the ratio has the two norms apart:
    trust * |weight| / (|gradient| + decay * |weight| + 1e-8). Where either norm is zero, the update is the gradient
    alone, without weight decay.
    """

    def _scaled(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        decay = group["weight_decay"]
        norm, gradient_norm = parameter.norm(), gradient.norm()
        ratio = group["trust"] * norm / (gradient_norm + decay * norm + 1e-8)
        scaled = gradient.add(parameter, alpha=decay) * ratio
        return torch.where((norm > 0) & (gradient_norm > 0), scaled, gradient)


class SoloLARS(LARS):
    """LARS as solo-learn has it: LARC's ratio, on parameters of more than one dimension only, and with trust 0.02.

    With `clipped`, the ratio is min(ratio / rate, 1), and the rate of a weight is at most the group's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        clipped: bool = True,
        trust: float = 0.02,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr, momentum, trust=trust, nesterov=nesterov)
        self.clipped = clipped

    def _scaled(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        decay = group["weight_decay"]
        update = gradient.add(parameter, alpha=decay)
        if parameter.ndim <= 1:
            return update
        norm, gradient_norm = parameter.norm(), gradient.norm()
        ratio = group["trust"] * norm / (gradient_norm + decay * norm + 1e-8)
        if self.clipped:
            ratio = (ratio / group["lr"]).clamp_max(1.0)
        return torch.where((norm > 0) & (gradient_norm > 0), update * ratio, gradient)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], clip: float, norm: str = "tensor") -> None:
    """Scales gradients by min(1, clip / (norm + 1e-6)), the norm of each ("tensor") or of all together ("global")."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = [gradient.norm() for gradient in gradients]
    if norm == "global" and norms:
        norms = [torch.stack(norms).norm()] * len(norms)
    for gradient, size in zip(gradients, norms, strict=True):
        gradient.mul_((clip / (size + 1e-6)).clamp_max(1.0))


class LearningRate:
    """The learning rate of each step, a pure function of the step: a resumed run needs no state of it.

    Warm-up is linear; after it, `cosine` falls to final_lr * base. `recipe_sections.Schedule.counting` says which step
    has which rate. `cosine-by-epoch` is a function of the epoch alone, counted from the start of training; `step`
    multiplies by gamma at the start of each epoch in `steps`, as PyTorch's MultiStepLR does: a milestone that warm-up
    has not yet passed is overwritten by it.
    """

    def __init__(
        self, schedule: recipe_sections.Schedule, optimizer: recipe_sections.Optimizer, batch: int, steps_per_epoch: int
    ) -> None:
        self.schedule, self.steps_per_epoch = schedule, steps_per_epoch
        self.base = base_rate(optimizer, batch)
        self.total = schedule.epochs * steps_per_epoch
        self.warmup = schedule.warmup_iterations or round(schedule.warmup_epochs * steps_per_epoch)
        self.milestones = [epoch + schedule.epochs if epoch < 0 else epoch for epoch in schedule.steps]

    def __call__(self, step: int) -> float:
        """The rate of step 0, 1, ..."""
        if step < self.warmup:
            return self.base * self._warming(step)
        if self.schedule.kind == "cosine":
            done = step + (self.schedule.counting == "from-one") - self.warmup
            return self._cosine(done / max(1, self.total - self.warmup))
        epoch = step // self.steps_per_epoch
        warm_epoch = (self.warmup - 1) // self.steps_per_epoch  # the last one with a step of warm-up; -1 without
        if epoch == warm_epoch or self.schedule.kind == "constant":
            return self.base
        if self.schedule.kind == "cosine-by-epoch":
            return self._cosine(epoch / self.schedule.epochs)
        return self.base * self.schedule.gamma ** sum(warm_epoch < milestone <= epoch for milestone in self.milestones)

    def _warming(self, step: int) -> float:
        counting, start = self.schedule.counting, self.schedule.warmup_from
        fraction = {
            "from-one": (step + 1) / self.warmup,
            "from-zero": step / self.warmup,
            "inclusive": step / max(1, self.warmup - 1),
        }[counting]
        return start + (1 - start) * fraction

    def _cosine(self, progress: float) -> float:
        share = (1 + math.cos(math.pi * progress)) / 2
        return self.base * (share + (1 - share) * self.schedule.final_lr)


def weight_decay_at(optimizer: recipe_sections.Optimizer, progress: float) -> float:
    """The weight decay when a share `progress` of all steps is done: a cosine where it has an end of its own."""
    final = optimizer.weight_decay if optimizer.final_weight_decay is None else optimizer.final_weight_decay
    return final + (optimizer.weight_decay - final) * (1 + math.cos(math.pi * progress)) / 2
