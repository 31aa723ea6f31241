"""The energy of a run's GPUs: all of them or none, by a stand-in for NVIDIA's driver."""

import sys
import types
from typing import Any

import pytest

from whitebench.energy import EnergyMeter, visible


class NVMLError(Exception):
    pass


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counters (millijoules) by index or UUID of GPU; what is missing there is not in this host."""
    counters = {"0": 1_000_000, "1": 5_000_000, "GPU-a": 0}

    def handle(name: object) -> str:
        if str(name) not in counters:
            raise NVMLError("not found")
        return str(name)

    def energy(name: str) -> int:
        if counters[name] < 0:
            raise NVMLError("not supported")
        return counters[name]

    nvml: Any = types.ModuleType("pynvml")
    nvml.NVMLError = NVMLError
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetHandleByIndex = nvml.nvmlDeviceGetHandleByUUID = handle
    nvml.nvmlDeviceGetTotalEnergyConsumption = energy
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return counters


def test_it_is_the_sum_over_the_run_s_gpus_since_the_start(driver: dict[str, int]) -> None:
    meter = EnergyMeter(2)
    driver["0"] += 3_600_000_000  # 1 kWh
    driver["1"] += 1_800_000_000
    assert meter.kwh() == pytest.approx(1.5)


def test_gpus_are_those_that_the_process_may_use(driver: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 1")
    assert visible(1) == ["GPU-a"]
    meter = EnergyMeter(1)
    driver["0"] += 3_600_000_000
    assert meter.kwh() == 0
    driver["GPU-a"] += 3_600_000_000
    assert meter.kwh() == pytest.approx(1)


def test_it_is_unknown_unless_every_counter_can_be_read(driver: dict[str, int]) -> None:
    assert EnergyMeter(0).kwh() is None
    assert EnergyMeter(3).kwh() is None  # the third is in another host
    driver["1"] = -1
    assert EnergyMeter(2).kwh() is None


def test_it_is_unknown_without_a_driver() -> None:
    assert EnergyMeter(1).kwh() is None
