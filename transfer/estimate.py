"""What a fine-tuning will take, measured on its own first batches before it starts."""

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from whitebench.errors import UserError
from whitebench.text import duration


@dataclass(frozen=True)
class Estimate:
    iteration_s: float
    image_s: float
    """Of evaluation, in this process."""
    total_s: float
    memory_gb: float
    """Largest so far on the GPU; on a CPU, of the process (in 10^9 bytes)."""
    memory_of: str
    """"the GPU's memory" or "memory"."""

    def __str__(self) -> str:
        rates = f"{self.iteration_s:.2g} s per iteration and {self.image_s:.2g} s per image of evaluation"
        return f"estimate: {duration(self.total_s)} in all, {rates}; {self.memory_gb:.1f} GB of {self.memory_of}"

    @property
    def metrics(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self)


def measure(
    model: torch.nn.Module,
    step: Callable[[], Any],
    evaluate_one: Callable[[], Any],
    iterations: int,
    images: int,
    state_bytes: int,
) -> Estimate:
    """Times one training step and one image of evaluation, after one of each to warm up; leaves `model` as it was.

    Args:
        step: forward and backward of a batch. evaluate_one: evaluation of one image.
        iterations, images: what is still to be done.
        state_bytes: of the optimizer's state, which does not exist yet.
    Raises:
        UserError: the GPU's memory is too small.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    cuda = next(model.parameters()).is_cuda
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        iteration_s = _second_time(step, model.train(), cuda)
        with torch.no_grad():
            image_s = _second_time(evaluate_one, model.eval(), cuda)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "out of memory on the GPU; try a smaller --batch, which makes the schedule longer in proportion, or --gpus"
        ) from error
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    for parameter in model.parameters():
        parameter.grad = None
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    total_s = iterations * iteration_s + images * image_s
    return Estimate(iteration_s, image_s, total_s, (peak + state_bytes) / 1e9, "the GPU's memory" if cuda else "memory")


def _second_time(work: Callable[[], Any], model: torch.nn.Module, cuda: bool) -> float:
    work()
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
