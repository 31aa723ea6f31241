"""One fine-tuning in several processes of this machine, by Detectron2's own launcher: a GPU each, or a CPU's (gloo)."""

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
    """A wish that this process stops, passed on to its children: they save, and end by themselves."""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        super()._receive(number, frame)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGTERM)


def check_processes(processes: int, batch: int, device: str) -> None:
    """Raises `UserError` where a batch or the machine cannot be shared by so many."""
    import torch

    if batch % processes:
        raise UserError(f"--gpus {processes}: a batch of {batch} images is not divisible by it")
    if device == "cuda" and torch.cuda.device_count() < processes:
        raise UserError(f"--gpus {processes}: this machine has {torch.cuda.device_count()}")


def launch(work: Callable[..., None], processes: int, device: str, arguments: tuple[Any, ...]) -> None:
    """Calls `work(*arguments)` in `processes` fresh processes that form a group; returns when all have ended.

    Raises:
        UserError: one of them failed; with what it said last.
    """
    from detectron2.engine import launch as launch_by_detectron2
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    with _visible(device):
        try:
            launch_by_detectron2(work, processes, dist_url="auto", args=arguments)
        except (ProcessRaisedException, ProcessExitedException) as error:
            said = str(error).strip().splitlines()[-1]
            raise UserError(
                f"one of {processes} processes ended: {said.removeprefix('whitebench.errors.UserError: ')}"
            ) from error


@contextmanager
def _visible(device: str) -> Iterator[None]:
    """The launcher takes the GPUs wherever there are any: children that are to use a CPU see none."""
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
