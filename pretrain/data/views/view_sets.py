"""Which views are cut from an image: for training at random, for evaluation from its centre."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pretrain.data.views import random_parameters as draws
from pretrain.data.views.random_parameters import Floats, Integers
from pretrain.recipe import Colour, Placement, Views
from whitebench.errors import UserError


class Plan(Protocol):
    """V views an image."""

    sizes: Integers
    """Side of each view, [V]."""
    cubic: NDArray[np.bool_]
    """Whether each view is interpolated bicubically, [V]; else bilinearly."""
    placement: Placement
    before_crop: bool
    """Whether colour is applied to the whole image, and views are cut from that."""

    def table(self, epoch: int, index: Integers, height: Integers, width: Integers) -> Floats:
        """Parameters of the views (see `draws`), float64 [B, V, PARAMETERS], of B images of these sides."""
        ...


@dataclass
class TrainingPlan:
    groups: tuple[Views, ...]
    colour: Colour
    seed: int
    placement: Placement

    def __post_init__(self) -> None:
        views = [group for group in self.groups for _ in range(group.count)]
        self.sizes = np.array([view.size for view in views], np.int64)
        self.cubic = np.array([view.interpolation == "bicubic" for view in views])
        self.before_crop = self.colour.before_crop
        self._settings = draws.settings_of(self.groups, self.colour)

    def table(self, epoch: int, index: Integers, height: Integers, width: Integers) -> Floats:
        return draws.draw(self.seed, epoch, index, height, width, self._settings)


@dataclass
class EvaluationPlan:
    resize: int
    """The shorter side becomes so many pixels."""
    crop: int
    """Side of the view."""

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise UserError(f"evaluation: a crop of {self.crop} pixels does not fit a shorter side of {self.resize}")
        self.sizes, self.cubic = np.array([self.crop], np.int64), np.array([False])
        self.placement: Placement = "loader"
        self.before_crop = False

    def table(self, epoch: int, index: Integers, height: Integers, width: Integers) -> Floats:
        table = np.zeros((len(index), 1, draws.PARAMETERS))
        row = table[:, 0]
        short = np.minimum(height, width)
        row[:, draws.HEIGHT], row[:, draws.WIDTH] = height, width
        down = (draws.FULL_HEIGHT, draws.WINDOW_TOP, height)
        across = (draws.FULL_WIDTH, draws.WINDOW_LEFT, width)
        for full, window, side in (down, across):
            row[:, full] = self.resize * side // short  # rounded down, as torchvision does
            row[:, window] = np.round((row[:, full] - self.crop) / 2)
        row[:, draws.SOLARIZE] = draws.NO_SOLARIZE
        return table
