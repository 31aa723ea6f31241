"""Energy that a run's GPUs draw, read from the counters of NVIDIA's driver (NVML).

CPU counters are not read: they count the whole host, which other jobs share.
"""

import os
from collections.abc import Sequence
from typing import Any

JOULES_PER_KWH = 3.6e6


class EnergyMeter:
    """Counts from its creation on.

    The energy is unknown (None) without a GPU, without counters (before Volta), for parts of a GPU (MIG), and if some
    of the run's GPUs are in other hosts: a part would be mistaken for the whole.
    """

    def __init__(self, gpus: int) -> None:
        self._handles = _handles(gpus) if gpus else []
        self._start = _millijoules(self._handles)

    def kwh(self) -> float | None:
        """Since its creation."""
        now = _millijoules(self._handles)
        return None if now is None or self._start is None else (now - self._start) / 1000 / JOULES_PER_KWH


def visible(gpus: int) -> list[str]:
    """Indices or UUIDs of the first `gpus` GPUs that this process may use; fewer if there are fewer."""
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(gpus)) if variable is None else (part.strip() for part in variable.split(","))
    return [name for name in names if name][:gpus]


def _handles(gpus: int) -> list[Any]:
    """NVML's handles of all the run's GPUs, or [] if one of them is missing."""
    names = visible(gpus)
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [_handle(pynvml, name) for name in names]
    except Exception:  # no package, no driver, no such GPU: NVML's own exceptions exist only with the package
        return []
    return handles if len(handles) == gpus else []


def _handle(nvml: Any, name: str) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)


def _millijoules(handles: Sequence[Any]) -> int | None:
    """The sum of the counters; None without any, or if one cannot be read."""
    if not handles:
        return None
    import pynvml

    try:
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles)
    except pynvml.NVMLError:
        return None
