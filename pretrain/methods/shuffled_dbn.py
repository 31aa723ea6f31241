"""Shuffled-DBN: ZCA batch whitening of shuffled groups of channels, in place of the projector's last batch norm.

Hua et al., "On Feature Decorrelation in Self-Supervised Learning", ICCV 2021 (arXiv 2105.00470). The paper was not at
hand: this is a reconstruction from its code (PatrickHua/FeatureDecorrelationSSL, `models/covnorm.py` and
`models/utils/shuffled_group_whitening.py`), which trains one process. Here every process whitens its own images. The
mean over pairs of more than two views, shrinkage and the normalised distance are not in that code; the benchmark of
CW-RGP's code normalises.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.losses.similarity import mean_pair_distance, mean_squared_difference, spread
from pretrain.losses.windows import check_windows, whiten_neighbours, whiten_windows
from pretrain.method import Method, Step
from whitebench.config import strict
from whitebench.ranges import PositiveInt, ShareBelowOne


@strict
class Config:
    groups: PositiveInt = 32
    """g: number of groups in which channels are whitened; the images of a process have to exceed D / g. 32 for D = 512
    and 256 images in the code's ablation of the batch's size."""
    shuffle: bool = True
    """Whether each view of each step draws its own groups; otherwise they are of neighbouring channels (DBN)."""
    normalize: bool = False
    """Compare whitened rows by 2 - 2 cos; otherwise by their squared distance."""
    eps: ShareBelowOne = 0.0
    """Shrinkage of the covariance towards the identity."""


class ShuffledDBN(Method[Config]):
    """Symmetric: both views have gradients, and there is no predictor."""

    def forward(self, batch: Batch) -> Step:
        views, config = [self.encoder(view).z for view in batch.views], self.config
        loss = shuffled_dbn_loss(
            views, config.groups, shuffle=config.shuffle, normalize=config.normalize, eps=config.eps
        )
        return Step(loss, {"whitened_distance": loss.detach(), "spread": spread(views[0])})

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        channels, config = self.encoder.embedding_dim, self.config
        check_windows(batch, channels, "zca", "batch", config.groups, eps=config.eps)

    def transformed(self, z: Tensor) -> Tensor:
        """Whitened in groups of neighbouring channels."""
        return whiten_neighbours(z, "zca", "batch", self.config.groups, eps=self.config.eps)


def shuffled_dbn_loss(
    views: Sequence[Tensor],
    groups: int,
    permutations: Sequence[Tensor] | None = None,
    shuffle: bool = True,
    normalize: bool = False,
    eps: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean over pairs of views of the squared distance |y_i - y_j|^2 of rows, y whitened over the batch.

    Within each group of channels, y has the identity for its covariance, with N (not N - 1) in the denominator.

    Args:
        views: V >= 2 embeddings of the same N images, each [N, D], any floating dtype; computed in float32 or wider.
        permutations: V orders of the channels, int64 [D], which fix the groups; None draws new ones for every view
            where `shuffle`, otherwise groups are of neighbouring channels.
        normalize: take 2 - 2 cos(y_i, y_j) instead.
        generator: of the draws; torch's default generator where None.
    Returns:
        Scalar.
    Raises:
        UserError: groups that do not divide D, N not above D / groups, a singular covariance.
    """
    whitened = whiten_windows(views, "zca", "batch", groups, permutations, shuffle, eps=eps, generator=generator)
    if normalize:
        return mean_pair_distance(whitened)
    images, channels = views[0].shape
    return mean_squared_difference(whitened) * (channels * images / (images - 1))
