"""Tables in the papers' layout: what is published, what is ours, what is marked, and that every format can be read."""

import csv
import html.parser
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from results.aggregate import RESULTS, published_roots, tables_of
from results.leaderboards.latex import PREAMBLE, ROWS_PER_PAGE, to_latex
from results.leaderboards.paper_tables import layouts
from results.leaderboards.published import Published
from results.leaderboards.published_tables import paper_tables
from results.leaderboards.table_cells import BEST, SECOND, Cell, Column, Grid
from results.leaderboards.table_formats import to_csv, to_html, to_markdown
from results.leaderboards.write import first_difference
from tests.support.run_records import Records

GRID = Grid(
    "t",
    "A & B: 50 % of <x>",
    [Column("method_name", numeric=False), Column("linear", "CIFAR-10"), Column("5-NN", "CIFAR-10"), Column("AP")],
    [
        [Cell("a|b*"), Cell("91.92", "0.10", 3, BEST), Cell("89.5"), Cell()],
        [Cell("c†"), Cell("90.00", "0.20", 2, SECOND), Cell(), Cell("1.0")],
    ],
    ["[1] x_y"],
    frozenset({1}),
)


def test_a_csv_has_spreads_and_counts_apart() -> None:
    head, first, _ = csv.reader(io.StringIO(to_csv(GRID)))
    assert head == ["method_name", "CIFAR-10 linear", "CIFAR-10 linear sd", "CIFAR-10 linear n", "CIFAR-10 5-NN", "AP"]
    assert first == ["a|b*", "91.92", "0.10", "3", "89.5", ""]


def test_every_row_of_a_csv_names_its_source_in_full() -> None:
    published = Published()
    for grid in paper_tables(published):
        rows = list(csv.DictReader(io.StringIO(to_csv(grid))))
        assert all(row["source"].removeprefix("SECONDARY: ").startswith("https://") for row in rows)
    records = tables_of([])
    for grid in layouts(records, published):
        rows = list(csv.DictReader(io.StringIO(to_csv(grid))))
        assert rows
        assert all("https://" in row["from"] for row in rows)


def test_markdown_marks_and_escapes() -> None:
    shown = to_markdown(GRID)
    assert "| a\\|b\\* | **91.92 ± 0.10 (3)** | 89.5 |  |" in shown
    assert "<u>90.00 ± 0.20 (2)</u>" in shown
    assert "50 % of &lt;x&gt;" in shown
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in shown.splitlines() if line.startswith("|")}) == 1


