"""Tables as LaTeX that compiles with pdflatex and fits the page.

Needs the packages of PREAMBLE, which are in Debian's texlive-latex-base and texlive-latex-recommended.
"""

from collections.abc import Iterable, Sequence

from results.leaderboards.table_cells import BEST, SECOND, Cell, Grid

PREAMBLE = r"""\usepackage[T1]{fontenc}
\usepackage{array,booktabs,graphicx,rotating}
"""
ROWS_PER_PAGE = 42
"""A longer table is split into several floats: a float cannot break across pages."""

WRAP, WRAPPED_WIDTH = 26, "3.4cm"
"""Text columns with a cell of more characters than WRAP become paragraphs of this width."""

PORTRAIT = 120
"""Characters of a row, about, that a portrait page holds at a readable size; wider tables are turned."""

SIGNS = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "×": r"$\times$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "…": r"\ldots{}",
    "–": "--",
    "—": "---",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "µ": r"$\mu$",
    "ρ": r"$\rho$",
    "τ": r"$\tau$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # after `\\` a bare bracket would be read as the height of a skip
    "*": "{*}",  # and a bare star as that of a starred `\\*`
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def to_latex(grid: Grid) -> str:
    """One or more floats; best is bold, second underlined."""
    parts = [
        range(first, min(first + ROWS_PER_PAGE, len(grid.rows))) for first in range(0, len(grid.rows), ROWS_PER_PAGE)
    ]
    return "\n".join(_float(grid, rows, number) for number, rows in enumerate(parts or [range(0)]))


def _float(grid: Grid, rows: range, number: int) -> str:
    """The rows of one page. Notes follow the last ones."""
    kind = "sidewaystable" if _width(grid) > PORTRAIT else "table"
    caption = _tex(grid.title) + (" (continued)" if number else "")
    label = "" if number else rf"\label{{tab:{grid.name}}}"
    lines = [rf"\begin{{{kind}}}[tp]", r"\centering", rf"\caption{{{caption}}}{label}"]
    lines += [r"\footnotesize\setlength{\tabcolsep}{4pt}", *_fitted(_tabular(grid, rows))]
    if rows.stop == len(grid.rows):
        lines += _notes(grid.notes)
    return "\n".join([*lines, rf"\end{{{kind}}}"]) + "\n"


def _fitted(tabular: Sequence[str]) -> list[str]:
    """Scaled down to the width of the text where it is wider; never scaled up."""
    return [
        r"\begingroup\setbox0=\hbox{%",
        *tabular,
        r"}\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\box0}\else\box0\fi\endgroup",
    ]


def _tabular(grid: Grid, rows: range) -> list[str]:
    lines = [rf"\begin{{tabular}}{{{''.join(_column_types(grid))}}}", r"\toprule"]
    if grid.has_groups:
        lines += _group_headings(grid)
    lines += [" & ".join(_tex(column.name) for column in grid.columns) + r" \\", r"\midrule"]
    for i in rows:
        lines += [r"\midrule"] if i in grid.rules and i != rows.start else []
        lines.append(" & ".join(map(_cell, grid.rows[i])) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}%"]


def _column_types(grid: Grid) -> Iterable[str]:
    for column, longest in zip(grid.columns, _longest(grid), strict=True):
        wraps = not column.numeric and longest > WRAP
        yield rf">{{\raggedright\arraybackslash}}p{{{WRAPPED_WIDTH}}}" if wraps else "r" if column.numeric else "l"


def _width(grid: Grid) -> int:
    """Characters of a row, about, with the space between columns."""
    widths = (
        longest if column.numeric else min(longest, WRAP)
        for column, longest in zip(grid.columns, _longest(grid), strict=True)
    )
    return sum(width + 2 for width in widths)


def _longest(grid: Grid) -> list[int]:
    """Characters of the longest cell of each column, its heading included."""
    return [max([len(column.name), *(len(str(row[i])) for row in grid.rows)]) for i, column in enumerate(grid.columns)]


def _notes(notes: Sequence[str]) -> list[str]:
    return (
        [r"\par\smallskip\raggedright\footnotesize", *(rf"\noindent {_tex(note)}\par" for note in notes)]
        if notes
        else []
    )


def _group_headings(grid: Grid) -> list[str]:
    headings, rules, first = [], [], 1
    for heading, span in grid.groups:
        headings.append(rf"\multicolumn{{{span}}}{{c}}{{{_tex(heading)}}}" if heading else " &" * (span - 1))
        rules += [rf"\cmidrule(lr){{{first}-{first + span - 1}}}"] if heading else []
        first += span
    return [" & ".join(headings) + r" \\", " ".join(rules)]


def _cell(cell: Cell) -> str:
    marks = {BEST: r"\textbf{%s}", SECOND: r"\underline{%s}"}
    main = marks.get(cell.mark, "%s") % _tex(cell.text)
    spread = rf" {{\scriptsize$\pm$\,{_tex(cell.spread)}}}" if cell.spread else ""
    count = "" if cell.n is None else rf" {{\scriptsize({cell.n})}}"
    return f"{main}{spread}{count}"


def _tex(text: str) -> str:
    """Text that LaTeX prints as it is; long names may break after `/` and `_`. Other scripts become code points."""
    signs = (_sign(sign) for sign in " ".join(text.split()))
    return "".join(signs)


def _sign(sign: str) -> str:
    if sign in SIGNS:
        return SIGNS[sign] + (r"\allowbreak{}" if sign == "_" else "")
    if sign == "/":
        return r"/\allowbreak{}"
    if " " <= sign <= "~" or ("\u00c0" <= sign <= "\u00ff" and sign not in "ÐðÞþ"):  # what T1 fonts have
        return sign
    return f"U+{ord(sign):04X}"
