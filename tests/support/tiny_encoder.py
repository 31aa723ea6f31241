"""A network small enough for exact comparisons in float64, with batch norm in its backbone and in its projector."""

import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.method import Encoder


def tiny_encoder(embedding_dim: int = 48, seed: int = 0, dtype: torch.dtype = torch.float64) -> Encoder:
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    projector = nn.Sequential(nn.Linear(32, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, embedding_dim))
    return Encoder(backbone, projector, 32, embedding_dim).to(dtype)


def tiny_vit(embedding_dim: int = 48, seed: int = 0, projector: bool = True) -> Encoder:
    """timm's vision transformer of two blocks for 8 x 8 pixels, patches of 4, positions that are resized; float32."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    backbone = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=0, dynamic_img_size=True
    )
    if not projector:
        return Encoder(backbone, nn.Identity(), 24, 24)
    layers = nn.Sequential(nn.Linear(24, 24), nn.BatchNorm1d(24), nn.GELU(), nn.Linear(24, embedding_dim))
    return Encoder(backbone, layers, 24, embedding_dim)


def images(count: int, seed: int, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def batch_of(count: int, views: int = 2, dtype: torch.dtype = torch.float64) -> Batch:
    """Views are the same images with different noise, the last one smaller."""
    clean = images(count, 0)
    noisy = [(clean + 0.3 * images(count, v + 1))[..., : 8 - (v == views - 1), :].to(dtype) for v in range(views)]
    return Batch(noisy, torch.arange(count), torch.arange(count) % 4)


def part_of(batch: Batch, rank: int, world_size: int) -> Batch:
    """What one of several processes gets: a contiguous share."""
    return Batch(
        [view.chunk(world_size)[rank] for view in batch.views],
        batch.index.chunk(world_size)[rank],
        batch.label.chunk(world_size)[rank],
    )