def test_latex_is_booktabs_and_every_row_has_all_cells() -> None:
    shown = to_latex(GRID)
    body = shown[shown.index(r"\midrule") : shown.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [3, 3]
    assert r"\textbf{91.92} {\scriptsize$\pm$\,0.10} {\scriptsize(3)}" in rows[0]
    assert r"\underline{90.00}" in rows[1]
    assert r"& \multicolumn{2}{c}{CIFAR-10} & \\" in shown.replace("  ", " ")
    assert r"\cmidrule(lr){2-3}" in shown
    assert r"A \& B: 50 \% of \textless{}x\textgreater{}" in shown
    assert body.count(r"\midrule") == 2
    assert r"\noindent {[}1] x\_" in shown
    assert shown.count("{") - shown.count(r"\{") == shown.count("}") - shown.count(r"\}")


def pdflatex(tables: list[str], folder: Path) -> str:
    """Compiles the tables as one document to `folder/t.pdf`; returns LaTeX's log. Skips where there is no TeX."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    source = "\\documentclass{article}\n" + PREAMBLE + "\\begin{document}\n"
    source += "\\clearpage\n".join(tables) + "\\end{document}\n"
    (folder / "t.tex").write_text(source)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "t.tex"]
    result = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    log = result.stdout.decode(errors="replace")
    assert result.returncode == 0, log[-2000:]
    return log


def too_large(log: str, points: float = 1.0) -> list[str]:
    """Of a LaTeX log, what runs off the page."""
    sizes = re.findall(r"(Overfull \\[hv]box \(([\d.]+)pt too (?:wide|high)\).*|Float too large.*)", log)
    return [line for line, size in sizes if not size or float(size) > points]


def test_every_table_of_the_suite_compiles_and_fits_the_page(tmp_path: Path) -> None:
    published = Published()
    grids = [*layouts(tables_of(published_roots(RESULTS)), published), *paper_tables(published)]
    assert len(grids) > 10
    assert too_large(pdflatex([to_latex(grid) for grid in grids], tmp_path)) == []


def test_latex_prints_any_text_and_splits_long_tables(tmp_path: Path) -> None:
    texts = [
        "[2]",
        "*",
        r"\input{/etc/passwd}",
        "^^5c",
        "a_b%c$d#e&f{g}h~i",
        '"<|>"',
        "−1 ± ρ",
        "中文 \ud800 é ß",
        "x" * 300,
        "",
    ]
    columns = [Column("[name]", numeric=False), Column("value*", "[group]")]
    rows = [[Cell(text), Cell(text[:9], "0.1", 3, BEST)] for text in texts * 10]
    shown = to_latex(Grid("t", "[a] * \n\n b", columns, rows, texts, frozenset({3})))
    assert shown.count(r"\begin{table}") == -(-len(rows) // ROWS_PER_PAGE)
    assert shown.count(r"\label{tab:t}") == 1
    pdflatex([shown], tmp_path)


class _Table(html.parser.HTMLParser):
    """Cells of each row of a table, with column spans counted."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.widths: list[int] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.widths.append(0)
        if tag in ("td", "th"):
            self.widths[-1] += int(dict(attrs).get("colspan") or 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed() -> None:
    shown = to_html(GRID)
    table = _Table(shown)
    assert table.widths == [4, 4, 4, 4]
    assert not table.open
    assert "A &amp; B: 50 % of &lt;x&gt;" in shown
    assert "<strong>91.92<small> ± 0.10</small>" in shown


# --- the papers' own tables -----------------------------------------------------------------------------------------


def test_every_value_of_the_whitening_papers_is_in_their_tables_and_nothing_else() -> None:
    published = Published()
    wanted: dict[str, list[str]] = {"cwrgp": [], "intl": []}
    for setting, values in published.rows:
        for name, paper in (("cwrgp", "CW-RGP (NeurIPS 2022)"), ("intl", "INTL (ICLR 2024)")):
            if setting["paper"] == paper:
                wanted[name] += [f"{value} {spread}" for value, spread in values.values()]
    for name, values in wanted.items():
        grids = [grid for grid in paper_tables(published) if grid.name.startswith(name)]
        shown = [
            f"{cell.text} {cell.spread}"
            for grid in grids
            for row in grid.rows
            for column, cell in zip(grid.columns, row, strict=True)
            if cell.text and re.match(r"top-|5-NN|AP", column.name)
        ]
        assert sorted(shown) == sorted(values)
        assert not any(cell.mark for grid in grids for row in grid.rows for cell in row)


def test_intls_small_table_has_its_readmes_columns() -> None:
    [small] = [grid for grid in paper_tables(Published()) if grid.name == "intl_small"]
    [row] = small.rows
    assert [cell.text for cell in row] == [
        "INTL",
        *["92.60", "90.03", "99.80", "70.88", "61.90", "92.13", "81.68", "73.46", "95.42"],
    ]


# --- ours beside them -----------------------------------------------------------------------------------------------


def _cifar(records: Records, method: str, tops: list[float], recipe: str) -> None:
    for seed, top1 in enumerate(tops):
        config = {
            "data": {"dataset": "cifar10"},
            "method": {"name": method},
            "schedule": {"epochs": 1000},
            "batch": 256,
        }
        parent = records.pretrain(method, seed, recipe=recipe, config=config)
        records.evaluate(parent, {"top1": top1}, config={"dataset": "cifar10"})


def _every(records: Records) -> list[Grid]:
    return layouts(tables_of([records.root]), Published())


def _small(records: Records) -> Grid:
    [grid] = [grid for grid in _every(records) if grid.name == "small"]
    return grid


def test_ours_stand_below_the_published_rows_with_verdict_and_doubts(records: Records) -> None:
    _cifar(records, "cwrgp", [91.9, 91.95, 92.0], "cifar10/cwrgp-2view")
    _cifar(records, "simclr", [91.0], "cifar10/simclr")
    grid = _small(records)
    rows = {row[0].text: row for row in grid.rows}
    ours = rows["cwrgp (cifar10/cwrgp-2view)"]
    assert (ours[5].text, ours[5].spread, ours[5].n) == ("91.95", "0.05", 3)
    assert ours[-1].text == "this suite; CIFAR-10 linear reproduced"
    single = rows["simclr (cifar10/simclr) †"]
    assert (single[5].text, single[5].spread, single[5].n) == ("91.00", "", 1)
    assert "simclr (cifar10/simclr): reconstruction; one pretraining" in grid.notes
    published = {(row[0].text, row[2].text): row[-1].text for row in grid.rows}
    assert published["CW-RGP 2", "256"] == "[1] not run: cifar10/cwrgp-2view"  # its k-NN
    assert published["INTL", "256"] == "[2] not run: cifar10/intl, cifar100/intl"
    assert grid.rules == {len(grid.rows) - 2}


def test_recipe_counts_as_run_only_with_the_epochs_and_network_that_it_states(records: Records) -> None:
    config = {"data": {"dataset": "cifar10"}, "method": {"name": "cwrgp"}, "schedule": {"epochs": 2}, "batch": 256}
    parent = records.pretrain("cwrgp", 0, recipe="cifar10/cwrgp-2view", config=config)
    records.evaluate(parent, {"top1": 48.0}, config={"dataset": "cifar10"})
    origins = {(row[0].text, row[2].text): row[-1].text for row in _small(records).rows}
    assert origins["CW-RGP 2", "256"] == "[1] not run: cifar10/cwrgp-2view"


def test_recipes_beside_a_published_row_are_of_its_method(records: Records) -> None:
    origins = [(row[0].text, row[-1].text) for grid in _every(records) for row in grid.rows if grid.name != "cost"]
    assert [text for name, text in origins if name == "Zero-CL" and "tregs" in text] == []  # both report 91.3
    assert [text for name, text in origins if name == "DeepCluster-v2" and "resa" in text] == []  # both 75.2
    assert any("imagenet1k/barlow-twins-1000ep" in text for name, text in origins if name == "Barlow Twins")


def test_best_and_second_are_marked_only_where_they_differ_significantly(records: Records) -> None:
    wobble = [0.0, 0.1, -0.1, 0.05, 0.02]
    for method, top in (("supervised", 99), ("intl", 92), ("cwrgp", 90), ("simclr", 88)):
        _cifar(records, method, [top + x * len(method) for x in wobble], f"own/{method}")
    marks = {row[0].text.split()[0]: row[5].mark for row in _small(records).rows if row[-1].text == "this suite"}
    assert marks == {"supervised": "", "intl": BEST, "cwrgp": SECOND, "simclr": ""}


def test_two_pretrainings_are_too_few_for_a_mark(records: Records) -> None:
    _cifar(records, "intl", [92.0, 92.0001], "own/intl")
    _cifar(records, "cwrgp", [81.0, 81.0], "own/cwrgp")
    assert not any(cell.mark for row in _small(records).rows for cell in row)


def test_ties_are_not_marked(records: Records) -> None:
    _cifar(records, "intl", [92.0, 90.0, 91.0], "own/intl")
    _cifar(records, "cwrgp", [91.0, 90.5, 90.9], "own/cwrgp")
    assert not any(cell.mark for row in _small(records).rows for cell in row)


def test_the_committed_tables_are_what_the_committed_records_give() -> None:
    assert first_difference(tables_of(published_roots(RESULTS)), RESULTS) is None
