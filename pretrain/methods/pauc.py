"""PAUC: PCL, whose prototypes are kept apart by alignment, uniformity and correlation. A RECONSTRUCTION.

"Rethinking Prototypical Contrastive Learning through Alignment, Uniformity and Correlation", BMVC 2022 (arXiv
2210.10194). Only its abstract was available: it names the three losses, not their formulas, weights and numbers of
clusters, and no code is known. What is here takes the nearest published forms: alignment and uniformity of Wang and
Isola (ICML 2020), correlation of Barlow Twins, each of prototype-level features: the batch's mean embeddings of the
images of one cluster. Recipes and tables that use it say "reconstruction".
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.kmeans import check_clusters
from pretrain.losses.momentum_contrast import Pair, check_contrast
from pretrain.losses.similarity import unit_rows
from pretrain.losses.whitening import float32_region
from pretrain.method import Embed, Encoder, Method, Step
from pretrain.methods import pcl
from whitebench.config import strict
from whitebench.ranges import NonNegativeFloat, PositiveFloat


@strict
class Config(pcl.Config):
    alignment_weight: NonNegativeFloat = 1.0
    """Of pulling the two views' features of a prototype together; 0 leaves it out, here and below."""
    uniformity_weight: NonNegativeFloat = 1.0
    """Of spreading the features of different prototypes over the sphere."""
    correlation_weight: NonNegativeFloat = 1.0
    """Of decorrelating the channels of prototype-level features."""
    uniformity_t: PositiveFloat = 2.0
    """Of the Gaussian potential exp(-t d^2)."""
    correlation_trade_off: NonNegativeFloat = 0.005
    """Weight of the correlations off the diagonal."""


class PAUC(Method[Config]):
    """InfoNCE and ProtoNCE as PCL has them; the three losses join after the warm-up, averaged over the clusterings."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.contrast = pcl.PrototypeContrast(encoder, config)

    def prepare_epoch(self, epoch: int, embed: Embed) -> None:
        self.contrast.prepare_epoch(epoch, embed)

    def forward(self, batch: Batch) -> Step:
        contrasted = self.contrast(self.encoder, batch, self.step, self.progress)
        loss, scalars = contrasted.loss, contrasted.scalars
        if self.contrast.clusters:
            terms = self._terms(contrasted.pair, batch.index)
            config = self.config
            loss = loss + (
                config.alignment_weight * terms.alignment
                + config.uniformity_weight * terms.uniformity
                + config.correlation_weight * terms.correlation
            )
            scalars = {**scalars, **{name: term.detach() for name, term in terms._asdict().items()}}
        return Step(loss, scalars)

    def encoders(self) -> dict[str, Encoder]:
        return self.contrast.momentum.encoders(self.encoder)

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return config.bn_splits == 1  # parts of a process's batch

    def check(self, batch: int, views: int) -> None:
        check_contrast("pauc", self.config, batch, views)

    @classmethod
    def begins_after(cls, config: Config) -> dict[str, float]:
        return {"warmup_epochs": config.warmup_epochs}

    def check_dataset(self, images: int, classes: int) -> None:
        check_clusters(max(self.config.clusters), images)

    def _terms(self, pair: Pair, index: Tensor) -> "Terms":
        """Of the images of all processes, averaged over the clusterings."""
        query, key, indices = (gather_with_gradient(part) for part in (pair.query, pair.key, index))
        all_terms = [
            prototype_terms(
                query,
                key,
                pcl.on_device(clusters, index).assignment[indices],
                self.config.uniformity_t,
                self.config.correlation_trade_off,
            )
            for clusters in self.contrast.clusters
        ]
        return Terms(*(torch.stack(term).mean() for term in zip(*all_terms)))


class Terms(NamedTuple):
    """Scalars."""

    alignment: Tensor
    uniformity: Tensor
    correlation: Tensor


def prototype_terms(query: Tensor, key: Tensor, assignment: Tensor, t: float = 2.0, trade_off: float = 0.005) -> Terms:
    """The three losses of prototype-level features (this suite's reconstruction).

    A prototype's features p, p' [m, D] are the mean query and the mean key of the batch's images of its cluster,
    brought to length 1. alignment: the mean of |p - p'|^2. uniformity: log of the mean over pairs of prototypes of
    exp(-t |p_i - p_j|^2). correlation: sum_c (1 - C_cc)^2 + trade_off sum_(c != d) C_cd^2, divided by D, C [D, D] the
    correlation of the channels of p and p' over prototypes.

    Args:
        query, key: [N, D], rows of length 1, of the same images.
        assignment: int64 [N], the cluster of each image.
    Returns:
        Scalars; uniformity and correlation are 0 where all images are of one cluster.
    """
    with float32_region(query):
        _, prototype = assignment.unique(return_inverse=True)
        m = int(prototype.max()) + 1
        online, target = (unit_rows(_sums(rows, prototype, m)) for rows in (query, key.to(query.dtype)))
        alignment = (online - target).square().sum(dim=1).mean()
        if m < 2:
            return Terms(alignment, alignment.new_zeros(()), alignment.new_zeros(()))
        uniformity = torch.pdist(online).square().mul(-t).exp().mean().log()
        return Terms(alignment, uniformity, _correlation(online, target, trade_off))


def _sums(rows: Tensor, group: Tensor, count: int) -> Tensor:
    return rows.new_zeros(count, rows.shape[1]).index_add(0, group, rows)


def _correlation(a: Tensor, b: Tensor, trade_off: float) -> Tensor:
    a, b = (F.batch_norm(x, None, None, training=True) for x in (a, b))
    correlation = a.mT @ b / len(a)
    diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return ((1 - diagonal).square().sum() + trade_off * off_diagonal) / len(diagonal)
