"""How fast a recipe trains on this host: its real loop for some steps, on real or synthetic input."""

import resource
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count, repeat

import torch

from pretrain.data.batch import Batch
from pretrain.data.betons.manifest import read_manifest
from pretrain.distributed import World
from pretrain.recipe import Recipe
from pretrain.repeatable import make_repeatable
from pretrain.run_identity import resolved
from pretrain.train import Trainer


@dataclass(frozen=True)
class Speed:
    images_per_s: float
    data_wait: float
    """Share of the time in which the step waited for its batch."""
    cpu_ms: float
    """Processor time per image, of all threads of this process: more telling than the rate on a busy host."""
    first_batch_s: float
    """Until the first batch arrives: kernels are loaded or compiled, files opened."""
    memory: int
    """Peak bytes: of tensors on the accelerator, or of this process's memory on a CPU."""


def training_speed(recipe: Recipe, steps: int, warm_up: int = 5, synthetic: bool = False) -> Speed:
    """Trains `warm_up` steps and then times `steps` more; writes no run folder.

    For a recipe of several processes, one process's share of the batch is measured alone.

    Args:
        synthetic: the same random batch again and again, already on the device, instead of the loader's.
    Raises:
        UserError: see `Trainer`.
    """
    alone = replace(recipe, world_size=1, batch=recipe.batch // recipe.world_size)
    recipe, total = resolved(alone), warm_up + steps
    make_repeatable(recipe.threads)
    with World.join(1, recipe.device) as world:
        trainer = Trainer(recipe, read_manifest(recipe.data.dataset), world)
        trainer.method.prepare_epoch(0, trainer.embed)
        trainer.method.train()
        began = waited = first = cpu = 0.0
        with closing(_repeated(recipe, world.device) if synthetic else _endless(trainer)) as batches:
            for step in range(total):
                if step == warm_up:
                    _finish(world.device)
                    began, waited, cpu = time.perf_counter(), 0.0, time.process_time()
                requested_at = time.perf_counter()
                raw = next(batches)
                waited += time.perf_counter() - requested_at
                first = first or waited
                trainer.step(raw, step)
            _finish(world.device)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    images = steps * recipe.batch
    return Speed(images / seconds, waited / seconds, 1000 * cpu / images, first, _peak(world.device))


def _endless(trainer: Trainer) -> Generator[Batch, None, None]:
    for epoch in count():
        yield from trainer.loader.epoch(epoch)


def _repeated(recipe: Recipe, device: torch.device) -> Generator[Batch, None, None]:
    generator = torch.Generator().manual_seed(recipe.seed)
    shapes = [(recipe.batch, 3, size, size) for size in recipe.view_sizes]
    views = [torch.randint(256, shape, generator=generator, dtype=torch.uint8) for shape in shapes]
    views = [view.to(device, memory_format=torch.channels_last) for view in views]
    index = torch.arange(recipe.batch, device=device)
    yield from repeat(Batch(views, index, torch.zeros_like(index)))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
