"""Small parts that all sections of the report are made of."""

from dataclasses import dataclass
from html import escape

import pandas as pd

from results.leaderboards.leaderboard import Tables
from results.page.charts import COLOURS


@dataclass(frozen=True)
class Palette:
    """One colour a method, the same in all charts: methods in the order of the leaderboards, best first."""

    methods: tuple[str, ...]

    @classmethod
    def of(cls, tables: Tables) -> "Palette":
        boards = sorted(tables.leaderboards, key=lambda board: (board.stage != "linear", board.name))
        names = [str(method) for board in boards for method in board.table.method]
        return cls(tuple(dict.fromkeys(names)))

    def __getitem__(self, method: str) -> int:
        return self.methods.index(method) % COLOURS if method in self.methods else COLOURS - 1


def section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{content}\n</section>\n'


def legend(palette: Palette) -> str:
    keys = "".join(f'<span><i class="k{palette[name]}"></i>{escape(name)}</span>' for name in palette.methods)
    return f'<div class="legend">{keys}</div>'


def card(title: str, content: str, attributes: str = "") -> str:
    return f'<div class="card" {attributes}><h3>{escape(title)}</h3>{content}</div>' if content else ""


def chips(text: str, kind: str = "warn") -> str:
    """Of flags that are joined by semicolons."""
    return "".join(f'<span class="chip {kind}">{escape(part)}</span>' for part in text.split("; ") if part)


def cell(text: str, value: float | None = None, numeric: bool = False, raw: bool = False) -> str:
    """A cell; one with a `value` sorts by it, one that is numeric without a value sorts last."""
    known = value is not None and not pd.isna(value)
    sort = f' data-v="{float(value) if known and value is not None else ""}"' if numeric else ""
    return f"<td{' class=num' if numeric else ''}{sort}>{text if raw else escape(text)}</td>"


def table(heads: list[tuple[str, bool]], rows: list[tuple[str, list[str]]]) -> str:
    """A sortable table. `heads`: (title, numeric); `rows`: (the text by which a row is filtered, its cells)."""
    head = "".join(f"<th{' class=num' if numeric else ''}>{escape(title)}</th>" for title, numeric in heads)
    body = "\n".join(f'<tr data-f="{escape(words)}">{"".join(cells)}</tr>' for words, cells in rows)
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="sortable">{inside}</table></div>'
