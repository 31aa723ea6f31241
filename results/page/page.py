"""The report's page, put together from its sections."""

from datetime import UTC, datetime
from html import escape
from pathlib import Path

from results.claims import TABLE
from results.leaderboards.leaderboard import Tables
from results.leaderboards.paper_tables import layouts
from results.leaderboards.published import Published
from results.leaderboards.published_tables import paper_tables
from results.leaderboards.table_formats import to_html
from results.page.claims import claims
from results.page.leaderboards import boards, comparisons
from results.page.parts import Palette, legend, section
from results.page.run_charts import cost, curves, spectra, transfer
from results.page.run_details import read_details
from results.page.runs import runs

HERE = Path(__file__).parent
PRETRAIN = "pretrain"


def page(tables: Tables, most: int, views: bool = True) -> str:
    """The whole page; `most` pretrainings are read and shown in full, those of the leaderboards' best rows first.

    `views` adds pictures of what augmentation makes of images, where the dataset is at hand.
    """
    palette = Palette.of(tables)
    details = read_details(_chosen(tables, most))
    pretrainings = [detail for detail in details if detail.record.stage == PRETRAIN]
    parts = [
        ("leaderboards", "Leaderboards", boards(tables, palette)),
        ("comparisons", "Which differences are real", comparisons(tables)),
        ("curves", "Learning curves", curves(pretrainings, palette)),
        ("spectra", "Spectra over time", spectra(pretrainings)),
        ("transfer", "Classification against detection", transfer(tables, palette)),
        ("cost", "Cost", cost(tables, palette)),
        ("claims", "The papers' claims", claims(HERE / TABLE)),
        ("tables", "In the papers' layouts", _layouts(tables)),
        ("runs", "Runs", runs(tables, details, views)),
        ("left-out", "Left out", _left_out(tables)),
    ]
    shown = [(name, title, content) for name, title, content in parts if content]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown)
    script, style = ((HERE / name).read_text() for name in ("report.js", "report.css"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data:">
<title>Whitebench results</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>Whitebench results</h1>
<p class="lead">{_lead(tables)}</p>
{_tiles(tables)}
{legend(palette)}
</header>
<nav><div><span>{links}</span>\
<input id="filter" type="search" placeholder="filter rows and runs" aria-label="filter rows and runs">\
<button id="theme" aria-label="light or dark">◐</button></div></nav>
<main>
{"".join(section(*part) for part in shown)}
</main>
<footer>Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by <code>python results/report.py</code>.</footer>
<script>
{script}</script>
</body>
</html>
"""


def _lead(tables: Tables) -> str:
    fewest = tables.runs.groupby(["config"]).parent.nunique().min()
    return (
        "n counts independent pretrainings; seeds of evaluation and fine-tuning are averaged within each first. "
        "Intervals are 95 % by Student's t; differences are tested on shared seeds, with Holm's correction for all "
        f"pairs of a leaderboard. The fewest pretrainings behind a row here: n = {fewest}."
    )


def _tiles(tables: Tables) -> str:
    once = tables.runs.drop_duplicates("parent")
    gpu = (once.pretrain_gpu_s.sum() + tables.runs.eval_gpu_s.sum()) / 3600
    cpu = (once.pretrain_cpu_s.sum() + tables.runs.eval_wall_s.where(tables.runs.eval_gpu_s == 0).sum()) / 3600
    energy = once.pretrain_energy_kwh.sum() + tables.runs.eval_energy_kwh.sum()
    tiles = [
        (f"{tables.runs.parent.nunique()}", "pretrained encoders"),
        (f"{(tables.runs.status == 'done').sum()}", "evaluations"),
        (f"{tables.runs.config.nunique()}", "experiments"),
        *([(f"{gpu:.1f}", "GPU hours")] if gpu else []),
        *([(f"{cpu:.1f}", "CPU core hours")] if cpu else []),
        *([(f"{energy:.1f}", "kWh")] if energy else []),
    ]
    counts = tables.counts
    for status in ("running", "interrupted", "failed"):
        number = sum(n for (_, state), n in counts.items() if state == status)
        tiles += [(str(number), status)] if number else []
    return f'<div class="tiles">{"".join(f"<div class=tile><b>{b}</b><span>{s}</span></div>" for b, s in tiles)}</div>'


def _chosen(tables: Tables, most: int) -> list[Path]:
    """The records of at most so many pretrainings, and of their evaluations; of the best rows first."""
    order: dict[str, None] = {}
    ranked = sorted(
        (place, board.name, row.config)
        for board in tables.leaderboards
        for place, row in enumerate(board.table.itertuples())
    )
    by_config = tables.runs.groupby("config").parent.unique()
    for _, _, config in ranked:
        order |= dict.fromkeys(map(str, by_config.get(config, [])))
    kept = set(list(order)[:most])
    evaluations = set(tables.runs.id[tables.runs.parent.isin(list(kept))])
    names = {path: path.parent.name if path.name == "run.json" else path.stem for path in tables.sources}
    return [path for path, name in names.items() if name in kept or name in evaluations]


def _layouts(tables: Tables) -> str:
    published = Published()
    grids = [*layouts(tables, published), *paper_tables(published)]
    grids.sort(key=lambda grid: not grid.has_own)
    return "".join(
        f"<details><summary>{escape(grid.title)} <small>{len(grid.rows)} rows; tables/{grid.name}.csv, .md, .tex, .html"
        f"</small></summary><div class=inner>{to_html(grid)}</div></details>"
        for grid in grids
    )


def _left_out(tables: Tables) -> str:
    lines = [*tables.conflicts, *tables.faults]
    if tables.duplicates:
        lines.insert(0, f"{tables.duplicates} records were found twice and count once")
    return f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""
