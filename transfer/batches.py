"""Training batches whose every random draw is a function of (seed, iteration, place in the batch).

So a run that is stopped goes on with exactly the batches it would have had, and workers change no pixel.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from pretrain.repeatable import derive_seed
from whitebench.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

Draw = tuple[int, int]
"""Seed of the augmentation, and index of the image."""


def training_batches(
    cfg: "CfgNode", images: list[dict[str, Any]], start: int, workers: int, rank: int = 0, processes: int = 1
) -> Iterator[list[Any]]:
    """Batches from iteration `start` on, without end, as Detectron2's models take them.

    Of several processes, each gets its share: what every so many-th place of the whole batch holds in one process.
    """
    from detectron2.data import DatasetMapper

    plan = _Plan(cfg, images, start, rank, processes)
    mapped = _Mapped(images, DatasetMapper(cfg, is_train=True))
    return iter(DataLoader(mapped, batch_sampler=plan, num_workers=workers, collate_fn=list))


def planned(ratios: list[float], batch: int, seed: int, group: bool) -> Iterator[list[int]]:
    """Indices of the images of each batch, without end: all images in random order, again and again.

    Args:
        ratios: width over height of each image.
        group: a batch holds either wide or tall images (Detectron2's ASPECT_RATIO_GROUPING), which saves padding.
    """
    from detectron2.data.samplers import TrainingSampler

    waiting: tuple[list[int], list[int]] = ([], [])
    for index in TrainingSampler(len(ratios), seed=seed):
        bucket = waiting[group and ratios[index] > 1]
        bucket.append(index)
        if len(bucket) == batch:
            yield list(bucket)
            bucket.clear()


@dataclass(frozen=True)
class _Plan:
    """As a batch sampler: lists of draws."""

    cfg: "CfgNode"
    images: list[dict[str, Any]]
    start: int
    rank: int
    processes: int

    def __iter__(self) -> Iterator[list[Draw]]:
        ratios = [image["width"] / image["height"] for image in self.images]
        grouped = self.cfg.DATALOADER.ASPECT_RATIO_GROUPING
        batches = planned(ratios, self.cfg.SOLVER.IMS_PER_BATCH, self.cfg.SEED, grouped)
        for iteration, batch in enumerate(islice(batches, self.start, None), self.start):
            drawn = [(derive_seed(self.cfg.SEED, iteration, place), index) for place, index in enumerate(batch)]
            yield drawn[self.rank :: self.processes]


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
