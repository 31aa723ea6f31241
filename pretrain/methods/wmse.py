"""W-MSE: batch whitening by Cholesky's factor, and the distance between the whitened views.

Ermolov et al., "Whitening for Self-Supervised Representation Learning", ICML 2021 (arXiv 2007.06346); W-MSE 2
and W-MSE 4 are 2 and 4 views. As in its official code, every process whitens its own images, and the projector's batch
norm sees all views at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.losses.similarity import mean_pair_distance, mean_squared_difference, spread
from pretrain.losses.windows import check_windows, whiten_neighbours, whiten_windows
from pretrain.method import Method, Step
from pretrain.networks import embed_jointly
from whitebench.config import strict
from whitebench.ranges import PositiveInt, ShareBelowOne


@strict
class Config:
    window: PositiveInt | None = 128
    """Images whitened together; divides the images of a process. It has to exceed the embedding's width D; twice D is
    its authors' rule. None: all of them."""
    repeats: PositiveInt = 1
    """The loss is averaged over this many draws of windows (the paper's w_iter)."""
    normalize: bool = True
    """Compare whitened rows by 2 - 2 cos; otherwise by the mean squared difference."""
    eps: ShareBelowOne = 0.0
    """Shrinkage of the covariance towards the identity."""


class WMSE(Method[Config]):
    """Both sides of each pair of views get gradients."""

    def forward(self, batch: Batch) -> Step:
        views, config = embed_jointly(self.encoder, batch.views), self.config
        loss = wmse_loss(views, config.window, config.repeats, config.normalize, config.eps)
        return Step(loss, {"whitened_distance": loss.detach(), "spread": spread(views[0])})

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        channels, config = self.encoder.embedding_dim, self.config
        check_windows(batch, channels, "cholesky", "batch", 1, config.window, config.repeats, config.eps)

    def transformed(self, z: Tensor) -> Tensor:
        """Whitened in windows of neighbouring images (those that fill one)."""
        return whiten_neighbours(z, "cholesky", "batch", 1, self.config.window, self.config.eps)


def wmse_loss(
    views: Sequence[Tensor],
    window: int | None = None,
    repeats: int = 1,
    normalize: bool = True,
    eps: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean over repeats and pairs of views of the distance between their whitened rows.

    Args:
        views: V >= 2 embeddings of the same N images, each [N, D], any floating dtype; computed in float32 or wider.
        window: images whitened together; the images are put into windows at random, alike for all views, in every
            repeat. None: all N.
        generator: of these draws; torch's default generator where None.
    Returns:
        Scalar.
    Raises:
        UserError: windows that do not divide N, a window not above D, a singular covariance.
    """
    whitened = whiten_windows(views, "cholesky", "batch", window=window, repeats=repeats, eps=eps, generator=generator)
    return mean_pair_distance(whitened) if normalize else mean_squared_difference(whitened)
