"""Tables that the page's script sorts, filters, narrows to chosen columns and saves as CSV."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from markupsafe import Markup

from results.page.environment import macro

Content = str | Markup
"""Text, which the template escapes, or what a template made."""


@dataclass(frozen=True)
class Head:
    key: str
    """Names the column in the page's address."""
    title: Content
    numeric: bool = False
    plot: bool = False
    """A column of dots, which does not sort and is not saved as CSV."""


@dataclass(frozen=True)
class Cell:
    content: Content
    value: float | None = None
    """By which a numeric column sorts; None sorts last."""
    csv: str | None = None
    """As saved to CSV; None saves the value, else the content."""


@dataclass(frozen=True)
class TableRow:
    words: str
    """What the filter finds the row by."""
    cells: Sequence[Cell]
    name: str = ""
    """Id of the row in the page; "" has none."""


@dataclass(frozen=True)
class Table:
    name: str
    heads: Sequence[Head]
    rows: Sequence[TableRow]


def without_empty_columns(table: Table) -> Table:
    """Columns that say nothing in any row are left out."""
    used = [i for i in range(len(table.heads)) if any(str(row.cells[i].content).strip() for row in table.rows)]
    rows = [replace(row, cells=[row.cells[i] for i in used]) for row in table.rows]
    return replace(table, heads=[table.heads[i] for i in used], rows=rows)


def number_cell(value: Any, form: str = "{:.2f}") -> Cell:
    """Empty where the value is missing."""
    if pd.isna(value):
        return Cell("")
    return Cell(form.format(value), float(value))


def chips(texts: Sequence[str], kind: str = "") -> Markup:
    return macro("cells.html", "chips")([text for text in texts if text], kind)
