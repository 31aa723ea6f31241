"""A table as papers print it, and its renderings: Markdown, LaTeX (booktabs), HTML, CSV. Equal grids, equal bytes."""

import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

BEST, SECOND = "best", "second"


@dataclass(frozen=True)
class Cell:
    """A text, or a value with what is known of its spread."""

    text: str = ""
    """Shown as it stands; a published value keeps its digits."""
    spread: str = ""
    """Standard deviation, without the sign."""
    n: int | None = None
    """Pretrainings behind a value of ours; None for text and published values."""
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
    """Of its files."""
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default_factory=list)
    rules: frozenset[int] = frozenset()
    """Rows before which a rule is drawn."""

    @property
    def has_own(self) -> bool:
        """Whether any value is of runs of ours."""
        return any(cell.n is not None for row in self.rows for cell in row)

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


def to_csv(grid: Grid) -> str:
    """Values and spreads in columns of their own; no marks."""
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
    writer.writerow(head)
    for row in grid.rows:
        cells: list[str] = []
        for i, cell in enumerate(row):
            cells += [cell.text, *([cell.spread] if spread[i] else [])]
            cells += ["" if cell.n is None else str(cell.n)] if counted[i] else []
        writer.writerow(cells)
    return stream.getvalue()


def to_markdown(grid: Grid) -> str:
    """GitHub's dialect; best is bold, second underlined."""
    lines = [f"### {_md(grid.title)}", "", _md_row([_md(column.title) for column in grid.columns])]
    lines.append(_md_row(["---:" if column.numeric else ":---" for column in grid.columns]))
    lines += [_md_row([_marked(_md(str(cell)), cell, "**{}**", "<u>{}</u>") for cell in row]) for row in grid.rows]
    lines += ["", *(f"{_md(note)}  " for note in grid.notes)] if grid.notes else []
    return "\n".join(lines) + "\n"


def to_latex(grid: Grid) -> str:
    """For `\\usepackage{booktabs}`; best is bold, second underlined."""
    lines = [r"\begin{table}[t]", r"\centering", rf"\caption{{{_tex(grid.title)}}}", r"\label{tab:" + grid.name + "}"]
    lines += [
        r"\begin{tabular}{" + "".join("r" if column.numeric else "l" for column in grid.columns) + "}",
        r"\toprule",
    ]
    if any(heading for heading, _ in grid.groups):
        lines += _tex_groups(grid)
    lines += [" & ".join(_tex(column.name) for column in grid.columns) + r" \\", r"\midrule"]
    for i, row in enumerate(grid.rows):
        lines += [r"\midrule"] if i in grid.rules and i else []
        lines.append(" & ".join(map(_tex_cell, row)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [r"\par\smallskip\raggedright\footnotesize " + r" \\ ".join(map(_tex, grid.notes))] if grid.notes else []
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_html(grid: Grid) -> str:
    """A `<figure>` with a `<table>`, for a page that has its own style; best is `<strong>`, second `<u>`."""
    lines = [f'<figure id="{html.escape(grid.name)}">', f"<figcaption>{html.escape(grid.title)}</figcaption>"]
    lines += ['<div class="scroll"><table>', "<thead>"]
    if any(heading for heading, _ in grid.groups):
        spans = (f'<th colspan="{span}">{html.escape(heading)}</th>' for heading, span in grid.groups)
        lines.append(f"<tr>{''.join(spans)}</tr>")
    heads = (f'<th class="{_kind(column)}">{html.escape(column.name)}</th>' for column in grid.columns)
    lines += [f"<tr>{''.join(heads)}</tr>", "</thead>", "<tbody>"]
    for i, row in enumerate(grid.rows):
        cells = (
            f'<td class="{_kind(column)}">{_marked(_html_cell(cell), cell, "<strong>{}</strong>", "<u>{}</u>")}</td>'
            for column, cell in zip(grid.columns, row, strict=True)
        )
        lines.append(f"<tr{' class=rule' if i in grid.rules and i else ''}>{''.join(cells)}</tr>")
    lines += ["</tbody>", "</table></div>"]
    lines += [f"<p>{html.escape(note)}</p>" for note in grid.notes]
    return "\n".join([*lines, "</figure>"]) + "\n"


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


TEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
TEX |= {"×": r"$\times$", "–": "--", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


def _tex(text: str) -> str:
    return "".join(TEX.get(sign, sign) for sign in text)


def _tex_cell(cell: Cell) -> str:
    main = _marked(_tex(cell.text), cell, r"\textbf{{{}}}", r"\underline{{{}}}")
    spread = rf" {{\scriptsize$\pm$\,{cell.spread}}}" if cell.spread else ""
    n = "" if cell.n is None else rf" {{\scriptsize({cell.n})}}"
    return f"{main}{spread}{n}"


def _tex_groups(grid: Grid) -> list[str]:
    heads, rules, place = [], [], 1
    for heading, span in grid.groups:
        heads.append(rf"\multicolumn{{{span}}}{{c}}{{{_tex(heading)}}}" if heading else " &" * (span - 1))
        rules += [rf"\cmidrule(lr){{{place}-{place + span - 1}}}"] if heading else []
        place += span
    return [" & ".join(heads) + r" \\", " ".join(rules)]


def _kind(column: Column) -> str:
    return "num" if column.numeric else "text"


def _html_cell(cell: Cell) -> str:
    spread = f"<small> ± {html.escape(cell.spread)}</small>" if cell.spread else ""
    n = "" if cell.n is None else f"<small> ({cell.n})</small>"
    return f"{html.escape(cell.text)}{spread}{n}"
