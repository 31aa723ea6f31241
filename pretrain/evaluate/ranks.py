"""An evaluation's work divided among processes, such that its result is that of one process.

Each process has a contiguous share of the images, none twice; what is summed or gathered are the values of real images
only. Every process holds the same classifier. Rank 0 alone writes the record.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain import resume
from pretrain.data.batch import Batch
from pretrain.distributed import World, rank, sum_over_ranks, world_size
from whitebench.errors import UserError
from whitebench.records import Run

SAVE_EVERY_S = 60.0
"""Between two states that are kept for a restart, seconds."""


def processes_started() -> int:
    """How many processes torchrun, or another launcher, has started together with this one."""
    value = os.environ.get("WORLD_SIZE", "1")
    return int(value) if value.isascii() and value.isdigit() else 1


def started_world(processes: int, device: str) -> World:
    """The processes that evaluate together.

    Raises:
        UserError: another number was started; see `World.join`.
    """
    started = processes_started()
    if started != processes:
        raise UserError(
            f"world_size={processes}, but {started} process(es) were started; e.g. "
            f"torchrun --nproc-per-node {processes} -m pretrain.evaluate ..."
        )
    return World.join(processes, "cuda" if device == "cuda" else "cpu")


def own_share(count: int) -> slice:
    """Rows of `count` that this process has: contiguous, in the order of ranks, in number at most one apart."""
    size, more = divmod(count, world_size())
    start = rank() * size + min(rank(), more)
    return slice(start, start + size + (rank() < more))


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes in the order of ranks: [n_r, ...] -> [sum of n_r, ...]; the n_r may differ."""
    if world_size() == 1:
        return x
    counts = torch.zeros(world_size(), dtype=torch.int64, device=x.device)
    counts[rank()] = len(x)
    sizes: list[int] = sum_over_ranks(counts).tolist()
    padded = torch.cat([x, x.new_zeros((max(sizes) - len(x), *x.shape[1:]))]).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def row_offset(count: int, device: torch.device | str) -> tuple[int, int]:
    """Rows that the processes before this one have, and rows of all; this one has `count`."""
    counts = torch.zeros(world_size(), dtype=torch.int64, device=device)
    counts[rank()] = count
    every: list[int] = sum_over_ranks(counts).tolist()
    return sum(every[: rank()]), sum(every)


def joint_rows(count: int, device: torch.device | str) -> int:
    """Rows of a batch over all processes, of which this one has `count`."""
    return int(sum_over_ranks(torch.tensor(count, device=device)))


def joint_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the joint batch, as this process's share of it: all shares sum to the mean.

    Args:
        labels: classes int64 [n], or shares of classes float [n, C].
    """
    if world_size() == 1:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    total = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    return total / joint_rows(len(logits), logits.device)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sums gradients over all processes, in one transfer; a parameter without one counts as zero."""
    if world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = sum_over_ranks(torch.cat([p.grad.reshape(-1) for p in trained if p.grad is not None]))
    for parameter, gradient in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(gradient.view_as(parameter))


def with_empty_batches(batches: Iterable[Batch], count: int, side: int) -> Iterator[Batch]:
    """The batches of one view, and an empty one for each that this process lacks of `count`.

    A process without images of a joint batch still takes part in what all compute together.

    Args:
        side: of the views, pixels.
    """
    number = 0
    for batch in batches:
        yield batch
        number += 1
    for _ in range(number, count):
        index = torch.empty(0, dtype=torch.int64)
        yield Batch([torch.empty(0, 3, side, side, dtype=torch.uint8)], index, index)


class Progress:
    """The record of an evaluation, as all of its processes use it: rank 0 writes, every process reads."""

    def __init__(self, run: Run | None) -> None:
        """`run` is None except on rank 0."""
        self.run, self.saved = run, time.monotonic()
        box = [str(run.folder) if run else ""]
        if world_size() > 1:
            device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
            dist.broadcast_object_list(box, src=0, device=device)
        self.folder = Path(box[0])

    def log(self, **values: Any) -> None:
        if self.run is not None:
            self.run.log(**values)

    def save(self, state: dict[str, Any]) -> None:
        """Keeps `state` for a restart."""
        if self.run is not None:
            resume.save(self.folder, state)
            self.saved = time.monotonic()

    def save_if_due(self, state: Callable[[], dict[str, Any]]) -> None:
        """As `save`, unless that was less than `SAVE_EVERY_S` ago."""
        if time.monotonic() - self.saved >= SAVE_EVERY_S:
            self.save(state())

    def resume(self) -> dict[str, Any] | None:
        """What a stopped run has saved, its "epoch" among it; lines of the log after that are dropped."""
        state = resume.load(self.folder)
        if self.run is not None:
            self.run.rewind(int(state["epoch"]) if state else 0)
        return state
