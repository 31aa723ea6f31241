"""The one batch type, from the loaders to the methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B images of one process, each in V views.

    A loader yields uint8 views in channels-last memory, which the batch owns (pinned where there is a GPU). The
    training loop normalises them to float32 and puts them on the device; methods see only such batches.
    """

    views: "Sequence[Tensor]"
    """V tensors [B, 3, S_v, S_v]."""
    index: "Tensor"
    """int64 [B]: position of each image in the dataset."""
    label: "Tensor"
    """int64 [B]; -1 where an image has no label. Of the methods only `supervised` may use it."""
    parameters: "NDArray[np.float64] | None" = None
    """Random parameters of the views [B, V, PARAMETERS], only between a renderer and its `Loader`: colour
    augmentation on the accelerator still needs them."""
