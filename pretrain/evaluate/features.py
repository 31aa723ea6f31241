"""Features of a frozen encoder."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.data.betons.manifest import Manifest, read_manifest
from pretrain.data.loaders.build import evaluation_batches
from pretrain.data.normalise import Normalise
from pretrain.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from pretrain.distributed import sum_over_ranks, world_size
from pretrain.evaluate.feature_cache import cached_features
from pretrain.evaluate.ranks import gather_rows, own_share
from pretrain.repeatable import derive_seed
from whitebench.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pretrain.checkpoint import Backbone
    from pretrain.evaluate.encoder import Trained
    from pretrain.evaluate.protocol_kinds import Interpolation
    from pretrain.evaluate.target import Options, Target


class FrozenEncoder:
    """A network in evaluation mode, and the dataset on which it is evaluated.

    By `options.features` its output is the backbone's, the projector's (embedding), or the method's transform of the
    embeddings (transformed). That depends on the batch: a split's embeddings are transformed in batches as large as the
    global batch of the training, see `in_training_batches`.
    """

    def __init__(
        self, backbone: "Backbone", target: "Target", options: "Options", trained: "Trained | None" = None
    ) -> None:
        """`trained` is needed for outputs beyond the backbone's."""
        self.backbone, self.target, self.options, self.trained = backbone, target, options, trained
        self.cached = True
        """Whether outputs may come from the cache of features: those of the backbone as it is."""
        self.device = torch.device(options.device)
        network = trained.method.exported if trained else load_backbone(backbone)
        self.network = network.requires_grad_(False).eval().to(self.device).to(memory_format=torch.channels_last)
        self.normalise = normalise_for(backbone).to(self.device)

    @cached_property
    def manifest(self) -> Manifest:
        """Of the dataset; evaluations of image files in layouts of their own have none."""
        return read_manifest(self.target.dataset)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> features float32 [B, F], or embeddings [B, D], not transformed."""
        output = self.network(self.normalise(images.to(self.device, non_blocking=True)))
        features: Tensor = output.z if self.trained else output
        return features

    @torch.no_grad()
    def features(
        self,
        split: str,
        batch: int = 256,
        store: str | None = None,
        interpolation: "Interpolation" = "bilinear",
        indices: "NDArray[np.int64] | None" = None,
    ) -> tuple[Tensor, Tensor]:
        """Of the centre crops of the labelled images of a split, in its order: float32 [N, F] and labels int64 [N].

        Of several processes each has those of its share of the images, see `ranks.own_share`.

        Args:
            store: the device that keeps them; None: the network's.
            indices: only of these images of the split.
        Raises:
            UserError: features that are not finite.
        """
        if self.options.features == "transformed":  # couples the images of all processes
            features, labels = self.joint_features(split, batch, store, interpolation, indices)
            share = own_share(len(labels))
            return features[share], labels[share]
        return self._encoded(split, batch, store, interpolation, indices)

    @torch.no_grad()
    def joint_features(
        self,
        split: str,
        batch: int = 256,
        store: str | None = None,
        interpolation: "Interpolation" = "bilinear",
        indices: "NDArray[np.int64] | None" = None,
    ) -> tuple[Tensor, Tensor]:
        """As `features`, of the images of all processes, on each of them."""
        features, labels = self._encoded(split, batch, store, interpolation, indices)
        if world_size() > 1:
            features, labels = (gather_rows(x.to(self.device)).to(x.device) for x in (features, labels))
        return self._transformed(features), labels

    def _encoded(
        self,
        split: str,
        batch: int,
        store: str | None,
        interpolation: "Interpolation",
        indices: "NDArray[np.int64] | None",
    ) -> tuple[Tensor, Tensor]:
        """The network's outputs for this process's share of a split; from the cache, if they are there."""
        share = own_share(labelled_count(self.manifest, split) if indices is None else len(indices))

        def encode() -> tuple[Tensor, Tensor]:
            crops = centre_crops(self.manifest, split, self.target, self.options, batch, interpolation, indices)
            return collect(self, crops, share.stop - share.start, store)

        if self.trained or not self.cached or indices is not None:
            features, labels = encode()
        else:
            settings = {
                "data": self.manifest.content_hash,
                "split": split,
                "resize": self.target.resize,
                "crop": self.target.crop,
                "interpolation": interpolation,
                "loader": self.options.loader,
                "batch": batch,
                "device": self.options.device,
                "threads": self.options.threads,
                **({"share": [share.start, share.stop]} if world_size() > 1 else {}),
            }
            features, labels = cached_features(self.backbone, settings, encode, store or str(self.device))
        broken = sum_over_ranks((~features.isfinite().all()).to(self.device, torch.int64))
        if bool(broken):
            raise UserError(
                f"features of the split '{split}' are not finite: the network overflows in float32, and has no accuracy"
            )
        return features, labels

    def _transformed(self, features: Tensor) -> Tensor:
        if not self.trained or self.options.features != "transformed":
            return features
        method, size = self.trained.method.to(self.device), self.trained.recipe.batch
        transformed = in_training_batches(features.to(self.device), method.transformed, size, self.options.seed)
        return transformed.to(features.device)


def load_backbone(backbone: "Backbone") -> nn.Module:
    """As a network, [B, 3, S, S] -> [B, F]."""
    from pretrain.networks import build_backbone
    from pretrain.timm_networks import build_timm

    if backbone.is_timm:
        network = build_timm(backbone.arch, backbone.options)
    else:
        network = build_backbone(backbone.arch, backbone.stem)
    network.load_state_dict(backbone.tensors, strict=False)  # read_backbone has counted the tensors
    return network


def normalise_for(backbone: "Backbone") -> Normalise:
    """As its training normalised images, or as for ImageNet where the file does not say."""
    mean, std = (backbone.metadata.get(key) for key in ("mean", "std"))
    return Normalise(mean or IMAGENET_MEAN, std or IMAGENET_STD)


def centre_crops(
    manifest: Manifest,
    split: str,
    target: "Target",
    options: "Options",
    batch: int = 256,
    interpolation: "Interpolation" = "bilinear",
    indices: "NDArray[np.int64] | None" = None,
) -> Iterator[Batch]:
    """The labelled images of a split (or those in `indices`), of which this process has its share, in its order."""
    labelled = manifest.labelled(split) if indices is None else indices
    every = np.arange(manifest.split(split).count) if labelled is None else labelled
    return evaluation_batches(
        manifest,
        split,
        target.resize,
        target.crop,
        batch,
        workers=options.workers,
        loader=options.loader,
        indices=every[own_share(len(every))],
        interpolation=interpolation,
    )


def labelled_count(manifest: Manifest, split: str) -> int:
    """Images of a split that have labels."""
    record = manifest.split(split)
    return record.count - record.unlabelled


def in_training_batches(z: Tensor, transform: Callable[[Tensor], Tensor | None], batch: int, seed: int) -> Tensor:
    """`transform`, which couples the rows of a batch, of embeddings z [N, D] in batches of `batch` rows: [N, D'].

    Splits are in the order of their classes, training batches are not: so rows are assigned to batches by a permutation
    drawn by `seed`. Rows of the first batch fill up the last one, and their outputs there are dropped. Fewer rows than
    a batch are transformed together.

    Raises:
        UserError: a batch cannot be transformed, or not all of its rows.
    """
    size = min(batch, len(z))
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(derive_seed(seed, "batches"))).to(z.device)
    outputs = [transform(z[rows]) for rows in torch.cat([order, order[: -len(z) % size]]).split(size)]
    whole = [output for output in outputs if output is not None and len(output) == size]
    if len(whole) < len(outputs):
        raise UserError(f"features=transformed: the method does not transform every row of a batch of {size}")
    shuffled = torch.cat(whole)[: len(z)]
    return torch.empty_like(shuffled).index_copy_(0, order, shuffled)


def collect(
    encode: Callable[[Tensor], Tensor], batches: Iterable[Batch], count: int, store: str | None = None
) -> tuple[Tensor, Tensor]:
    """What `encode` returns for the only view of each batch, float32 [count, F], and the labels int64 [count].

    Written into one tensor as they come: a list of all batches, joined at the end, would take the memory twice.

    Args:
        store: the device that keeps them; None: that of the outputs.
    """
    features, labels, filled = torch.empty(0), torch.empty(count, dtype=torch.int64), 0
    for batch in batches:
        output = encode(batch.views[0])
        if not filled:
            features = output.new_empty((count, *output.shape[1:]), device=store)
        features[filled : filled + len(output)] = output
        labels[filled : filled + len(output)] = batch.label
        filled += len(output)
    assert filled == count, f"{filled} of {count} images"
    return features, labels.to(features.device)
