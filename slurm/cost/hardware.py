"""What a training is planned on: cards, hosts, network and disk."""

from dataclasses import dataclass

from slurm.cost.constants import Card, constants
from slurm.cost.quantity import Quantity
from whitebench.errors import UserError, nearest

CPU = "cpu"
WRITTEN = ("original", "side-500", "side-341", "raw")
"""How a dataset's images were written, of those whose decoding has been measured."""


@dataclass(frozen=True)
class Hardware:
    card: Card | None
    """None: training on CPU cores."""
    gpus: int = 1
    """Per node."""
    nodes: int = 1
    cores: int | None = None
    """Per node; None: as many as the recipe has workers."""
    network_gbit: float = 200.0
    """Of a node's link to the others."""
    disk: str = "nvme"
    memory_gb: float = 512.0
    """Of a node's main memory: a dataset that fits is read once."""
    written: str = "original"

    @property
    def processes(self) -> int:
        return self.gpus * self.nodes

    @property
    def disk_rate(self) -> Quantity:
        """MB/s."""
        return constants()(f"disks.{self.disk}")

    def __str__(self) -> str:
        card = self.card.title if self.card else "CPU"
        nodes = f"{self.nodes} nodes of " if self.nodes > 1 else ""
        return f"{nodes}{self.gpus} x {card}"


def hardware(
    gpu: str,
    *,
    gpus: int = 1,
    nodes: int = 1,
    cores: int | None = None,
    network_gbit: float = 200.0,
    disk: str = "nvme",
    memory_gb: float = 512.0,
    written: str = "original",
) -> Hardware:
    """Checked against what the constants know.

    Raises:
        UserError: an unknown card, disk or way of writing, or a number that is not positive.
    """
    numbers = {"--gpus": gpus, "--nodes": nodes, "--network-gbit": network_gbit, "--memory-gb": memory_gb}
    for option, number in {**numbers, **({"--cores": cores} if cores is not None else {})}.items():
        if not 0 < number < 1e6:
            raise UserError(f"{option}: must be a positive number below a million, not {number:g}")
    disks = constants().entry("disks")
    if disk not in disks:
        raise UserError(f"--disk: unknown disk '{disk}'{nearest(disk, disks)}")
    if written not in WRITTEN:
        raise UserError(f"--written: unknown '{written}'{nearest(written, WRITTEN)}")
    card = None if gpu.lower() == CPU else _card(gpu)
    return Hardware(card, gpus, nodes, cores, network_gbit, disk, memory_gb, written)


def _card(name: str) -> Card:
    constant = constants()
    try:
        return constant.card(name)
    except UserError:
        choices = [*constant.cards, CPU]
        listed = nearest(name.lower(), choices)
        rest = "" if "valid:" in listed else f" (all: {', '.join(sorted(choices))})"
        raise UserError(f"--gpu: unknown GPU '{name}'{listed}{rest}") from None
