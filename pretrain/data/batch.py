"""The one batch type, from loaders to methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    """int64 [B]; of the methods only `supervised` may use it."""
