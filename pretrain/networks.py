"""Backbones with torchvision's names, projectors, and the slowly moving copy that target networks are."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretrain.methods import Encoded, Encoder
from pretrain.recipe import Network
from results.command import UserError, nearest

FEATURES = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048}
"""Architecture to the width of its pooled features."""
STEMS = ("imagenet", "cifar", "cifar-pad2", "small")


def feature_dim(arch: str) -> int:
    """Width of the pooled features.

    Raises:
        UserError: unknown architecture; the nearest names are given.
    """
    if arch not in FEATURES:
        raise UserError(f"unknown backbone '{arch}'{nearest(arch, FEATURES)}")
    return FEATURES[arch]


def build_backbone(arch: str, stem: str = "imagenet", zero_init_residual: bool = False) -> nn.Module:
    """A torchvision ResNet without its classifier: [B, 3, S, S] -> [B, F]. Stems: see `recipe.Network.stem`."""
    from torchvision import models  # its import takes as long as torch's, and planning a sweep needs none of it

    feature_dim(arch)
    if stem not in STEMS:
        raise UserError(f"unknown stem '{stem}'{nearest(stem, STEMS)}")
    network = getattr(models, arch)(weights=None, zero_init_residual=zero_init_residual)
    network.fc = nn.Identity()
    if stem != "imagenet":
        padding = 2 if stem == "cifar-pad2" else 1
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=padding, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stem.startswith("cifar"):
        network.maxpool = nn.Identity()
    return network


def build_projector(in_dim: int, network: Network) -> nn.Module:
    """[B, in_dim] -> [B, projector[-1]]: linear layers with batch norm and ReLU between; the identity where empty."""
    layers: list[nn.Module] = []
    widths = network.projector
    for i, width in enumerate(widths):
        last = i == len(widths) - 1
        layers.append(nn.Linear(in_dim, width, bias=last or network.projector_bias))
        if not last:
            layers += [nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        elif network.projector_last_norm != "none":
            layers.append(nn.BatchNorm1d(width, affine=network.projector_last_norm == "affine"))
        in_dim = width
    return nn.Sequential(*layers) if layers else nn.Identity()


def build_encoder(network: Network) -> Encoder:
    """Backbone and projector of a recipe, initialised from torch's global generator."""
    features = feature_dim(network.backbone)
    if any(width < 1 for width in network.projector):
        raise UserError(f"network.projector: widths are at least 1, not {list(network.projector)}")
    backbone = build_backbone(network.backbone, network.stem, network.zero_init_residual)
    embedding_dim = network.projector[-1] if network.projector else features
    return Encoder(backbone, build_projector(features, network), features, embedding_dim)


def embed_jointly(encoder: Encoder, views: Sequence[Tensor]) -> list[Tensor]:
    """Embeddings [B, D] of each view [B, 3, S_v, S_v]: the backbone sees one view at a time, the projector all at once.

    So the projector's batch norm takes its statistics over all views, as in the official code of CW-RGP and W-MSE.
    """
    features = [encoder.backbone(view) for view in views]
    return list(encoder.projector(torch.cat(features)).split([len(h) for h in features]))


class MomentumCopy(nn.Module):
    """An encoder whose parameters follow those of another by an exponential moving average, without gradients.

    Only parameters are averaged: its batch norms run in training mode and keep statistics of their own.
    """

    def __init__(self, encoder: Encoder, momentum: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum = momentum
        # In a tuple, the encoder is not registered as a part of this module: it belongs to the method.
        self._source: tuple[nn.Module] = (encoder,)

    def forward(self, view: Tensor) -> Encoded:
        encoded: Encoded = self.network(view)
        return encoded

    def momentum_at(self, progress: float) -> float:
        """From `momentum` at the start to 1 at the end of the training, by a cosine."""
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """theta' <- m theta' + (1 - m) theta, m as of `progress`, the share of all steps that are done."""
        weight = 1 - self.momentum_at(progress)
        for own, followed in zip(self.network.parameters(), self._source[0].parameters(), strict=True):
            own.lerp_(followed, weight)
