"""Energy that a run's GPUs have drawn, by the counters that NVIDIA's driver keeps (NVML); no package is needed for it.

Counters of the CPU are not read: they count a whole machine, which other jobs share.
"""

import ctypes
import os
from collections.abc import Sequence
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
JOULES_PER_KWH = 3.6e6


class EnergyMeter:
    """Counts from its creation. Unknown (None) without a GPU, without counters (before Volta), for parts of a GPU
    (MIG), and where some of the run's GPUs are on other machines: half a figure would pass for a whole one.
    """

    def __init__(self, gpus: int) -> None:
        self._handles = _handles(gpus) if gpus else []
        self._start = _millijoules(self._handles)

    def kwh(self) -> float | None:
        """Since its creation."""
        now = _millijoules(self._handles)
        return None if now is None or self._start is None else (now - self._start) / 1000 / JOULES_PER_KWH


def visible(gpus: int) -> list[str]:
    """Numbers or UUIDs of the first so many GPUs that this process may use; fewer where there are fewer."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = map(str, range(gpus)) if stated is None else (part.strip() for part in stated.split(","))
    return [name for name in named if name][:gpus]


def _handles(gpus: int) -> list[Any]:
    """Of all the run's GPUs, or none."""
    names = visible(gpus)
    library = _library()
    if library is None or len(names) < gpus:
        return []
    handles = []
    for name in names:
        handle = ctypes.c_void_p()
        if name.isdecimal():
            state = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(name)), ctypes.byref(handle))
        else:
            state = library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
        if state:
            return []
        handles.append(handle)
    return handles


def _library() -> Any:
    """NVML at work; None where there is none."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library


def _millijoules(handles: Sequence[Any]) -> int | None:
    """The sum of the counters; None without any, or where one cannot be read."""
    library = _library() if handles else None
    if library is None:
        return None
    total = 0
    for handle in handles:
        value = ctypes.c_ulonglong()
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)):
            return None
        total += value.value
    return total
