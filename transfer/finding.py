"""What a rule of the linter says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    rule: str
    keys: tuple[str, ...]
    """The keys of Detectron2's config that it is about."""
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"
