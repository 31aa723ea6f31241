"""Normalisation of uint8 images by channel."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
