"""Checks of values on an accelerator for which the host does not wait.

Asking a GPU for a value holds the host until the GPU has done all that was asked before, and the GPU then idles until
the host has caught up. So a check there is copied to the host in the background and reported once it has arrived: by
a later check, or by `report_failed_checks`, at the latest before a checkpoint is written.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from whitebench.errors import UserError

DEFERRED = {"cuda"}
"""Device types whose values arrive later."""


@dataclass(frozen=True)
class _Check:
    passed: Tensor
    """A bool on the host; valid once `arrived` has occurred."""
    arrived: torch.cuda.Event | None
    error: Callable[[], UserError]


_pending: deque[_Check] = deque()


def is_deferred(x: Tensor) -> bool:
    """Whether reading a value of x would hold the host."""
    return x.device.type in DEFERRED


def require(passed: Tensor, error: Callable[[], UserError]) -> None:
    """Raises error() unless all of `passed` (bool) is true: at once on a CPU; see above for accelerators."""
    if not is_deferred(passed):
        if not bool(passed.all()):
            raise error()
        return
    report_failed_checks(wait=False)
    _pending.append(_check_of(passed.all(), error))


def report_failed_checks(wait: bool = True) -> None:
    """Raises the error of the first failed check, of those whose values have arrived or, with `wait`, of all."""
    while _pending and (wait or _has_arrived(_pending[0])):
        check = _pending.popleft()
        if check.arrived is not None:
            check.arrived.synchronize()
        if not bool(check.passed):
            _pending.clear()
            raise check.error()


class Outlook:
    """Whether something has held so far; on an accelerator as far as its values have arrived, without waiting."""

    def __init__(self) -> None:
        self._held = True
        self._asked: deque[_Check] = deque()

    def so_far(self) -> bool:
        while self._asked and _has_arrived(self._asked[0]):
            passed = bool(self._asked.popleft().passed)
            self._held = self._held and passed
        return self._held

    def expect(self, passed: Tensor) -> bool:
        """Whether all of `passed` (bool) is true, on a CPU; on an accelerator True, and `so_far` changes later."""
        if not is_deferred(passed):
            return bool(passed.all())
        self._asked.append(_check_of(passed.all(), lambda: UserError("not reported")))
        return True


def _check_of(passed: Tensor, error: Callable[[], UserError]) -> _Check:
    if passed.device.type != "cuda":
        return _Check(passed, None, error)
    on_host = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True)
    on_host.copy_(passed, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return _Check(on_host, arrived, error)


def _has_arrived(check: _Check) -> bool:
    return check.arrived is None or check.arrived.query()
