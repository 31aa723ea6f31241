"""One fine-tuning in several processes of this machine, by Detectron2's launcher: one per GPU, or on a CPU (gloo)."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pretrain.progress import StopRequest
from whitebench.errors import UserError


class Forwarding(StopRequest):
    """A stop request that is passed on to the child processes: they save, and end by themselves."""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        super()._receive(number, frame)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGTERM)


def check_processes(processes: int, batch: int, device: str) -> None:
    """Raises `UserError` where the batch is not divisible by the processes, or the machine has too few GPUs."""
    import torch

    if batch % processes:
        raise UserError(f"--gpus {processes}: a batch of {batch} images is not divisible by it")
    if device == "cuda" and torch.cuda.device_count() < processes:
        raise UserError(f"--gpus {processes}: this machine has {torch.cuda.device_count()}")


def launch(work: Callable[..., None], processes: int, device: str, arguments: tuple[Any, ...]) -> None:
    """Calls `work(*arguments)` in `processes` fresh processes that form a group; returns when all have ended.

    Raises:
        UserError: one of them failed; with the last line of its error.
    """
    from detectron2.engine import launch as launch_by_detectron2
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    with _visible(device):
        try:
            launch_by_detectron2(work, processes, dist_url="auto", args=arguments)
        except (ProcessRaisedException, ProcessExitedException) as error:
            message = str(error).strip().splitlines()[-1]
            raise UserError(
                f"one of {processes} processes failed: {message.removeprefix('whitebench.errors.UserError: ')}"
            ) from error


@contextmanager
def _visible(device: str) -> Iterator[None]:
    """Hides the GPUs from processes that are to use the CPU: the launcher takes GPUs wherever there are some."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        if device == "cpu":
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before
