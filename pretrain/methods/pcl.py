"""PCL: MoCo, with a second loss that attracts each image to the prototype of its cluster.

Li et al., "Prototypical Contrastive Learning of Unsupervised Representations", ICLR 2021 (arXiv 2005.04966); the
E-step, concentrations and ProtoNCE as in its official code. Its version 2 differs by the recipe: projector,
augmentation and schedule of MoCo v2.

Positive prototypes are those of the images of all processes, and the drawn negatives are the same on each of them, so
that several processes train as one; the official code takes each process's alone.
"""

from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient, rank
from pretrain.losses.kmeans import Clusters, check_clusters, cluster
from pretrain.losses.momentum_contrast import Contrast, MomentumContrast, Pair, check_contrast
from pretrain.losses.similarity import cosine_distance, spread, unit_rows
from pretrain.losses.whitening import float32_region
from pretrain.method import Embed, Encoder, Method, Step
from whitebench.config import strict
from whitebench.ranges import AtLeastTwo, NonNegativeInt, PositiveInt


@strict
class Config(Contrast):
    """`temperature` is also the mean one of prototypes; the keys' encoder is also whose embeddings are clustered."""

    queue: PositiveInt = 16384
    """r: past keys that are negatives, and prototypes that are."""
    clusters: Annotated[tuple[AtLeastTwo, ...], Field(min_length=1)] = (25000, 50000, 100000)
    """K of each clustering."""
    warmup_epochs: NonNegativeInt = 20
    """Epochs of InfoNCE alone."""
    kmeans_iterations: PositiveInt = 20
    kmeans_repeats: PositiveInt = 5
    """Runs of k-means, of which the best counts."""


class PCL(Method[Config]):
    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.contrast = PrototypeContrast(encoder, config)

    def prepare_epoch(self, epoch: int, embed: Embed) -> None:
        self.contrast.prepare_epoch(epoch, embed)

    def forward(self, batch: Batch) -> Step:
        contrasted = self.contrast(self.encoder, batch, self.step, self.progress)
        return Step(contrasted.loss, contrasted.scalars)

    def encoders(self) -> dict[str, Encoder]:
        return self.contrast.momentum.encoders(self.encoder)

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return config.bn_splits == 1  # parts of a process's batch

    def check(self, batch: int, views: int) -> None:
        check_contrast("pcl", self.config, batch, views)

    @classmethod
    def begins_after(cls, config: Config) -> dict[str, float]:
        return {"warmup_epochs": config.warmup_epochs}

    def check_dataset(self, images: int, classes: int) -> None:
        check_clusters(max(self.config.clusters), images)


class Contrasted(NamedTuple):
    loss: Tensor
    scalars: dict[str, Tensor]
    pair: Pair


class PrototypeContrast(nn.Module):
    """InfoNCE and ProtoNCE, and the clusters, which are computed again before each epoch after the warm-up."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        self.config = config
        self.momentum = MomentumContrast(encoder, config)
        self.clusters: list[Clusters] = []

    def prepare_epoch(self, epoch: int, embed: Embed) -> None:
        config = self.config
        if epoch < config.warmup_epochs:
            return
        features = unit_rows(embed(self.momentum.target.network))
        effort = {"iterations": config.kmeans_iterations, "repeats": config.kmeans_repeats}
        self.clusters = [
            cluster(features, k, config.temperature, seed=seed, **effort) for seed, k in enumerate(config.clusters)
        ]

    def forward(self, encoder: Encoder, batch: Batch, step: int, progress: float) -> Contrasted:
        pair = self.momentum(encoder, *batch.views, progress=progress)
        loss = self.momentum.loss(pair)
        distance = cosine_distance(pair.query.detach(), pair.key)
        scalars = {"distance": distance, "info_nce": loss.detach(), "spread": spread(pair.query)}
        if self.clusters:
            to_prototypes = self._proto_nce(pair, batch.index, step)
            loss = loss + to_prototypes
            scalars["proto_nce"] = to_prototypes.detach()
            scalars["within_prototypes"] = self._within(pair.query.detach(), batch.index)
        return Contrasted(loss, scalars, pair)

    def get_extra_state(self) -> list[dict[str, Tensor]]:
        return [vars(clusters) for clusters in self.clusters]

    def set_extra_state(self, state: Any) -> None:
        self.clusters = [Clusters(**tensors) for tensors in state]

    def _proto_nce(self, pair: Pair, index: Tensor, step: int) -> Tensor:
        """Mean over the clusterings."""
        indices = gather_with_gradient(index)
        first = rank() * len(index)
        draws = torch.Generator().manual_seed(step)  # the same on every process
        losses = [
            proto_nce(pair.query, indices, on_device(clusters, index), self.config.queue, draws, first)
            for clusters in self.clusters
        ]
        return torch.stack(losses).mean()

    def _within(self, query: Tensor, index: Tensor) -> Tensor:
        """Mean 2 - 2 cos of queries and their own prototypes: how diverse the images of a prototype are."""
        clusterings = [on_device(clusters, index) for clusters in self.clusters]
        prototypes = [clusters.centroids[clusters.assignment[index]].to(query.dtype) for clusters in clusterings]
        return torch.stack([cosine_distance(query, centroids) for centroids in prototypes]).mean()


def proto_nce(
    query: Tensor,
    index: Tensor,
    clusters: Clusters,
    negatives: int,
    draws: torch.Generator | None = None,
    first: int = 0,
) -> Tensor:
    """Cross-entropy of finding each query's own prototype among the batch's and other ones.

    Logits are inner products over the prototype's concentration. The positives are those of all images in `index`, one
    for each, so that a prototype of several images occurs as often; the negatives are `negatives` prototypes of none
    of these images, or all of them where there are fewer.

    Args:
        query: [B, D], rows of length 1.
        index: int64 [N], N >= B: dataset indices of the images of all processes.
        draws: CPU generator of the negatives' draw.
        first: position in `index` of the first query.
    Returns:
        Scalar, the mean over queries, in float32 or wider.
    """
    with float32_region(query):
        positive = clusters.assignment[index]
        others = torch.ones(len(clusters.centroids), dtype=torch.bool, device=query.device)
        others[positive] = False
        rest = others.nonzero().squeeze(1)
        drawn = rest[torch.randperm(len(rest), generator=draws)[:negatives].to(rest.device)]
        chosen = torch.cat([positive, drawn])
        logits = query @ clusters.centroids[chosen].to(query.dtype).mT / clusters.concentration[chosen].to(query.dtype)
        return F.cross_entropy(logits, torch.arange(first, first + len(query), device=query.device))


def on_device(clusters: Clusters, like: Tensor) -> Clusters:
    """`clusters` where `like` is: a resumed run has loaded them to the CPU."""
    return Clusters(*(tensor.to(like.device) for tensor in vars(clusters).values()))
