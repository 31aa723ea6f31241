"""A table as papers print it: cells, columns and notes. `table_formats` renders it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

BEST, SECOND = "best", "second"


@dataclass(frozen=True)
class Cell:
    """A text, or a value with its spread and count."""

    text: str = ""
    """Printed as it is; a published value keeps its digits."""
    spread: str = ""
    """Standard deviation, without the sign."""
    n: int | None = None
    """Pretrainings behind a value of this suite; None for text and published values."""
    mark: str = ""
    """BEST, SECOND or "": only of differences that are significant."""

    def __str__(self) -> str:
        spread = f" ± {self.spread}" if self.spread else ""
        return f"{self.text}{spread}{'' if self.n is None else f' ({self.n})'}"


@dataclass(frozen=True)
class Column:
    name: str
    group: str = ""
    """Heading over neighbouring columns of the same group."""
    numeric: bool = True

    @property
    def title(self) -> str:
        return f"{self.group} {self.name}".strip()


@dataclass(frozen=True)
class Grid:
    name: str
    """Stem of its files, and LaTeX label."""
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default_factory=list)
    rules: frozenset[int] = frozenset()
    """Rows before which a rule is drawn."""

    @property
    def has_own(self) -> bool:
        """Whether any value comes from runs of this suite."""
        return any(cell.n is not None for row in self.rows for cell in row)

    @property
    def has_groups(self) -> bool:
        return any(column.group for column in self.columns)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """(heading, number of columns) of neighbouring columns of one group, in order."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans


def value_cell(row: Mapping[str, Any], metric: str, mark: str = "") -> Cell:
    """A leaderboard row's mean, sd over pretrainings and n; a single pretraining has no spread to show."""
    spread = "" if row["n_pretrain"] < 2 or pd.isna(row[f"{metric}_sd"]) else f"{row[f'{metric}_sd']:.2f}"
    return Cell(f"{row[f'{metric}_mean']:.2f}", spread, int(row["n_pretrain"]), mark)
