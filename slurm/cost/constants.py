"""The throughput model's constants: `constants.yaml`, checked and typed."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from slurm.cost.quantity import Quantity
from whitebench.errors import UserError, nearest
from whitebench.yaml import read_yaml

FILE = Path(__file__).parent / "constants.yaml"


@dataclass(frozen=True)
class Card:
    """A GPU, by its data sheet."""

    name: str
    title: str
    source: str
    memory_gb: float
    bandwidth: float
    """Of its memory, GB/s."""
    half_tflops: float
    """Peak of products of 16-bit numbers summed in 32 bits, without sparsity."""
    single_tflops: float
    """Peak of float32 products, as convolutions use it: TF32 where the card has it."""
    watts: float
    """Largest power."""
    link: float
    """To the other GPUs of its node, GB/s, both directions together."""
    names: tuple[str, ...] = field(default=())
    """Further names by which `--gpu` and SLURM's types may call it."""


class Constants:
    """Access to the file's content by dotted names."""

    def __init__(self, raw: dict[str, Any], where: str = str(FILE)) -> None:
        self.raw, self.where = raw, where
        self.cards = {name: _card(name, entry, where) for name, entry in raw["cards"].items()}

    def __call__(self, name: str) -> Quantity:
        """The constant `name`, e.g. "reading.crop_ns".

        Raises:
            UserError: not in the file, or its interval does not hold its value.
        """
        entry = self.entry(name)
        try:
            quantity = Quantity(float(entry["value"]), float(entry["low"]), float(entry["high"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.where}: {name}: needs value, low, high and source ({error})") from error
        if not 0 <= quantity.low <= quantity.value <= quantity.high or not entry.get("source"):
            raise UserError(f"{self.where}: {name}: low <= value <= high, and a source, are needed; not {entry}")
        return quantity

    def entry(self, name: str) -> Any:
        """What the file says at a dotted name."""
        node: Any = self.raw
        for part in name.split("."):
            if not isinstance(node, dict) or part not in node:
                raise UserError(f"{self.where}: {name}: '{part}' is not there{nearest(part, map(str, node))}")
            node = node[part]
        return node

    def choice(self, section: str, name: str) -> Quantity:
        """The constant `name` of a section of alternatives; the section's `other` where it has one."""
        alternatives = self.entry(section)
        return self(f"{section}.{name if name in alternatives or 'other' not in alternatives else 'other'}")

    def card(self, name: str) -> Card:
        """The card of a name, whatever its case and hyphens; also as drivers say it, `NVIDIA H100 80GB HBM3`.

        Raises:
            UserError: unknown; the nearest names, or all of them.
        """
        words = name.replace("-", " ").replace("_", " ").split()
        models = [word for word in words if any(letter.isdigit() for letter in word)]
        for spelling in (name, *(models if len(words) > 1 else [])):
            for card in self.cards.values():
                if _plain(spelling) in map(_plain, (card.name, card.title, *card.names)):
                    return card
        raise UserError(f"unknown GPU '{name}'{nearest(name.lower(), self.cards)}; see cards in {FILE.name}")

    def quantities(self) -> dict[str, tuple[Quantity, str]]:
        """All constants with an interval, by dotted name, with their sources."""
        quantities: dict[str, tuple[Quantity, str]] = {}

        def walk(node: Any, prefix: str) -> None:
            if isinstance(node, dict) and "value" in node:
                quantities[prefix] = self(prefix), str(node["source"])
            elif isinstance(node, dict):
                for key, child in node.items():
                    walk(child, f"{prefix}.{key}" if prefix else str(key))

        walk({key: part for key, part in self.raw.items() if key not in ("cards", "step_rates")}, "")
        return quantities


@cache
def constants() -> Constants:
    """Those of the file that comes with the suite."""
    return Constants(read_yaml(FILE))


def _card(name: str, entry: dict[str, Any], where: str) -> Card:
    try:
        return Card(**{**entry, "name": str(name), "names": tuple(map(str, entry.get("names", ())))})
    except TypeError as error:
        raise UserError(f"{where}: cards.{name}: {error}") from error


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum()).removeprefix("nvidia")
