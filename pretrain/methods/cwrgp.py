"""CW-RGP: channel whitening with random group partition.

Weng et al., "An Investigation into Whitening Loss for Self-supervised Learning", NeurIPS 2022 (arXiv 2210.03586).
As in its official code, every process whitens its own images, and the projector's batch norm sees all views at once.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.methods import Batch, Method, Step
from pretrain.methods.similarity import mean_pair_distance, spread
from pretrain.networks import embed_jointly
from pretrain.recipe import strict
from pretrain.whitening import (
    at_least_float32,
    centred,
    check_whitenable,
    float32_region,
    permute_rows,
    whiten,
    whiten_matrices,
)
from results.command import UserError


@strict
class Config:
    groups: int = 2
    """g: channels are whitened in so many groups. D / g has to exceed the window."""
    window: int | None = 128
    """Images whitened together; divides the images of a process. None: all of them."""
    repeats: int = 1
    """The loss is averaged over so many draws of windows and groups (the papers' w_iter)."""
    random_groups: bool = True
    """Whether each view, window and repeat draws its own partition of the channels."""
    normalize: bool = True
    """Compare whitened rows by 2 - 2 cos; otherwise by the mean squared difference."""
    eps: float = 0.0
    """Shrinkage of the covariance towards the identity."""
    covariance_weight: float = 0.0
    """Of the penalty on covariances between images, before whitening (ImageNet: 0.005 for 100 epochs, 0.01 for 200)."""
    covariance_until: float = 0.5
    """Share of the training after which that penalty is switched off."""


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
        )
        scalars = {"whitened_distance": loss.detach(), "spread": spread(views[0])}
        if config.covariance_weight and self.progress < config.covariance_until:
            penalty = covariance_penalty(views)
            loss = loss + config.covariance_weight * penalty
            scalars["covariance_penalty"] = penalty.detach()
        return Step(loss, scalars)

    def transformed(self, z: Tensor) -> Tensor:
        """Whitened in groups of neighbouring channels, in windows of neighbouring images (those that fill one)."""
        window = min(self.config.window or len(z), len(z))
        parts = z[: len(z) // window * window].split(window)
        return torch.cat([whiten(part, groups=self.config.groups, eps=self.config.eps) for part in parts])

    def check(self, batch: int, views: int) -> None:
        if views < 2:
            raise UserError(f"cwrgp: needs at least 2 views, not {views} (data.views)")
        _check_windows(batch, self.encoder.embedding_dim, self.config.groups, self.config.window, self.config.repeats)
        window = self.config.window or batch
        check_whitenable(window, self.encoder.embedding_dim, self.config.groups, eps=self.config.eps)


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
) -> Tensor:
    """Mean over repeats and pairs of views of the distance between their whitened rows.

    Args:
        views: V >= 2 embeddings of the same N images, each [N, D], any floating dtype; computed in float32 or wider.
        permutations: V orders of the channels, int64 [D], which fix the groups; None draws them anew for every view,
            window and repeat, unless `random_groups` is False: then groups are of neighbouring channels.
        window: images whitened together; the images are dealt to windows at random, alike for all views, in every
            repeat. None: all N.
        generator: of all these draws; torch's default generator where None.
    Returns:
        Scalar.
    Raises:
        UserError: sizes that do not divide, N (or the window) not below D / groups, a singular covariance.
    """
    images, channels = views[0].shape
    _check_windows(images, channels, groups, window, repeats)
    check_whitenable(window or images, channels, groups, eps=eps)
    if permutations is not None and [len(order) for order in permutations] != [channels] * len(views):
        raise UserError(f"cwrgp: permutations are {len(views)} orders of {channels} channels, one a view")
    with float32_region(views[0]):
        stacked = centred(torch.stack([at_least_float32(view) for view in views]))
        windows = _deal(stacked, window or images, repeats, generator)
        orders = _channel_orders(len(windows), channels, permutations, random_groups, windows.device, generator)
        whitened = _whiten_windows(windows, orders, groups, eps).unflatten(0, (len(views), -1)).mT.unbind()
        if normalize:
            return mean_pair_distance(whitened)
        return torch.stack([F.mse_loss(a, b) for a, b in combinations(whitened, 2)]).mean()


def covariance_penalty(views: Sequence[Tensor]) -> Tensor:
    """Sum over views [N, D] of the squared covariances between different images (over channels), divided by N."""
    return torch.stack([_covariance_penalty(view) for view in views]).sum()


def _covariance_penalty(view: Tensor) -> Tensor:
    with float32_region(view):
        x = centred(at_least_float32(view))
        covariance = x @ x.mT / (x.shape[1] - 1)
        return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[0]


def _deal(stacked: Tensor, window: int, repeats: int, generator: torch.Generator | None) -> Tensor:
    """[V, N, D] -> [V * repeats * N / window, D, window]: the images in random windows, alike for all views."""
    images = stacked.shape[1]
    if window < images:
        dealt = torch.cat([_permutations(1, images, stacked.device, generator)[0] for _ in range(repeats)])
        stacked = stacked.index_select(1, dealt)
    else:  # the order within a window changes nothing: all images in one need no shuffle
        stacked = stacked.repeat(1, repeats, 1)
    return stacked.unflatten(1, (-1, window)).flatten(0, 1).mT.contiguous()


def _channel_orders(
    count: int,
    channels: int,
    permutations: Sequence[Tensor] | None,
    random_groups: bool,
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor | None:
    """int64 [count, channels] for the windows of all views, view by view; None where channels keep their order."""
    if permutations is not None:
        given = torch.stack(list(permutations)).to(device)
        return given.repeat_interleave(count // len(given), dim=0)
    return _permutations(count, channels, device, generator) if random_groups else None


def _whiten_windows(windows: Tensor, orders: Tensor | None, groups: int, eps: float) -> Tensor:
    """ZCA over the channels of each group of each window, all at once: [B, D, window] -> [B, D, window]."""
    if orders is None:
        return _whiten_groups(windows, groups, eps)
    inverse = orders.argsort(dim=-1)
    return permute_rows(_whiten_groups(permute_rows(windows, orders, inverse), groups, eps), inverse, orders)


def _whiten_groups(windows: Tensor, groups: int, eps: float) -> Tensor:
    grouped = windows.unflatten(1, (groups, -1))
    return whiten_matrices(grouped.flatten(0, 1).mT, "zca", eps).mT.reshape(windows.shape)


def _permutations(count: int, size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """int64 [count, size]: uniform random permutations, drawn where the generator lives."""
    drawn_on = device if generator is None else generator.device
    keys = torch.rand(count, size, device=drawn_on, dtype=torch.float64, generator=generator)
    return keys.argsort(dim=-1).to(device)


def _check_windows(images: int, channels: int, groups: int, window: int | None, repeats: int) -> None:
    if repeats < 1:
        raise UserError(f"cwrgp: repeats is at least 1, not {repeats}")
    if window is not None and (window < 1 or images % window):
        raise UserError(f"cwrgp: {images} images of a process cannot be dealt to windows of {window} (method.window)")
    if groups < 1 or channels % groups:
        raise UserError(f"cwrgp: {channels} channels cannot be cut into {groups} groups (method.groups)")
