"""The resources of this machine for local jobs, and how much of them is free."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from slurm.graph import Graph, Job
from whitebench.errors import UserError

MEMORY_GB = 1.0
"""Assumed need of a job that does not say."""


@dataclass
class Host:
    """What jobs may use of this machine, and what is free of it."""

    cores: int
    gpus: list[str]
    free_cores: int = field(init=False)
    free_gpus: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.free_cores, self.free_gpus = self.cores, list(self.gpus)

    def fits(self, job: Job, idle: bool) -> bool:
        """A job larger than the machine runs alone."""
        resources = job.resources
        if idle:
            return True
        if len(self.free_gpus) < resources.gpus or self.free_cores < resources.cores:
            return False
        return _free_memory_gb() >= (resources.memory_gb or MEMORY_GB)

    def take(self, job: Job) -> list[str]:
        self.free_cores -= job.resources.cores
        count = job.resources.gpus
        gpus, self.free_gpus = self.free_gpus[:count], self.free_gpus[count:]
        return gpus

    def release(self, job: Job, gpus: list[str]) -> None:
        self.free_cores += job.resources.cores
        self.free_gpus += gpus


def this_host(cores: int | None, graph: Graph) -> Host:
    """Cores (those that this process may use) and GPUs of this machine.

    Raises:
        UserError: a job asks for more GPUs than there are, or for several nodes.
    """
    gpus = _gpus()
    for job in graph.work:
        if job.resources.gpus > len(gpus):
            raise UserError(
                f"{job.stage} of {job.cell} asks for {job.resources.gpus} GPUs; this machine has {len(gpus)}"
            )
        if job.resources.nodes > 1:
            raise UserError(f"{job.stage} of {job.cell} asks for {job.resources.nodes} nodes; this machine is one")
    return Host(cores or len(os.sched_getaffinity(0)), gpus)


def _gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def _free_memory_gb() -> float:
    import psutil

    return float(psutil.virtual_memory().available) / 2**30
