"""The report's page, put together from its sections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from results.claims import CLAIMS, TABLE
from results.leaderboards.claim_file import read_claims
from results.leaderboards.collect import Collection
from results.leaderboards.leaderboard import Tables
from results.leaderboards.paper_tables import layouts
from results.leaderboards.published import Published
from results.leaderboards.published_tables import paper_tables
from results.leaderboards.run_table import PRETRAIN
from results.leaderboards.table_formats import to_html
from results.page import across, across_sets, curves, epochs, quality, scatter, spectra
from results.page.claims import claim_table
from results.page.comparisons import comparison_table, decided
from results.page.environment import render
from results.page.frames import compact, script_json
from results.page.leaderboards import boards
from results.page.marks import SHAPES, Marks
from results.page.pictures import PAGE_BYTES, PictureBudget
from results.page.progress import progress_table
from results.page.run_details import Detail, read_details
from results.page.runs import run_views
from results.page.views import sheets

HERE = Path(__file__).parent
STATES = ("running", "interrupted", "failed")
STYLES = ("theme.css", "page.css", "charts.css", "tables.css")
SCRIPTS = ("state.js", "tables.js", "charts.js", "page.js")
LINES = 300
"""Of the records that are left out, on the page at most."""


@dataclass(frozen=True)
class Options:
    most: int = 100
    """Pretrainings of the tables shown in full, and other runs."""
    views: bool = True
    """Pictures of augmented views, where the dataset is on this machine."""
    live: bool = False
    """The page asks its server for a newer state of itself."""
    published: bool = False
    """The suite's claims, which its published records decide."""
    pictures: int = PAGE_BYTES
    """Bytes of all pictures together."""


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    content: Markup


@dataclass
class Sections:
    """Sections in order, with the frames that their charts read."""

    parts: list[Section] = field(default_factory=list)
    frames: dict[str, pd.DataFrame] = field(default_factory=dict)

    def add(self, name: str, title: str, frames: Mapping[str, pd.DataFrame] | None = None, **values: Any) -> None:
        """The template `<name>.html` with `values`."""
        self.parts.append(Section(name, title, render(f"{name}.html", **values)))
        self.frames.update(frames or {})


def page(tables: Tables, others: Sequence[Path] = (), options: Options | None = None) -> str:
    """The whole page. `others` are records of runs that are in no table or have not ended well; see `other_runs`."""
    options = options or Options()
    budget = PictureBudget(options.pictures)
    paths = [*others[: options.most], *_chosen(tables, options.most, set(others))]
    details = read_details(paths, budget)
    pretrainings = [detail for detail in details if detail.record.stage == PRETRAIN]
    methods = [*map(str, tables.runs.method.unique()), *(detail.method for detail in pretrainings)]
    marks = Marks(method for method in methods if method)
    sections = Sections()
    _results(sections, tables, details, pretrainings, marks)
    _single_runs(sections, tables, details, pretrainings, options, budget)
    return _document(sections, tables, marks, options)


def _results(
    sections: Sections, tables: Tables, details: Sequence[Detail], pretrainings: Sequence[Detail], marks: Marks
) -> None:
    """What all runs together say."""
    if any(detail.record.status != "done" for detail in details):
        sections.add("progress", "In progress, failed", table=progress_table(details))
    if tables.leaderboards:
        sections.add("leaderboards", "Leaderboards", boards=boards(tables, marks))
    if len(tables.across):
        _across(sections, tables.across, marks)
    if tables.transfer:
        frames = {across_sets.FRAME: across_sets.datasets_frame(tables.transfer)}
        encoders = across_sets.datasets_boards(tables.transfer, marks)
        sections.add("datasets", "Encoders across datasets", frames, boards=encoders)
    if len(tables.comparisons):
        table, pairs = comparison_table(tables), len(tables.comparisons)
        title = "Which differences are significant"
        sections.add("comparisons", title, table=table, pairs=pairs, decided=decided(tables))
    if pretrainings:
        frame = curves.curve_frame(pretrainings)
        overview, losses = curves.overview_charts(frame), curves.loss_charts(frame)
        missing = curves.without_curves(pretrainings)
        title = "Learning curves"
        sections.add("curves", title, {curves.FRAME: frame}, overview=overview, losses=losses, missing=missing)
    if len(tables.over_epochs):
        frame = epochs.epoch_frame(tables.over_epochs)
        sections.add("epochs", "Accuracy over epochs", {epochs.FRAME: frame}, charts=epochs.epoch_charts(frame))
    probed = spectra.chosen(pretrainings)
    if probed:
        data = spectra.frames(probed)
        more = sum(bool(detail.spectra) for detail in pretrainings) - len(probed)
        sections.add("spectra", "Spectra over time", data, spectra=spectra.spectrum_charts(probed, data), more=more)
    for name, title, (frame, drawn) in (
        ("quality", "Measures without labels against accuracy", quality.quality(tables, pretrainings)),
        ("transfer", "Classification against detection", scatter.transfer(tables)),
        ("cost", "Cost", scatter.cost(tables)),
    ):
        if drawn:
            sections.add(name, title, {name: frame}, charts=drawn)


