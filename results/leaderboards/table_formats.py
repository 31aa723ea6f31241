"""Renderings of a table: Markdown, LaTeX (booktabs), HTML, CSV. Equal tables give equal bytes."""

import csv
import html
import io
import re
from collections.abc import Callable, Sequence

from results.leaderboards.latex import to_latex
from results.leaderboards.table_cells import BEST, SECOND, Cell, Grid
from results.page.environment import render


def inert(text: object) -> object:
    """A cell's text, with an apostrophe before it where a spreadsheet would run it as a formula; numbers stay.

    Carriage returns become newlines: csv quotes only these, and an unquoted one begins a row.
    """
    if not isinstance(text, str):
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(FORMULA_SIGNS) and not NUMBER.fullmatch(text) else text


FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Also the wide forms of the first four, which some spreadsheets read as those."""
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)


def to_csv(grid: Grid) -> str:
    """Values and spreads in columns of their own; no marks; each row with its source in full."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    spread = [any(row[i].spread for row in grid.rows) for i in range(len(grid.columns))]
    counted = [any(row[i].n is not None for row in grid.rows) for i in range(len(grid.columns))]
    head: list[str] = []
    for i, column in enumerate(grid.columns):
        head += [
            column.title,
            *([f"{column.title} sd"] if spread[i] else []),
            *([f"{column.title} n"] if counted[i] else []),
        ]
    numbered = {match[1]: match[2] for note in grid.notes if (match := NUMBERED.fullmatch(note))}
    own_column = not numbered and any(_source(grid, row) for row in grid.rows)
    writer.writerow([*head, *(["source"] if own_column else [])])
    for row in grid.rows:
        cells: list[str] = []
        for i, cell in enumerate(row):
            cells += [cell.text, *([cell.spread] if spread[i] else [])]
            cells += ["" if cell.n is None else str(cell.n)] if counted[i] else []
        cells[-1] = REFERENCE.sub(lambda match: numbered.get(match[1], match[0]), cells[-1])
        writer.writerow(map(inert, [*cells, *([_source(grid, row)] if own_column else [])]))
    return stream.getvalue()


NUMBERED, REFERENCE = re.compile(r"\[(\d+)\] (.*)"), re.compile(r"\[(\d+)\]")
"""A note that explains a number, and such a number at the end of a row."""


def _source(grid: Grid, row: Sequence[Cell]) -> str:
    """Of a row of a published table: the note that names its method, or the one source of all; "" where neither is."""
    for note in grid.notes:
        names, _, source = note.partition(": ")
        if names == "Source" or row[0].text in names.split(", "):
            return source
    return ""


def to_markdown(grid: Grid) -> str:
    """GitHub's dialect; best is bold, second underlined."""
    lines = [f"### {_md(grid.title)}", "", _md_row([_md(column.title) for column in grid.columns])]
    lines.append(_md_row(["---:" if column.numeric else ":---" for column in grid.columns]))
    lines += [_md_row([_marked(_md(str(cell)), cell, "**{}**", "<u>{}</u>") for cell in row]) for row in grid.rows]
    lines += ["", *(f"{_md(note)}  " for note in grid.notes)] if grid.notes else []
    return "\n".join(lines) + "\n"


def to_html(grid: Grid) -> str:
    """A `<figure>` with a `<table>`, for a page that has its own style; best is `<strong>`, second `<u>`."""
    return str(render("paper_table.html", grid=grid))


FORMATS: dict[str, Callable[[Grid], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_latex, "html": to_html}


def _marked(text: str, cell: Cell, best: str, second: str) -> str:
    return best.format(text) if cell.mark == BEST else second.format(text) if cell.mark == SECOND else text


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md(text: str) -> str:
    """Text that Markdown takes as it stands."""
    escaped = html.escape(text, quote=False).replace("\\", "\\\\")
    for sign in ("|", "*", "_", "`", "[", "]"):
        escaped = escaped.replace(sign, f"\\{sign}")
    return " ".join(escaped.split())
