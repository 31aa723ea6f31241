"""Which images make up a batch, and the loader that puts order, rendering and device together."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

from pretrain.data.batch import Batch
from pretrain.data.views.random_parameters import Integers, shuffled, shuffled_in_windows
from pretrain.data.views.render import Rendered
from pretrain.data.views.view_sets import Plan
from whitebench.errors import UserError


class Source(Protocol):
    """Renders images of a split."""

    label: Integers
    """Of all images, int64 [N]."""
    plan: Plan

    def stream(self, batches: Sequence[Integers], epoch: int) -> Any:
        """A generator of `Rendered` batches that works ahead until it is closed."""
        ...


class ShuffledOrder:
    """One permutation of all images an epoch; each global batch is split into one contiguous part a rank."""

    def __init__(
        self, seed: int, count: int, batch: int, rank: int = 0, world_size: int = 1, window: int | None = None
    ) -> None:
        """`window`: shuffled among so many images only; see `draws.shuffled_in_windows`."""
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
        if self.window < self.count:
            order = shuffled_in_windows(self.seed, epoch, self.count, self.window)
        else:
            order = shuffled(self.seed, epoch, self.count)
        order = order[: self.batches_per_epoch * self.batch]
        return list(order.reshape(self.batches_per_epoch, self.world_size, -1)[:, self.rank])


class ShuffledPart:
    """Given images, in a new order each epoch. An incomplete last batch counts, unless it is of one image alone, whose
    statistics a batch norm cannot take."""

    def __init__(self, seed: int, index: Integers, batch: int) -> None:
        self.seed, self.index, self.batch = seed, index, batch
        self.batches_per_epoch = len(self.batches(0))

    def batches(self, epoch: int) -> list[Integers]:
        order = self.index[shuffled(self.seed, epoch, len(self.index))]
        parts = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        return parts[:-1] if len(parts) > 1 and len(parts[-1]) == 1 else parts


class PlainOrder:
    """Given images, in their order."""

    def __init__(self, index: Integers, batch: int) -> None:
        self.index, self.batch = index, batch
        self.batches_per_epoch = -(-len(index) // batch)

    def batches(self, epoch: int) -> list[Integers]:
        return [self.index[start : start + self.batch] for start in range(0, len(self.index), self.batch)]


class Loader:
    """A `ViewLoader`."""

    def __init__(self, source: Source, order: ShuffledOrder | ShuffledPart | PlainOrder, device: str) -> None:
        self.source, self.order, self.device = source, order, device
        self.batches_per_epoch = order.batches_per_epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        with closing(self.source.stream(self.order.batches(epoch)[start:], epoch)) as stream:
            for rendered in stream:
                yield self._coloured(rendered)

    def _coloured(self, rendered: Rendered) -> Batch:
        """The batch, coloured on the accelerator where that is its place."""
        plan = self.source.plan
        if plan.placement == "loader" or plan.before_crop:
            return rendered.batch
        from pretrain.data.views.colour_batched import recolour

        batch = rendered.batch
        views = [
            recolour(view.to(self.device, non_blocking=True), rendered.table[:, number])
            for number, view in enumerate(batch.views)
        ]
        return Batch(views, batch.index, batch.label)
