"""Which images make up each batch of an epoch."""

import numpy as np

from pretrain.data.views.random_parameters import Integers, shuffled, shuffled_in_windows
from whitebench.errors import UserError


class ShuffledOrder:
    """One permutation of all images per epoch; each global batch is split into one contiguous part per rank."""

    def __init__(
        self, seed: int, count: int, batch: int, rank: int = 0, world_size: int = 1, window: int | None = None
    ) -> None:
        """`window`: images are shuffled among this many only; see `random_parameters.shuffled_in_windows`."""
        if batch > count:
            raise UserError(f"batch: {batch} images are more than the dataset's {count}")
        if batch % world_size:
            raise UserError(f"batch: {batch} is not divisible by world_size={world_size}")
        if window is not None and window < batch:
            raise UserError(f"data.shuffle_window: {window} images are fewer than a batch of {batch}")
        self.seed, self.count, self.batch, self.rank, self.world_size = seed, count, batch, rank, world_size
        self.window = count if window is None else window
        self.batches_per_epoch = count // batch

    def batches(self, epoch: int) -> list[Integers]:
        """Dataset indices of this rank's batches."""
        if self.window < self.count:
            order = shuffled_in_windows(self.seed, epoch, self.count, self.window)
        else:
            order = shuffled(self.seed, epoch, self.count)
        order = order[: self.batches_per_epoch * self.batch]
        return list(order.reshape(self.batches_per_epoch, self.world_size, -1)[:, self.rank])


class ShuffledPart:
    """Some images, in a new order each epoch; each global batch is split into one contiguous part per rank.

    An incomplete last batch counts, unless it holds a single image, whose statistics a batch norm cannot take. Its
    parts may differ by an image, and a rank for which there is none has one batch less than `batches_per_epoch`.
    """

    def __init__(self, seed: int, index: Integers, batch: int, rank: int = 0, world_size: int = 1) -> None:
        if batch < world_size:
            raise UserError(f"batch: {batch} images are fewer than world_size={world_size}")
        self.seed, self.index, self.batch, self.rank, self.world_size = seed, index, batch, rank, world_size
        self.batches_per_epoch = len(self._global_batches(0))

    def batches(self, epoch: int) -> list[Integers]:
        """Dataset indices of this rank's batches."""
        parts = (np.array_split(batch, self.world_size)[self.rank] for batch in self._global_batches(epoch))
        return [part for part in parts if len(part)]

    def _global_batches(self, epoch: int) -> list[Integers]:
        order = self.index[shuffled(self.seed, epoch, len(self.index))]
        parts = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        return parts[:-1] if len(parts) > 1 and len(parts[-1]) == 1 else parts


class SequentialOrder:
    """Some images, in the order of `index`."""

    def __init__(self, index: Integers, batch: int) -> None:
        self.index, self.batch = index, batch
        self.batches_per_epoch = -(-len(index) // batch)

    def batches(self, epoch: int) -> list[Integers]:
        """Dataset indices of the batches, the same in each epoch."""
        return [self.index[start : start + self.batch] for start in range(0, len(self.index), self.batch)]
