"""Training batches in which every random draw is a function of (seed, iteration, position in the batch).

A stopped run goes on with exactly the batches that it would have had. Neither the number of workers nor the number of
processes changes which images a batch holds or how they are augmented.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.repeatable import derive_seed
from transfer.mappers import training_mapper
from whitebench.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

GPU_IMAGES = 2
"""Images per GPU in the published runs (16 on 8 GPUs): Detectron2 groups by aspect ratio, and pads, within these."""
Draw = tuple[int, int]
"""Seed of the augmentation, and index of the image."""


def training_batches(
    cfg: "CfgNode", images: list[dict[str, Any]], start: int, workers: int, rank: int = 0, processes: int = 1
) -> Iterator[list[Any]]:
    """Batches from iteration `start` on, without end, as Detectron2's models take them.

    Of several processes, each gets its part: the batch of one process, cut into `processes` equal pieces.
    """
    plan = _Plan(cfg, images, start, rank, processes)
    mapped = _Mapped(images, training_mapper(cfg))
    return iter(DataLoader(mapped, batch_sampler=plan, num_workers=workers, collate_fn=list))


def sample_batches(
    ratios: list[float], batch: int, seed: int, group: bool, factors: Sequence[float] | None = None
) -> Iterator[list[int]]:
    """Indices of the images of each batch, without end.

    The published runs have a GPU for each `GPU_IMAGES` images of a batch; each GPU takes its part of the random order
    and joins images of one orientation. These GPUs are simulated, whatever the number of processes is: batch k is the
    k-th group of each. A batch of an odd number of images has no groups.

    Args:
        ratios: width over height of each image.
        factors: how often each image comes per epoch; None: once.
        group: join wide images with wide ones, tall with tall ones (Detectron2's ASPECT_RATIO_GROUPING).
    """
    size = GPU_IMAGES if batch % GPU_IMAGES == 0 else 1
    gpus = [_Gpu() for _ in range(batch // size)]
    order = random_order(len(ratios), seed) if factors is None else repeating_order(factors, seed)
    for position, index in enumerate(order):
        gpus[position % batch // size].add(index, group and ratios[index] > 1, size)
        if all(gpu.groups for gpu in gpus):
            yield [index for gpu in gpus for index in gpu.groups.popleft()]


def random_order(count: int, seed: int) -> Iterator[int]:
    """All indices in random order, again and again: those of Detectron2's TrainingSampler in one process.

    Its own sampler gives each process of a group another part; here all processes see the same order.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def repeating_order(factors: Sequence[float], seed: int) -> Iterator[int]:
    """Indices in random order, each as often per epoch as its factor says, fractions by chance; without end.

    That of Detectron2's RepeatFactorTrainingSampler in one process (LVIS's, arXiv 1908.03195, appendix B).
    """
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    yield from RepeatFactorTrainingSampler(torch.as_tensor(factors), shuffle=True, seed=seed)._infinite_indices()


class _Gpu:
    """Groups of one simulated GPU, and images that wait for others of their orientation."""

    def __init__(self) -> None:
        self.groups: deque[list[int]] = deque()
        self._waiting: tuple[list[int], list[int]] = ([], [])

    def add(self, index: int, wide: bool, size: int) -> None:
        bucket = self._waiting[wide]
        bucket.append(index)
        if len(bucket) == size:
            self.groups.append(list(bucket))
            bucket.clear()


@dataclass(frozen=True)
class _Plan:
    """A batch sampler: yields a list of draws for each iteration from `start` on, the part of process `rank`."""

    cfg: "CfgNode"
    images: list[dict[str, Any]]
    start: int
    rank: int
    processes: int

    def __iter__(self) -> Iterator[list[Draw]]:
        ratios = [image["width"] / image["height"] for image in self.images]
        grouped = self.cfg.DATALOADER.ASPECT_RATIO_GROUPING
        batches = sample_batches(ratios, self.cfg.SOLVER.IMS_PER_BATCH, self.cfg.SEED, grouped, self._factors())
        for iteration, batch in enumerate(islice(batches, self.start, None), self.start):
            draws = [(derive_seed(self.cfg.SEED, iteration, position), index) for position, index in enumerate(batch)]
            part = len(draws) // self.processes
            yield draws[self.rank * part : (self.rank + 1) * part]

    def _factors(self) -> Sequence[float] | None:
        from detectron2.data.samplers import RepeatFactorTrainingSampler

        node = self.cfg.DATALOADER
        if node.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
            return None
        factors: Sequence[float] = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            self.images, node.REPEAT_THRESHOLD, sqrt=node.REPEAT_SQRT
        ).tolist()
        return factors


@dataclass(frozen=True)
class _Mapped(Dataset[Any]):
    images: list[dict[str, Any]]
    mapper: Any

    def __getitem__(self, draw: Draw) -> Any:
        from detectron2.data.detection_utils import SizeMismatchError

        seed, index = draw
        random.seed(seed)
        np.random.seed(seed % 2**32)  # Detectron2's augmentations draw from the global generators
        try:
            return self.mapper(self.images[index])
        except SizeMismatchError as error:
            raise UserError(" ".join(str(error).split())) from error
        except OSError as error:
            raise UserError(f"{self.images[index]['file_name']}: does not decode ({error})") from error
