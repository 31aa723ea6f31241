"""k-NN during training: a look at the backbone as it is, without touching the run's random numbers or statistics."""

import torch
from torch import Tensor, nn

from pretrain.data import evaluation_batches
from pretrain.data.manifest import Manifest
from pretrain.evaluate.features import collect
from pretrain.evaluate.knn import accuracy
from pretrain.evaluate.protocols import KNN
from pretrain.recipe import Recipe

JUDGE = KNN("online", "this suite: as cosine-20, among a part of the training images", 20, "cosine")


@torch.no_grad()
def online_knn(backbone: nn.Module, normalise: nn.Module, manifest: Manifest, recipe: Recipe) -> float:
    """Top-1 (per cent) of the validation split by 20 cosine neighbours among evenly chosen training images."""
    device = next(backbone.parameters()).device
    where = (recipe.evaluation_resize, recipe.evaluation_crop, 256, recipe.machine.workers, recipe.data.loader)

    def encode(images: Tensor) -> Tensor:
        features: Tensor = backbone(normalise(images.to(device)))
        return features.float()

    count = manifest.split("train").count
    chosen = range(0, count, -(-count // recipe.monitor.knn_images))
    was_training = backbone.training
    backbone.eval()
    train = collect(encode, evaluation_batches(manifest, "train", *where, indices=chosen))
    val = collect(encode, evaluation_batches(manifest, "val", *where))
    backbone.train(was_training)
    return accuracy(*train, *val, JUDGE)["top1"]
