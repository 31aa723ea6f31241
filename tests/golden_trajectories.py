"""Whole trainings of 12 steps through the parts of this suite, in float64, whose official values are known.

`tests/data/trajectories.json` has the losses and weights that the methods' official code gives for the same inputs:
images and initial weights are sines of their indices, random permutations are sorted sines. Here the method, its
optimizer, schedules, target networks, queues and centres are those of `pretrain`: only the tiny network, its initial
weights, the images and the permutations are this file's.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.losses import windows
from pretrain.method import Encoder, Method, find_method
from pretrain.networks import MomentumCopy, build_projector
from pretrain.recipe import Recipe, recipe_of
from pretrain.training_step import TrainingStep

STEPS, BATCH, FEATURES = 12, 16, 16
CPU = torch.device("cpu")

TWO_VIEWS = [(0, 8), (1, 8)]
"""(v, side in pixels) of each view."""
ADAM = {"name": "adam", "lr": 3e-3, "lr_batch": None, "weight_decay": 1e-6}
BY_STEPS = {"epochs": 3, "kind": "step", "steps": [1, 2], "gamma": 0.2, "warmup_iterations": 3}
BARLOW = {"epochs": 16, "warmup_epochs": 10, "final_lr": 0.001}
INTL = {
    "network": {"projector": [32, 32, 32], "projector_bias": False},
    "optimizer": {"name": "sgd", "lr": 0.5, "lr_batch": None, "weight_decay": 1e-3, "decay_1d": False},
    "schedule": {"epochs": 3, "warmup_epochs": 1, "final_lr": 0.001},
}
DINO = {
    "method": {
        "name": "dino",
        "outputs": 24,
        "momentum": 0.9,
        "teacher_temperature": 0.07,
        "warmup_epochs": 2,
    },
    "network": {"projector": [32, 32, 8], "projector_norm": False, "projector_activation": "gelu"},
    "views": [(0, 8), (1, 8), (2, 6), (3, 6)],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "intl": {"method": {"name": "intl"}, **INTL},
    "intl_ema": {"method": {"name": "intl", "momentum": 0.9}, "views": [(0, 8), (1, 8), (2, 6)], **INTL},
    "cwrgp_2view": {
        "method": {"name": "cwrgp", "groups": 2, "window": 8},
        "network": {"projector": [32, 64]},
        "optimizer": ADAM,
        "schedule": BY_STEPS,
    },
    "wmse": {
        "method": {"name": "wmse", "window": 8},
        "network": {"projector": [32, 4]},
        "optimizer": ADAM,
        "schedule": BY_STEPS,
    },
    "byol": {
        "method": {"name": "byol", "predictor": 32, "momentum": 0.9},
        "network": {"projector": [32, 16]},
        "optimizer": ADAM,
        "schedule": BY_STEPS,
    },
    "simsiam": {
        "method": {"name": "simsiam", "predictor": 8},
        "network": {
            "projector": [16, 16, 32],
            "projector_bias": False,
            "projector_last_bias": False,
            "projector_last_norm": "plain",
        },
        "optimizer": {"lr": 0.5, "lr_batch": None, "weight_decay": 1e-3},
        "schedule": {"epochs": 3, "kind": "cosine-by-epoch"},
    },
    "moco_v2": {
        "method": {"name": "moco", "queue": 64, "momentum": 0.9},
        "network": {"projector": [16, 16], "projector_norm": False},
        "optimizer": {"lr": 0.06, "lr_batch": None, "weight_decay": 1e-3},
        "schedule": {"epochs": 3, "kind": "cosine-by-epoch"},
    },
    "barlow_twins": {
        "method": {"name": "barlow_twins"},
        "network": {"projector": [32, 32, 32], "projector_bias": False, "projector_last_bias": False},
        "optimizer": {"name": "lars", "lr": 640.0, "lr_1d": 0.64, "weight_decay": 1e-3, "decay_1d": False},
        "schedule": BARLOW,
        "steps_per_epoch": 1,
    },
    "vicreg": {
        "method": {"name": "vicreg"},
        "network": {"projector": [32, 32, 32], "projector_last_bias": False},
        "optimizer": {"name": "lars", "lr": 4.0, "weight_decay": 1e-6, "decay_1d": False},
        "schedule": BARLOW,
        "steps_per_epoch": 1,
    },
    "swav": {
        "method": {"name": "swav", "prototypes": 12, "queue": 32, "queue_epoch": 1, "frozen_iterations": 3},
        "network": {"projector": [32, 16]},
        "optimizer": {"name": "larc", "lr": 40.0, "lr_batch": None, "weight_decay": 1e-3},
        "schedule": {"epochs": 3, "warmup_epochs": 1, "warmup_from": 0.1, "final_lr": 0.001},
        "views": DINO["views"],
    },
    "dino_sgd": {
        **DINO,
        "optimizer": {"lr": 0.5, "lr_batch": None, "weight_decay": 1e-3, "decay_1d": False},
        "schedule": {"epochs": 3, "warmup_epochs": 1, "final_lr": 2e-4},
    },
    "dino_adamw": {
        **DINO,
        "optimizer": {
            "name": "adamw",
            "lr": 5e-3,
            "lr_batch": None,
            "weight_decay": 0.04,
            "final_weight_decay": 0.4,
            "decay_1d": False,
            "clip": 0.3,
        },
        "schedule": {"epochs": 3, "warmup_epochs": 1, "final_lr": 2e-2},
    },
}


def run(name: str, phase: float = 0.0) -> dict[str, Any]:
    """Trains 12 steps on images of the times t + phase.

    Returns:
        losses (12 numbers), learning_rates (of each parameter group at each step), features0 (of the fresh encoder),
        and of the trained network conv1, conv2, bn1_running_mean, projector_last, and what else the method has of:
        predictor_last, target_conv1, queue_rows, prototypes, last_layer_v, centre. Tensors are float64.
    """
    step = training_step(name)
    method = step.method
    with torch.no_grad():  # on a copy: its batch norms take note of what they see
        features = copy.deepcopy(method.encoder.backbone)(image(phase, 0, 8))
    losses, rates = train(step, name, range(STEPS), phase)
    return {"losses": losses, "learning_rates": rates, "features0": features, **weights_of(method)}


def training_step(name: str) -> TrainingStep:
    """Of a trajectory, before its first step."""
    recipe, method = build(SETTINGS[name])
    return TrainingStep(method, recipe, CPU, SETTINGS[name].get("steps_per_epoch", 4))


def train(step: TrainingStep, name: str, times: range, phase: float = 0.0) -> tuple[list[float], list[list[float]]]:
    """The losses of some steps of a trajectory, and the learning rates of each parameter group."""
    losses, rates = [], []
    step.method.train()
    for t in times:
        views = [image(t + phase, v, side) for v, side in SETTINGS[name].get("views", TWO_VIEWS)]
        with permutations_of_step(t):
            losses.append(step(Batch(views, torch.arange(BATCH), torch.zeros(BATCH)), t).loss.item())
        rates.append([group["lr"] for group in step.optimizer.param_groups])
    return losses, rates


def build(settings: dict[str, Any]) -> tuple[Recipe, Method[Any]]:
    """The recipe of a trajectory, and its method on the tiny network with the definition's initial weights."""
    sizes = [side for _, side in settings.get("views", TWO_VIEWS)]
    raw = {
        "name": "trajectory",
        "batch": BATCH,
        "data": {"dataset": "sines", "views": [{"size": side} for side in sizes]},
        **{key: settings[key] for key in ("method", "network", "optimizer", "schedule")},
    }
    recipe = recipe_of(raw, where="trajectory")
    projector = build_projector(FEATURES, recipe.network)
    encoder = Encoder(Backbone(), projector, FEATURES, recipe.network.projector[-1])
    method = find_method(recipe.method_name)(encoder, recipe.method).double()
    method.check(BATCH, len(sizes))
    initialise(method)
    return recipe, method


