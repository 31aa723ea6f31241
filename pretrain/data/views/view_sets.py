"""Which views are cut from an image: random ones for training, the centre for evaluation."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pretrain.data.views import random_parameters as columns
from pretrain.data.views.random_parameters import Floats, Integers
from pretrain.recipe_sections import Colour, Placement, Views
from whitebench.errors import UserError

Interpolation = Literal["bilinear", "bicubic"]


class ViewSet(Protocol):
    """V views per image."""

    sizes: Integers
    """Side of each view, [V]."""
    cubic: NDArray[np.bool_]
    """Whether each view is interpolated bicubically, [V]; else bilinearly."""
    placement: Placement
    before_crop: bool
    """Whether colour is applied to the whole image, and views are cut from that."""

    def table(self, epoch: int, index: Integers, height: Integers, width: Integers) -> Floats:
        """Parameters of the views (see `random_parameters`), float64 [B, V, PARAMETERS], of B images of these sides."""
        ...


@dataclass
class TrainingViews:
    """Random crops with colour augmentation, as a recipe states them."""

    groups: tuple[Views, ...]
    colour: Colour
    seed: int
    placement: Placement

    def __post_init__(self) -> None:
        views = [group for group in self.groups for _ in range(group.count)]
        self.sizes = np.array([view.size for view in views], np.int64)
        self.cubic = np.array([view.interpolation == "bicubic" for view in views])
        self.before_crop = self.colour.before_crop
        self._settings = columns.settings_of(self.groups, self.colour)

    def table(self, epoch: int, index: Integers, height: Integers, width: Integers) -> Floats:
        """See `ViewSet`."""
        return columns.draw(self.seed, epoch, index, height, width, self._settings)


@dataclass
class EvaluationView:
    """The centre of the resized image, as torchvision's Resize and CenterCrop cut it."""

    resize: int
    """Length of the shorter side after resizing, pixels."""
    crop: int
    """Side of the view, pixels."""
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise UserError(f"evaluation: a crop of {self.crop} pixels does not fit a shorter side of {self.resize}")
        self.sizes, self.cubic = np.array([self.crop], np.int64), np.array([self.interpolation == "bicubic"])
        self.placement: Placement = "loader"
        self.before_crop = False

    def table(self, epoch: int, index: Integers, height: Integers, width: Integers) -> Floats:
        """See `ViewSet`; the same in each epoch."""
        table = np.zeros((len(index), 1, columns.PARAMETERS))
        row = table[:, 0]
        short = np.minimum(height, width)
        row[:, columns.HEIGHT], row[:, columns.WIDTH] = height, width
        vertical = (columns.FULL_HEIGHT, columns.WINDOW_TOP, height)
        horizontal = (columns.FULL_WIDTH, columns.WINDOW_LEFT, width)
        for full, window, side in (vertical, horizontal):
            row[:, full] = self.resize * side // short  # rounded down, as torchvision does
            row[:, window] = np.round((row[:, full] - self.crop) / 2)
        row[:, columns.SOLARIZE] = columns.NO_SOLARIZE
        return table
