"""Backbones by torchvision's or timm's names, projectors, and the slowly moving copy that target networks are."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pretrain.architectures import RESNETS, resnet_width, timm_architecture
from pretrain.method import Encoder
from pretrain.recipe_sections import Network
from pretrain.single_pixel_conv import skip_padding
from pretrain.timm_networks import build_for_recipe, feature_width
from pretrain.whitening_layer import Whitening
from whitebench.errors import UserError, nearest

NetworkT = TypeVar("NetworkT", bound=nn.Module)
STEMS = ("imagenet", "cifar", "cifar-pad2", "small")


def build_backbone(
    arch: str, stem: str = "imagenet", zero_init_residual: bool = False, stem_init: str = "default"
) -> nn.Module:
    """A torchvision ResNet without its classifier: [B, 3, S, S] -> [B, F]. Stems: see `recipe_sections.Network`."""
    from pretrain.resnets import build_resnet  # torchvision takes as long as torch; planning a sweep needs neither

    if arch not in RESNETS:
        raise UserError(f"unknown backbone '{arch}'{nearest(arch, RESNETS)}")
    if stem not in STEMS:
        raise UserError(f"unknown stem '{stem}'{nearest(stem, STEMS)}")
    network = build_resnet(arch, zero_init_residual)
    network.fc = nn.Identity()
    if stem != "imagenet":
        padding = 2 if stem == "cifar-pad2" else 1
        network.conv1 = nn.Conv2d(3, resnet_width(arch), kernel_size=3, stride=1, padding=padding, bias=False)
        if stem_init == "kaiming":
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stem.startswith("cifar"):
        network.maxpool = nn.Identity()
    return skip_padding(network)


def build_projector(in_dim: int, network: Network) -> nn.Module:
    """[B, in_dim] -> [B, projector[-1]]: an `mlp` of the recipe's widths; the identity where it has none."""
    if not network.projector:
        return nn.Identity()
    *hidden, width = network.projector
    layers: list[nn.Module] = []
    if network.projector_input is not None:
        layers.append(nn.Linear(in_dim, network.projector_input))
        in_dim = network.projector_input
    layers.extend(mlp(in_dim, hidden, network.projector_bias, network.projector_norm, network.projector_activation))
    layers.append(nn.Linear(hidden[-1] if hidden else in_dim, width, bias=network.projector_last_bias))
    if network.projector_last_norm != "none":
        layers.append(nn.BatchNorm1d(width, affine=network.projector_last_norm == "affine"))
    return nn.Sequential(*layers)


def build_predictor(dim: int, hidden: int, bias: bool = True) -> nn.Module:
    """[B, dim] -> [B, dim] through one hidden layer with batch norm and ReLU: BYOL's and SimSiam's predictor.

    `bias` is the hidden layer's, which the batch norm after it makes useless: SimSiam has none.
    """
    return nn.Sequential(*mlp(dim, [hidden], bias), nn.Linear(hidden, dim))


def mlp(
    in_dim: int, hidden: Sequence[int], bias: bool = True, norm: bool = True, activation: str = "relu"
) -> Iterator[nn.Module]:
    """Hidden layers of these widths: linear, batch norm where `norm`, activation."""
    for width in hidden:
        yield nn.Linear(in_dim, width, bias=bias)
        if norm:
            yield nn.BatchNorm1d(width)
        yield nn.GELU() if activation == "gelu" else nn.ReLU(inplace=True)
        in_dim = width


def build_encoder(network: Network, view_sizes: Iterable[int] = ()) -> Encoder:
    """Backbone and projector of a recipe, initialised from torch's global generator.

    Args:
        view_sizes: sides of the views, pixels: a vision transformer has position embeddings for the largest.
    """
    options: dict[str, Any] | None = None
    if timm_architecture(network.backbone) is None:
        backbone = build_backbone(network.backbone, network.stem, network.zero_init_residual, network.stem_init)
    else:
        backbone, options = build_for_recipe(network, view_sizes)
    features = feature_width(backbone)
    embedding_dim = network.projector[-1] if network.projector else features
    return Encoder(
        backbone,
        _with_whitening(build_projector(features, network), features, embedding_dim, network),
        features,
        embedding_dim,
        options,
    )


def _with_whitening(projector: nn.Module, features: int, embedding_dim: int, network: Network) -> nn.Module:
    """The projector, with a layer that whitens before or after it where the recipe has one."""
    if network.whitening == "none":
        return projector
    at_end = network.whitening_at == "projector"
    layer = Whitening(
        embedding_dim if at_end else features,
        network.whitening,
        network.whitening_groups,
        network.whitening_iterations,
        network.whitening_eps,
        across_ranks=network.sync_bn,
    )
    return nn.Sequential(projector, layer) if at_end else nn.Sequential(layer, projector)


def embed_jointly(encoder: Encoder, views: Sequence[Tensor]) -> list[Tensor]:
    """Embeddings [B, D] of each view [B, 3, S_v, S_v]: the backbone sees one view at a time, the projector all at once.

    So the projector's batch norm takes its statistics over all views, as in the official code of CW-RGP and W-MSE.
    """
    features = [encoder.backbone(view) for view in views]
    return list(encoder.projector(torch.cat(features)).split([len(h) for h in features]))


def embed_by_size(encoder: Encoder, views: Sequence[Tensor]) -> list[Tensor]:
    """Embeddings [B, D] of each view [B, 3, S_v, S_v]: the backbone sees views of one size at once, the projector all.

    So do the official codes of SwAV and DINO: batch norms take their statistics over all crops of a size.
    """
    sizes: dict[torch.Size, list[int]] = {}
    for v, view in enumerate(views):
        sizes.setdefault(view.shape[-2:], []).append(v)
    features: dict[int, Tensor] = {}
    for indices in sizes.values():
        together = encoder.backbone(torch.cat([views[v] for v in indices]))
        features.update(zip(indices, together.chunk(len(indices)), strict=True))
    ordered = [features[v] for v in range(len(views))]
    return list(encoder.projector(torch.cat(ordered)).chunk(len(views)))


class MomentumCopy(nn.Module, Generic[NetworkT]):
    """A network whose parameters follow those of another by an exponential moving average, without gradients.

    Only parameters are averaged: its batch norms run in training mode and keep statistics of their own.
    """

    def __init__(self, followed: NetworkT, momentum: float) -> None:
        super().__init__()
        self.network: NetworkT = copy.deepcopy(followed)
        self.network.requires_grad_(False)
        self.momentum = momentum
        # In a tuple, it is not registered as a part of this module: it belongs to the method.
        self._followed: tuple[NetworkT] = (followed,)

    def forward(self, x: Tensor) -> Any:
        """What the followed network would return: `Encoded` for an encoder."""
        return self.network(x)

    def momentum_at(self, progress: float, final: float = 1.0) -> float:
        """From `momentum` at the start to `final` at the end of the training, by a cosine."""
        return final - (final - self.momentum) * (1 + math.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """theta' <- momentum theta' + (1 - momentum) theta."""
        for averaged, followed in zip(self.network.parameters(), self._followed[0].parameters(), strict=True):
            averaged.lerp_(followed, 1 - momentum)
