"""Evaluation of the encoder during training, without touching its random numbers or the statistics of its norms."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.data.betons.manifest import Manifest
from pretrain.data.loaders.build import evaluation_batches
from pretrain.distributed import gather_with_gradient, rank, world_size
from pretrain.evaluate.features import collect
from pretrain.evaluate.knn import accuracy
from pretrain.evaluate.protocol_kinds import KNN
from pretrain.recipe import Recipe

PROTOCOL = KNN("online", "this suite: as cosine-20, among a part of the training images", 20, "cosine")


@torch.no_grad()
def online_knn(backbone: nn.Module, normalise: nn.Module, manifest: Manifest, recipe: Recipe) -> float:
    """Top-1 (per cent) of the validation split by 20 cosine neighbours among evenly chosen training images.

    Raises:
        UserError: features that are not finite.
    """
    labelled = manifest.labelled("train")
    every = range(manifest.split("train").count) if labelled is None else labelled.tolist()
    chosen = every[:: -(-len(every) // recipe.monitor.knn_images)]
    with evaluating(backbone):
        train = _collect(backbone, normalise, _batches(manifest, "train", recipe, chosen), len(chosen))
        count = manifest.split("val").count
        val = _collect(backbone, normalise, _batches(manifest, "val", recipe), count)
    return accuracy(*train, *val, PROTOCOL)["top1"]


@torch.no_grad()
def embed_training_set(encoder: nn.Module, normalise: nn.Module, manifest: Manifest, recipe: Recipe) -> Tensor:
    """`encoder(view).z` of the centre crop of every training image, float32 [n, D], in order; on every process.

    Each process encodes its share of the images.
    """
    count, processes = manifest.split("train").count, world_size()
    share = -(-count // processes)
    indices = [i % count for i in range(rank(), share * processes, processes)]  # shares of one size, whatever the count
    with evaluating(encoder):
        batches = _batches(manifest, "train", recipe, indices)
        z, _ = _collect(lambda view: encoder(view).z, normalise, batches, share)
    return gather_with_gradient(z).unflatten(0, (processes, share)).transpose(0, 1).flatten(0, 1)[:count]


def read_val(manifest: Manifest, recipe: Recipe, indices: Sequence[int]) -> None:
    """Decodes images of the validation split, as `online_knn` will.

    Raises:
        UserError: the split cannot be read.
    """
    for _ in _batches(manifest, "val", recipe, indices):
        pass


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Meanwhile the module is in evaluation mode."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def _batches(manifest: Manifest, split: str, recipe: Recipe, indices: Sequence[int] | None = None) -> Iterator[Batch]:
    where = (recipe.evaluation_resize, recipe.evaluation_crop, 256, recipe.machine.workers, recipe.data.loader)
    return evaluation_batches(manifest, split, *where, indices=indices)


def _collect(
    encode: Callable[[Tensor], Tensor], normalise: nn.Module, batches: Iterable[Batch], count: int
) -> tuple[Tensor, Tensor]:
    device = next(normalise.buffers()).device
    return collect(lambda images: encode(normalise(images.to(device))).float(), batches, count)
