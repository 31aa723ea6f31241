"""DeepCluster-v2: every crop is classified as its image's cluster, of embeddings kept from the epoch before.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020 (arXiv
2006.09882); constants as in the official swav repository. The first two views fill the memory; before each epoch each
head clusters it again, from random rows. Before the first epoch the memory holds centre crops' embeddings of the
untrained network (there: of a pass over augmented crops). Images that an epoch leaves out keep their rows.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient, world_size
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.spherical_kmeans import spherical_kmeans
from pretrain.losses.whitening import float32_region
from pretrain.method import Counting, Embed, Encoder, Method, Step
from pretrain.networks import embed_by_size
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.ranges import AtLeastTwo, PositiveInt, Temperature

BANKS = 2
"""Views whose embeddings are kept and clustered."""


@strict
class Config:
    clusters: AtLeastTwo = 3000
    """K, of each head."""
    heads: PositiveInt = 3
    """Clusterings, each from other random rows; they take the banks in turn."""
    temperature: Temperature = 0.1
    """tau: similarities are divided by it before the softmax."""
    iterations: PositiveInt = 10
    """Of k-means."""


class DeepCluster(Method[Config]):
    """DeepCluster-v2 with its memory of embeddings and its prototypes, which are the clusters' centroids.

    The loss is of this process's images; the memory is of all processes', and the same on each. Prototypes get no
    gradient.
    """

    counting: ClassVar[Counting] = "inclusive"

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.prototypes: Tensor
        self.register_buffer("prototypes", torch.zeros(config.heads, config.clusters, encoder.embedding_dim))
        self.banks = torch.empty(0)
        """[2, n, D]: rows of length 1, of each image of the data set."""
        self.assignments = torch.empty(0, dtype=torch.int64)
        """[heads, n]."""

    def prepare_epoch(self, epoch: int, embed: Embed) -> None:
        if not len(self.banks):
            self.banks = torch.stack([unit_rows(embed(self.encoder))] * BANKS)
        images, clusters = self.banks.shape[1], self.config.clusters
        assignments = []
        for head in range(self.config.heads):
            bank = self.banks[head % BANKS]
            start = bank[torch.randperm(images)[:clusters].to(bank.device)]
            clustering = spherical_kmeans(bank, start, self.config.iterations)
            self.prototypes[head].copy_(_of_first_process(clustering.centroids))
            assignments.append(_of_first_process(clustering.assignment))
        self.assignments = torch.stack(assignments)

    def forward(self, batch: Batch) -> Step:
        views = embed_by_size(self.encoder, batch.views)
        if not len(self.assignments):
            raise RuntimeError("deepcluster: prepare_epoch comes before the first step")
        device = views[0].device
        self.banks, self.assignments = self.banks.to(device), self.assignments.to(device)
        loss = deepcluster_loss(views, self.prototypes, self.assignments[:, batch.index], self.config.temperature)
        self._keep(views, batch.index)
        used = torch.zeros(self.config.clusters, device=device).index_fill_(0, self.assignments[0], 1.0).mean()
        return Step(loss, {"clusters_in_use": used, "spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check_dataset(self, images: int, classes: int) -> None:
        if self.config.clusters > images:
            raise UserError(
                f"deepcluster: {self.config.clusters} clusters cannot be made of {images} images (method.clusters)"
            )

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"banks": self.banks, "assignments": self.assignments}

    def set_extra_state(self, state: Any) -> None:
        self.banks, self.assignments = state["banks"], state["assignments"]

    @torch.no_grad()
    def _keep(self, views: Sequence[Tensor], index: Tensor) -> None:
        everywhere = gather_with_gradient(index)
        for bank, view in zip(self.banks, views, strict=False):
            bank[everywhere] = gather_with_gradient(unit_rows(view.detach())).to(bank.dtype)


def deepcluster_loss(views: Sequence[Tensor], prototypes: Tensor, assignments: Tensor, tau: float = 0.1) -> Tensor:
    """Mean over heads, views and images of the cross-entropy of finding the image's cluster, by cosine over tau.

    Args:
        views: V embeddings [N, D], any floating dtype, brought to length 1; computed in float32 or wider.
        prototypes: [heads, K, D], rows of length 1. assignments: int64 [heads, N].
    Returns:
        Scalar.
    """
    with float32_region(views[0]):
        rows = torch.cat([unit_rows(view) for view in views])
        targets = assignments.repeat(1, len(views))
        logits = [rows @ centroids.to(rows.dtype).mT / tau for centroids in prototypes]
        return torch.stack([F.cross_entropy(a, b) for a, b in zip(logits, targets, strict=True)]).mean()


def _of_first_process(x: Tensor) -> Tensor:
    if world_size() > 1:
        dist.broadcast(x, src=0)
    return x
