"""What the training loop keeps besides the weights: running means, timing, and requests to stop."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from pretrain.divergence import FiniteLoss
from whitebench.errors import Interrupted
from whitebench.signals import handling

T = TypeVar("T")


class EpochMeter:
    """Means over an epoch, summed on the device and read once at its end, so that no step waits for the host.

    Steps whose loss is not finite do not count in the means; `losses` says whether there are too many of them.
    """

    def __init__(self) -> None:
        self.losses = FiniteLoss()
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = self._images = 0
        self._finite: Tensor | int = 0
        self._waited = self._seconds = 0.0

    def timed(self, batches: Iterator[T], first_step: int) -> Iterator[tuple[int, T]]:
        """Numbers the batches from `first_step` on, and measures the time that passes waiting for them and in all."""
        step, requested_at = first_step, time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - requested_at
            yield step, batch
            now = time.perf_counter()
            self._seconds += now - requested_at
            step, requested_at = step + 1, now

    def add(self, images: int, scalars: dict[str, Tensor]) -> None:
        """Adds the (detached) scalars of a step over this number of images; "loss" is among them."""
        finite = self.losses.add(scalars["loss"])
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0) + torch.where(finite, value.double(), 0.0)
        self._finite = self._finite + finite.long()
        self._steps += 1
        self._images += images

    def finish(self) -> dict[str, float]:
        """Means of the scalars, `seconds`, `images_per_s` and `data_wait` (share of the time), and resets them.

        `skipped_steps` joins them if the loss was not finite in some steps; if it was in none, the means are NaN.
        """
        finite = int(self._finite)
        values = {name: (total / finite).item() if finite else math.nan for name, total in self._sums.items()}
        if finite < self._steps:
            values["skipped_steps"] = float(self._steps - finite)
        seconds = max(self._seconds, 1e-9)
        values |= {"seconds": seconds, "images_per_s": self._images / seconds, "data_wait": self._waited / seconds}
        self._reset()
        return values

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": dict(self._sums),
            "counts": [self._steps, self._images, int(self._finite), self.losses.state()],
            "times": [self._waited, self._seconds],
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._steps, self._images, self._finite, in_a_row = state["counts"]
        self.losses.load_state(in_a_row, device)
        self._waited, self._seconds = state["times"]


class StopRequest:
    """Turns SIGINT, SIGTERM and SIGUSR2 (SLURM's warning before a time limit or preemption) into a request to stop.

    The loop checks `requested` where its state is complete, saves, and calls `leave`. A handler that was there before
    (submitit's, which puts the job back into the queue) then gets the signal after all. Ranks that do not act ignore
    the signals: rank 0 alone writes, and its end ends the others. A second SIGINT stops at once.
    """

    def __init__(self, acts: bool) -> None:
        self.acts = acts
        self._received: int | None = None
        self._checkpoint_at = time.monotonic()
        self._handling = ExitStack()

    def __enter__(self) -> Self:
        self._before = self._handling.enter_context(handling(self._receive if self.acts else signal.SIG_IGN))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handling.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    @property
    def requested(self) -> bool:
        return self._received is not None

    def leave(self, message: str) -> None:
        """Ends the run after its state is saved; `message` says where it resumes."""
        self._handling.close()
        if self._received == signal.SIGUSR2 and callable(self._before[signal.SIGUSR2]):
            signal.raise_signal(signal.SIGUSR2)
        raise Interrupted(message)

    def checkpoint_due(self, minutes: float) -> bool:
        """Whether this many minutes have passed since the last time this was true (or since the start)."""
        due = time.monotonic() - self._checkpoint_at >= 60 * minutes
        if due:
            self._checkpoint_at = time.monotonic()
        return due
