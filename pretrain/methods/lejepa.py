"""LeJEPA: views are drawn to their centre, and embeddings to a standard Gaussian (SIGReg).

Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics" (arXiv
2511.08544). Four definitions of the loss are in use; the default is that of the official MINIMAL.md:

    centre all, per view, (1 - w) inv + w reg          rbalestr-lab/lejepa MINIMAL.md
    centre global, per view, (1 - w) inv + w reg       the paper's Algorithm 2, lightly
    centre global, flatten, inv + w reg                stable-pretraining
    centre pairs, whole line, unscaled, inv + w reg    eb_jepa ("BCS", there with w = 10 and 10 points)

Characteristic functions are averaged over the images of all processes, with gradient, as in the official library; all
processes project on the same directions, which are drawn again at each step.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.losses.similarity import distance_to_centre, mean_squared_difference, spread
from pretrain.losses.sliced import Grid, epps_pulley, half_line, random_directions, whole_line
from pretrain.method import Method, Step
from pretrain.networks import embed_by_size
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.ranges import AtLeastTwo, NonNegativeFloat, PositiveFloat, PositiveInt


@strict
class Config:
    weight: NonNegativeFloat = 0.02
    """lambda, of the regulariser."""
    slices: PositiveInt = 256
    """K, random directions a step."""
    points: AtLeastTwo = 17
    """Of the grid on which characteristic functions are compared."""
    reach: PositiveFloat = 3.0
    """Where the grid ends."""
    centre: Literal["all", "global", "pairs"] = "all"
    """What views are drawn to: the mean of all, the mean of the global ones (all views are), or each other in pairs."""
    global_views: PositiveInt = 2
    """The first views; of use with centre=global."""
    flatten: bool = False
    """Whether all views are one sample of V n rows; otherwise the statistic is averaged over views."""
    convex: bool = True
    """(1 - weight) inv + weight reg; otherwise inv + weight reg."""
    scaled: bool = True
    """Whether the statistic is multiplied by the number of images."""
    whole_line: bool = False
    """Grid from -reach to reach; otherwise from 0, doubled."""


class LeJEPA(Method[Config]):
    """No stop-gradient, no predictor, no teacher. The invariance is of this process's images."""

    def forward(self, batch: Batch) -> Step:
        config = self.config
        views = embed_by_size(self.encoder, batch.views)
        directions = random_directions(
            self.encoder.embedding_dim, config.slices, self.shared_generator(views[0].device)
        )
        grid = (whole_line if config.whole_line else half_line)(config.points, config.reach)
        invariance = _invariance(views, config.centre, config.global_views)
        regulariser = _regulariser(views, directions, grid, config.flatten, config.scaled, across_ranks=True)
        loss = _weighted(invariance, regulariser, config.weight, config.convex)
        scalars = {"invariance": invariance.detach(), "sigreg": regulariser.detach()}
        return Step(loss, {**scalars, "spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        if self.config.convex and self.config.weight > 1:
            raise UserError(f"lejepa: weight is at most 1, not {self.config.weight} (method.weight; method.convex)")


def sigreg(
    views: Sequence[Tensor], directions: Tensor, points: int = 17, reach: float = 3.0, flatten: bool = False
) -> Tensor:
    """SIGReg: Epps and Pulley's statistic of the projections, averaged over directions and views.

    Args:
        views: embeddings [n, D] each, any floating dtype; computed in float32 or wider.
        directions: [D, K], columns of length 1.
        flatten: all views as one sample of V n rows: about V times the value, since it is scaled by the sample's size.
    Returns:
        Scalar.
    """
    return _regulariser(views, directions, half_line(points, reach), flatten)


def lejepa_loss(
    views: Sequence[Tensor],
    directions: Tensor,
    weight: float = 0.02,
    global_views: int | None = None,
    flatten: bool = False,
    convex: bool = True,
    points: int = 17,
    reach: float = 3.0,
) -> Tensor:
    """(1 - weight) inv + weight reg, or inv + weight reg where not `convex`; see `sigreg` for the arguments.

    inv is the element mean of the squared distance of all views to the mean of the first `global_views` (None: of all).
    """
    invariance = distance_to_centre(views, global_views)
    return _weighted(invariance, sigreg(views, directions, points, reach, flatten), weight, convex)


def bcs_loss(
    views: Sequence[Tensor], directions: Tensor, weight: float = 10.0, points: int = 10, reach: float = 3.0
) -> Tensor:
    """eb_jepa's form: mean squared difference of the views + weight * the statistic on the whole line, not times n."""
    regulariser = _regulariser(views, directions, whole_line(points, reach), scaled=False)
    return mean_squared_difference(views) + weight * regulariser


def _invariance(views: Sequence[Tensor], centre: str, global_views: int) -> Tensor:
    if centre == "pairs":
        return mean_squared_difference(views)
    return distance_to_centre(views, global_views if centre == "global" else None)


def _regulariser(
    views: Sequence[Tensor],
    directions: Tensor,
    grid: Grid,
    flatten: bool = False,
    scaled: bool = True,
    across_ranks: bool = False,
) -> Tensor:
    samples = [torch.cat(list(views))] if flatten else views
    return torch.stack([epps_pulley(x, directions, grid, scaled, across_ranks) for x in samples]).mean()


def _weighted(invariance: Tensor, regulariser: Tensor, weight: float, convex: bool) -> Tensor:
    return (1 - weight if convex else 1.0) * invariance + weight * regulariser
