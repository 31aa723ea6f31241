"""Noticing that a training has diverged, before its state is lost: NaN and infinite losses, weights and checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from whitebench.errors import UserError

SKIPPED_IN_A_ROW = {"fp32": 0, "bf16": 0, "fp16": 20}
"""Steps in a row whose loss may not be finite. Under fp16 the gradient scaler leaves such a step out and halves its
scale, from 65,536 at the start: after 20 of them the cause is not the scale. Otherwise the weights are lost at once."""
STEPS_BETWEEN_CHECKS = 25
"""On a GPU, since reading a value there waits for all steps before; on a CPU every step is checked."""


class FiniteLoss:
    """Counts steps whose loss was not finite, on the loss's device."""

    def __init__(self) -> None:
        self._in_a_row: Tensor | None = None
        self._checked_at = 0

    def add(self, loss: Tensor) -> Tensor:
        """Whether this step's (detached) loss is finite: a bool scalar."""
        finite = loss.isfinite()
        before = torch.zeros((), dtype=torch.int64, device=loss.device) if self._in_a_row is None else self._in_a_row
        self._in_a_row = torch.where(finite, 0, before + 1)
        return finite

    def check(self, step: int, precision: str) -> None:
        """Looks at the losses up to `step`, at once on a CPU and every 25 steps on a GPU.

        Raises:
            UserError: more steps in a row without a finite loss than a training with this precision recovers from.
        """
        counted = self._in_a_row
        if counted is None or (counted.device.type != "cpu" and step - self._checked_at < STEPS_BETWEEN_CHECKS):
            return
        self._checked_at = step
        if int(counted) > SKIPPED_IN_A_ROW[precision]:
            raise UserError(
                message(f"the loss has not been finite in the last {int(counted)} step(s)", step, precision)
            )

    def state(self) -> int:
        return 0 if self._in_a_row is None else int(self._in_a_row)

    def load_state(self, in_a_row: int, device: torch.device) -> None:
        self._in_a_row = torch.tensor(in_a_row, device=device)


def check_state(state: Mapping[str, Any], step: int, precision: str) -> None:
    """Before a checkpoint is written: one that holds NaN would replace the last from which training can continue.

    Raises:
        UserError: a tensor of the method or the optimizer has values that are not finite.
    """
    for part in ("method", "optimizer"):
        for name, tensor in _tensors(state.get(part), part):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise UserError(message(f"{name} has values that are not finite", step, precision))


def message(problem: str, step: int, precision: str) -> str:
    """One line: the problem and its possible remedies."""
    other = "" if precision == "fp32" else f", precision=fp32 instead of {precision}"
    return (
        f"the training has diverged: {problem}, after step {step}; earlier checkpoints are kept, but the same "
        f"command diverges again: try a lower optimizer.lr, a longer schedule.warmup_epochs{other}"
    )


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested mappings and lists, with their dotted path."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _tensors(item, f"{name}.{number}")