class Backbone(nn.Module):
    """[B, 3, S, S] -> [B, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, FEATURES, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.bn2(self.conv2(x)).relu().mean(dim=(2, 3))


@torch.no_grad()
def initialise(method: Method[Any]) -> None:
    """Sets all weights by their tags; target networks start as copies."""
    backbone = method.encoder.backbone
    for tag, (convolution, norm) in enumerate(((backbone.conv1, backbone.bn1), (backbone.conv2, backbone.bn2)), 1):
        fill(convolution, tag)
        fill(norm, tag)
    fill_layers(method.encoder.projector, 10)
    for part, tag in (("predictor", 20), ("prototypes", 29), ("last", 30)):
        if hasattr(method, part):
            layers = getattr(method, part)
            fill_layers(layers if isinstance(layers, nn.Sequential) else [layers], tag)
    for module in method.modules():
        if isinstance(module, MomentumCopy):
            module.update(0.0)
    contrast = getattr(method, "contrast", None)
    if contrast is not None:
        contrast.queue.rows.copy_(nn.functional.normalize(waves(*contrast.queue.rows.shape, 0, 40)))


def fill_layers(layers: Any, tag: int) -> None:
    """The k-th linear layer (from 1) and the batch norm after it have the tag `tag` + k."""
    for layer in layers:
        if isinstance(getattr(layer, "weight", None), Tensor):
            tag += not isinstance(layer, nn.BatchNorm1d)
            fill(layer, tag)


def fill(layer: nn.Module, tag: int) -> None:
    weight, bias = layer.weight, getattr(layer, "bias", None)
    assert isinstance(weight, Tensor)
    index = torch.arange(len(weight), dtype=torch.float64)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        weight.copy_(1 + 0.1 * (index + tag).sin())
    else:
        fan_in = weight[0].numel()
        weight.copy_((waves(len(weight), fan_in, 0, tag) / math.sqrt(fan_in)).view_as(weight))
    if isinstance(bias, Tensor):
        bias.copy_(0.1 * (index + tag).cos())


def waves(n: int, d: int, view: float, seed: float) -> Tensor:
    """float64 [n, d]: `inp` of the golden values."""
    i = torch.arange(n * d, dtype=torch.float64)
    wave = (0.7 * i + seed).sin() + 0.5 * (0.013 * i.square() + seed).cos() + 0.1 * (1.3 * i + 2 * view + seed).sin()
    return wave.view(n, d)


def image(t: float, view: int, side: int) -> Tensor:
    """float64 [16, 3, side, side]."""
    i = torch.arange(BATCH * 3 * side**2, dtype=torch.float64)
    flat = waves(BATCH, 3 * side**2, view, 0.5 * t).flatten() + 0.3 * (2.1 * i + 1.7 * view + t).sin()
    return flat.view(BATCH, 3, side, side)


def permutation(size: int, k: int) -> Tensor:
    j = torch.arange(size, dtype=torch.float64)
    x = (12.9898 * j + 78.233 * k).sin() * 43758.5453
    return (x - x.floor()).argsort()


@contextmanager
def permutations_of_step(t: int) -> Iterator[None]:
    """Whitening in windows draws these permutations of images, and of the channels of view v and window j of two."""

    def draw(count: int, size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        if size == BATCH:
            return permutation(size, 1000 + t).unsqueeze(0)
        return torch.stack([permutation(size, 100 * t + 2 * (i % 2) + i // 2) for i in range(count)])

    with mock.patch.object(windows, "_permutations", draw):
        yield


def weights_of(method: Method[Any]) -> dict[str, Tensor]:
    """What is compared of a trained method, by the names of the file of values."""
    backbone = method.encoder.backbone
    linears = [layer for layer in method.encoder.projector.modules() if isinstance(layer, nn.Linear)]
    tensors = {
        "conv1": backbone.conv1.weight,
        "conv2": backbone.conv2.weight,
        "bn1_running_mean": backbone.bn1.running_mean,
        "projector_last": linears[-1].weight,
    }
    for name, encoder in method.encoders().items():
        if name in ("momentum", "teacher"):
            tensors["target_conv1"] = encoder.backbone.conv1.weight
    paths = {
        "predictor_last": "predictor.3.weight",
        "queue_rows": "contrast.queue.rows",
        "prototypes": "prototypes.weight",
        "last_layer_v": "last.weight",
        "centre": "centre",
    }
    state = method.state_dict()
    tensors.update({name: state[path] for name, path in paths.items() if path in state})
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if tensor is not None}
