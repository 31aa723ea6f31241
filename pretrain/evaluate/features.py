"""Features of a frozen backbone."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pretrain.data import RawBatch, evaluation_batches
from pretrain.data.manifest import read_manifest

if TYPE_CHECKING:
    from pretrain.checkpoint import Backbone
    from pretrain.evaluate import Options, Target

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalise(nn.Module):
    """uint8 [B, 3, S, S] -> float32, (x / 255 - mean) / std by channel, channels-last in memory."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        spread = torch.tensor(std, dtype=torch.float64)
        scale = (1 / (255 * spread)).float().view(1, 3, 1, 1)
        shift = (-torch.tensor(mean, dtype=torch.float64) / spread).float().view(1, 3, 1, 1)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images.float(), self.scale).contiguous(memory_format=torch.channels_last)


class FrozenBackbone:
    """A backbone in evaluation mode, and the dataset on which it is judged."""

    def __init__(self, backbone: "Backbone", target: "Target", options: "Options") -> None:
        from pretrain.networks import build_backbone

        self.target, self.options = target, options
        self.device = torch.device(options.device)
        self.manifest = read_manifest(target.dataset)
        network = build_backbone(backbone.arch, backbone.stem)
        network.load_state_dict(backbone.tensors, strict=False)  # read_backbone has counted the tensors
        self.network = network.requires_grad_(False).eval().to(self.device).to(memory_format=torch.channels_last)
        mean, std = (backbone.metadata.get(key) for key in ("mean", "std"))
        self.normalise = Normalise(mean or IMAGENET_MEAN, std or IMAGENET_STD).to(self.device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> float32 [B, F]."""
        features: Tensor = self.network(self.normalise(images.to(self.device, non_blocking=True)))
        return features

    def features(self, split: str, batch: int = 256) -> tuple[Tensor, Tensor]:
        """Of the centre crops of a whole split, in its order: float32 [N, F] and labels int64 [N], on the device."""
        options, target = self.options, self.target
        where = (target.resize, target.crop, batch, options.workers, options.loader)
        return collect(self, evaluation_batches(self.manifest, split, *where))


def collect(encode: Callable[[Tensor], Tensor], batches: Iterable[RawBatch]) -> tuple[Tensor, Tensor]:
    """What `encode` makes of every batch's only view, float32 [N, F], and the labels int64 [N], on its device."""
    found = [(encode(raw.views[0]), raw.label) for raw in batches]
    features = torch.cat([feature for feature, _ in found])
    return features, torch.cat([label for _, label in found]).to(features.device)