def _across(sections: Sections, methods: pd.DataFrame, marks: Marks) -> None:
    sections.add(
        "across",
        "Methods across leaderboards",
        across.across_frames(methods),
        table=across.across_table(methods, marks),
        charts=across.across_charts(methods),
        boards=str(methods.boards.iloc[0]).split("; "),
        score=methods.score.iloc[0],
    )


def _single_runs(
    sections: Sections,
    tables: Tables,
    details: Sequence[Detail],
    pretrainings: Sequence[Detail],
    options: Options,
    budget: PictureBudget,
) -> None:
    """Claims, tables as papers print them, runs, views, and what was left out."""
    claims = claim_table(HERE.parent / TABLE) if options.published else None
    if claims is not None:
        sections.add("claims", "The papers' claims", table=claims, stated=read_claims(CLAIMS))
    published = Published()
    grids = sorted([*layouts(tables, published), *paper_tables(published)], key=lambda grid: not grid.has_own)
    sections.add("tables", "In the papers' layouts", grids=[(grid, Markup(to_html(grid))) for grid in grids])
    if details:
        hidden = tables.runs.parent.nunique() - len({detail.record.id for detail in pretrainings})
        sections.add("runs", "Runs", runs=run_views(details), hidden=max(0, hidden))
    pictures, problems = sheets(pretrainings, budget) if options.views else ([], [])
    if pictures or problems:
        sections.add("views", "Augmented views", sheets=pictures, problems=problems)
    lines = [*tables.conflicts, *tables.faults]
    if tables.duplicates:
        lines.insert(0, f"{tables.duplicates} records are copies of others and count once")
    if lines:
        sections.add("left-out", "Left out", lines=lines[:LINES], more=max(0, len(lines) - LINES))


def _document(sections: Sections, tables: Tables, marks: Marks, options: Options) -> str:
    data = {
        "frames": {name: compact(frame) for name, frame in sections.frames.items()},
        "scales": marks.scales(),
    }
    text = render(
        "page.html",
        sections=sections.parts,
        data=script_json(data),
        marks=marks,
        empty=not any(section.name in ("leaderboards", "runs") for section in sections.parts),
        published=options.published,
        shapes=SHAPES,
        fewest=_fewest(tables),
        tiles=_tiles(tables),
        style=Markup("").join(map(_file, STYLES)),
        scripts=[_vega(), *map(_file, SCRIPTS)],
        live=_file("live.js") if options.live else None,
        now=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    )
    return text.encode(errors="replace").decode()  # names may hold lone surrogates, which no file can


def _file(name: str) -> Markup:
    return Markup((HERE / "assets" / name).read_text())  # a file of this package


@cache
def _vega() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script that fetches nothing."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script"))  # of the pinned package


def _fewest(tables: Tables) -> int | None:
    """Pretrainings behind the row that has the fewest."""
    return None if tables.runs.empty else int(tables.runs.groupby("config").parent.nunique().min())


def _tiles(tables: Tables) -> list[tuple[str, str]]:
    """(number, what it counts)."""
    runs = tables.runs
    once = runs.drop_duplicates("parent")
    gpu = (once.pretrain_gpu_s.sum() + runs.eval_gpu_s.sum()) / 3600
    cpu = (once.pretrain_cpu_s.sum() + runs.eval_cpu_s.sum()) / 3600
    energy = once.pretrain_energy_kwh.sum() + runs.eval_energy_kwh.sum()
    counts = {state: sum(n for (_, other), n in tables.counts.items() if other == state) for state in STATES}
    return [
        (str(runs.parent.nunique()), "pretrained encoders"),
        (str((runs.status == "done").sum()), "evaluations"),
        (str(runs.config.nunique()), "experiments"),
        *(
            (f"{value:.1f}", unit)
            for value, unit in ((gpu, "GPU hours"), (cpu, "CPU core hours"), (energy, "kWh"))
            if value
        ),
        *((str(count), state) for state, count in counts.items() if count),
    ]


def other_runs(collection: Collection, tables: Tables) -> list[Path]:
    """Records that no table rests on or that have not ended well: those first, then pretrainings without evaluation."""
    behind = set(tables.sources)
    runs = [
        run
        for run in collection.summaries.values()
        if run.status != "done" or (run.stage == PRETRAIN and run.path not in behind)
    ]
    order = sorted(runs, key=lambda run: (run.status == "done", run.stage != PRETRAIN, run.stage, run.id))
    return [run.path for run in order]


def _chosen(tables: Tables, most: int, excluded: set[Path]) -> list[Path]:
    """The records of at most `most` pretrainings and of their evaluations, those of the best rows first."""
    order: dict[str, None] = {}
    ranked = sorted(
        (position, board.name, row["config"])
        for board in tables.leaderboards
        for position, row in enumerate(board.rows)
    )
    by_config = tables.runs.groupby("config").parent.unique()
    for _, _, config in ranked:
        order |= dict.fromkeys(map(str, by_config.get(config, [])))
    parents = list(order)[:most]
    ids = {*parents, *tables.runs.id[tables.runs.parent.isin(parents)]}
    paths = {path: path.parent.name if path.name == "run.json" else path.stem for path in tables.sources}
    return [path for path, name in paths.items() if name in ids and path not in excluded]
