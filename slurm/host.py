"""What this machine has for jobs, and how much of it is free."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from slurm.graph import Graph, Job
from whitebench.errors import UserError

MEMORY_GB = 1.0
"""What a job is taken to need where nothing is said."""


@dataclass
class Machine:
    """What may be used, and what is free of it."""

    cores: int
    gpus: list[str]
    free_cores: int = field(init=False)
    free_gpus: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.free_cores, self.free_gpus = self.cores, list(self.gpus)

    def fits(self, job: Job, idle: bool) -> bool:
        """A job larger than the machine runs alone."""
        wanted = job.resources
        if idle:
            return True
        if len(self.free_gpus) < wanted.gpus or self.free_cores < wanted.cores:
            return False
        return _free_memory_gb() >= (wanted.memory_gb or MEMORY_GB)

    def take(self, job: Job) -> list[str]:
        self.free_cores -= job.resources.cores
        taken, self.free_gpus = self.free_gpus[: job.resources.gpus], self.free_gpus[job.resources.gpus :]
        return taken

    def give_back(self, job: Job, gpus: list[str]) -> None:
        self.free_cores += job.resources.cores
        self.free_gpus += gpus


def this_machine(cores: int | None, graph: Graph) -> Machine:
    """Its cores (as far as this process may use them) and GPUs.

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
    return Machine(cores or len(os.sched_getaffinity(0)), gpus)


def _gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def _free_memory_gb() -> float:
    import psutil

    return float(psutil.virtual_memory().available) / 2**30
