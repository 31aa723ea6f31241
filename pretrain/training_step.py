"""One step of a training: forward, backward, update. It depends on a method and a recipe, not on data or files."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.data.batch import Batch
from pretrain.distributed import rank, world_size
from pretrain.losses.deferred import report_failed_checks
from pretrain.method import Method, Step
from pretrain.optim import LearningRate, build_optimizer, clip_gradients, weight_decay_at
from pretrain.recipe import Recipe
from pretrain.repeatable import derive_seed

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingStep:
    """A method with its optimizer and what changes from step to step: rates, weight decay, random state."""

    def __init__(self, method: Method[Any], recipe: Recipe, device: torch.device, steps_per_epoch: int) -> None:
        self.method, self.recipe, self.device = method, recipe, device
        self.steps_per_epoch = steps_per_epoch
        self.model: nn.Module = DistributedDataParallel(method) if world_size() > 1 else method
        self.optimizer = build_optimizer(method, recipe.optimizer, recipe.batch, method.constant_rate())
        self.learning_rate = LearningRate(recipe.schedule, recipe.optimizer, recipe.batch, steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")

    def __call__(self, batch: Batch, step: int) -> Step:
        """Step 0, 1, ... on a batch whose views are normalised and on the device."""
        self._prepare(step)
        with self._autocast():
            outcome: Step = self.model(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(outcome.loss).backward()
        if self.recipe.optimizer.clip is not None:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.method.parameters(), self.recipe.optimizer.clip, self.recipe.optimizer.clip_norm)
        self.method.before_update()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_update()
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs of this, as plain data and tensors.

        Raises:
            UserError: a check of a loss has failed that the host did not wait for.
        """
        report_failed_checks()
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def _prepare(self, step: int) -> None:
        torch.manual_seed(derive_seed(self.recipe.seed, step, rank()))
        epochs = self.recipe.schedule.epochs
        progress = step / (epochs * self.steps_per_epoch)
        self.method.step, self.method.epoch = step, step // self.steps_per_epoch
        self.method.epochs, self.method.steps_per_epoch = epochs, self.steps_per_epoch
        self.method.progress = progress
        self.method.seed = self.recipe.seed
        self.method.shared_seed = derive_seed(self.recipe.seed, "shared", step)
        for group in self.optimizer.param_groups:
            if not group["constant"]:
                group["lr"] = self.learning_rate(step) * group["share"]
            if group["decays"]:
                group["weight_decay"] = weight_decay_at(self.recipe.optimizer, progress)

    def _autocast(self) -> Any:
        dtype = AUTOCAST.get(self.recipe.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()
