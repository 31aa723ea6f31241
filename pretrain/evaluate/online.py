"""k-NN during training: a look at the backbone as it is, without touching the run's random numbers or its statistics."""

import torch
from torch import Tensor, nn

from pretrain.data import evaluation_batches
from pretrain.data.manifest import Manifest
from pretrain.evaluate.features import collect
from pretrain.evaluate.knn import accuracy
from pretrain.evaluate.protocols import find_protocol
from pretrain.recipe import Recipe


@torch.no_grad()
def online_knn(backbone: nn.Module, normalise: nn.Module, manifest: Manifest, recipe: Recipe) -> float:
    """Top-1 (per cent) of the validation split by 20 cosine neighbours among the first training images."""
    device = next(backbone.parameters()).device
    crop, resize = recipe.evaluation_crop, recipe.evaluation_resize
    was_training = backbone.training
    backbone.eval()

    def encode(images: Tensor) -> Tensor:
        return backbone(normalise(images.to(device))).float()

    def features(split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
        workers, loader = recipe.machine.workers, "folder" if recipe.data.loader == "folder" else "ffcv"
        return collect(encode, evaluation_batches(manifest, split, resize, crop, 256, workers, loader, limit=limit))

    top = accuracy(*features("train", recipe.monitor.knn_images), *features("val"), find_protocol("knn", "cosine-20"))
    backbone.train(was_training)
    return top["top1"]
