"""CW-RGP: channel whitening with random group partition.

Weng et al., "An Investigation into Whitening Loss for Self-supervised Learning", NeurIPS 2022 (arXiv 2210.03586).
As in its official code, every process whitens its own images, and the projector's batch norm sees all views at once.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.losses.covariance import squared_covariances
from pretrain.losses.similarity import mean_pair_distance, mean_squared_difference, spread
from pretrain.losses.whitening import at_least_float32, centred, float32_region
from pretrain.losses.windows import (
    check_division,
    check_windows,
    standardise_windows,
    whiten_neighbours,
    whiten_windows,
)
from pretrain.method import Method, Step
from pretrain.networks import embed_jointly
from whitebench.config import strict
from whitebench.hashing import added
from whitebench.ranges import NonNegativeFloat, PositiveInt, Share, ShareBelowOne

Arm = Literal["zca", "zca_iterated", "pca", "batch_norm", "none"]


@strict
class Config:
    groups: PositiveInt = 2
    """g: number of groups in which channels are whitened. D / g has to exceed the window."""
    window: PositiveInt | None = 128
    """Images whitened together; divides the images of a process. None: all of them."""
    repeats: PositiveInt = 1
    """The loss is averaged over this many draws of windows and groups (the papers' w_iter)."""
    random_groups: bool = True
    """Whether each view, window and repeat draws its own partition of the channels."""
    normalize: bool = True
    """Compare whitened rows by 2 - 2 cos; otherwise by the mean squared difference."""
    eps: ShareBelowOne = 0.0
    """Shrinkage of the covariance towards the identity."""
    transform: Arm = added("zca")
    """What is done to the windows. zca_iterated: the same as zca, without eigenvalues, so that no step waits for a GPU;
    several times slower on a CPU. The others are arms that the official repository once had: PCA whitening, batch norm
    (groups do not matter) and nothing at all."""
    aligned: bool = added(False)
    """Whether all views of a window share a partition of the channels; in the official code each has its own."""
    stop_first: bool = added(False)
    """Whether no gradient flows to view 0 (the arm STOP)."""
    covariance_weight: NonNegativeFloat = 0.0
    """Of the penalty on covariances between images, before whitening (ImageNet: 0.005 for 100 epochs, 0.01 for 200)."""
    covariance_until: Share = 0.5
    """Share of the training after which that penalty is switched off; the step that begins there still has it, as the
    official code switches at the end of a step."""


class CWRGP(Method[Config]):
    """Both sides of each pair of views get gradients: no target network, no predictor, no stop-gradient."""

    def forward(self, batch: Batch) -> Step:
        views = embed_jointly(self.encoder, batch.views)
        config = self.config
        loss = cwrgp_loss(
            views,
            config.groups,
            random_groups=config.random_groups,
            window=config.window,
            repeats=config.repeats,
            normalize=config.normalize,
            eps=config.eps,
            transform=config.transform,
            aligned=config.aligned,
            stop_first=config.stop_first,
        )
        scalars = {"whitened_distance": loss.detach(), "spread": spread(views[0])}
        if config.covariance_weight and self.progress <= config.covariance_until:
            penalty = covariance_penalty(views)
            loss = loss + config.covariance_weight * penalty
            scalars["covariance_penalty"] = penalty.detach()
        return Step(loss, scalars)

    def transformed(self, z: Tensor) -> Tensor | None:
        """Whitened in groups of neighbouring channels, in windows of neighbouring images (those that fill one)."""
        config = self.config
        if config.transform == "batch_norm" or config.transform == "none":
            return None
        return whiten_neighbours(z, config.transform, "channel", config.groups, config.window, config.eps)

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        channels, config = self.encoder.embedding_dim, self.config
        if config.transform == "batch_norm":
            check_division(batch, config.window, config.repeats)
        elif config.transform != "none":
            check_windows(
                batch, channels, config.transform, "channel", config.groups, config.window, config.repeats, config.eps
            )


def cwrgp_loss(
    views: Sequence[Tensor],
    groups: int,
    permutations: Sequence[Tensor] | None = None,
    random_groups: bool = True,
    window: int | None = None,
    repeats: int = 1,
    normalize: bool = True,
    eps: float = 0.0,
    generator: torch.Generator | None = None,
    transform: Arm = "zca",
    aligned: bool = False,
    stop_first: bool = False,
    image_order: Tensor | None = None,
) -> Tensor:
    """Mean over repeats and pairs of views of the distance between their whitened rows.

    Args:
        views: V >= 2 embeddings of the same N images, each [N, D], any floating dtype; computed in float32 or wider.
        permutations: V orders of the channels, int64 [D] (or one for each window, [W, D]), which fix the groups; None
            draws new ones for every view, window and repeat, unless `random_groups` is False: then groups are of
            neighbouring channels.
        window: images whitened together; the images are put into windows at random, alike for all views, in every
            repeat. None: all N.
        generator: of all these draws; torch's default generator where None.
        transform: "zca" is the method. With "pca" the signs of components are arbitrary, and so is the loss.
        aligned, stop_first: see `Config`.
        image_order: int64 [N], in place of the random order in which images fill the windows.
    Returns:
        Scalar.
    Raises:
        UserError: sizes that do not divide, N (or the window) not below D / groups, a singular covariance.
    """
    outputs: Sequence[Tensor]
    if transform == "none":
        outputs = views
    elif transform == "batch_norm":
        outputs = standardise_windows(views, window, repeats, eps, generator, image_order)
    else:
        outputs = whiten_windows(
            views,
            transform,
            "channel",
            groups,
            permutations,
            random_groups,
            window,
            repeats,
            eps,
            generator,
            aligned,
            image_order,
        )
    if stop_first:
        outputs = [outputs[0].detach(), *outputs[1:]]
    return mean_pair_distance(outputs) if normalize else mean_squared_difference(outputs)


def covariance_penalty(views: Sequence[Tensor]) -> Tensor:
    """Sum over views [N, D] of the squared covariances between different images (over channels), divided by N."""
    return torch.stack([_covariance_penalty(view) for view in views]).sum()


def _covariance_penalty(view: Tensor) -> Tensor:
    with float32_region(view):
        x = centred(at_least_float32(view))
        return squared_covariances(x) / x.shape[0]
