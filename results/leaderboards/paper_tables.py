"""The tables in the papers' own layouts: what was published, then what was run here, so that the field is seen whole.

A row is a method in a setting, a column a dataset, evaluation and metric. Published values keep their digits and their
sources; measured values have sd and n, and marks where differences are significant. Flagged rows stay and are named.
"""

import pandas as pd

from results.leaderboards import recipe_papers as recipes
from results.leaderboards.comparisons import marks
from results.leaderboards.cost_table import cost_table
from results.leaderboards.experiments import GROUP, Row
from results.leaderboards.leaderboard import Tables
from results.leaderboards.published import NOT_RUN, Published
from results.leaderboards.table_cells import Cell, Column, Grid, value_cell
from results.leaderboards.table_layouts import LAYOUTS, Layout, Slot

RECONSTRUCTED = "†"
Setting = tuple[str, ...]


def layouts(tables: Tables, published: Published) -> list[Grid]:
    """Of LAYOUTS, those that have any row, and the table of costs."""
    grids = [_grid(layout, tables, published) for layout in LAYOUTS]
    return [grid for grid in [*grids, cost_table(tables)] if grid.rows]


def _grid(layout: Layout, tables: Tables, published: Published) -> Grid:
    published_lines, sources = _published_rows(layout, tables, published)
    suite_lines, notes = _our_rows(layout, tables)
    slots = [slot for slot in layout.slots if any(slot in cells for _, cells, _ in [*published_lines, *suite_lines])]
    columns = [Column("method", numeric=False), *(Column(name, numeric=False) for name in layout.setting)]
    columns += [*(slot.column for slot in slots), Column("from", numeric=False)]
    rows = [
        [*map(Cell, setting), *(cells.get(slot, Cell()) for slot in slots), Cell(origin)]
        for setting, cells, origin in [*published_lines, *suite_lines]
    ]
    notes = [*sources, *notes]
    if any(RECONSTRUCTED in line[0][0] + line[2] for line in [*published_lines, *suite_lines]):
        notes.append(f"{RECONSTRUCTED} reconstruction: the paper's exact settings are not known.")
    return Grid(
        layout.name, layout.title, columns, rows, notes, frozenset({len(published_lines)} if suite_lines else ())
    )


Line = tuple[Setting, dict[Slot, Cell], str]
"""Of a table: method and setting, values, where they are from."""


def _published_rows(layout: Layout, tables: Tables, published: Published) -> tuple[list[Line], list[str]]:
    """The published rows of a layout, and the sources to which their last cells refer."""
    names = {name: dataset for dataset, name in published.map["datasets"].items()}
    run = {(row["recipe"], board.stage) for board in tables.leaderboards for row in board.rows if _is_of_full_size(row)}
    lines: dict[tuple[Setting, str], tuple[dict[Slot, Cell], set[str]]] = {}
    sources: dict[str, int] = {}
    for row, values in published.rows:
        stage, dataset = published.map["stages"].get(row["protocol"]), names.get(row["dataset"])
        targets = {
            slot: Cell(*values[slot.metric])
            for slot in layout.slots
            if (slot.dataset, slot.stage) == (dataset, stage) and slot.metric in values and _of_epochs(slot, row)
        }
        if not targets:
            continue
        source = f"{row['paper']}, {row['source_table']}: {row['source']}"
        number = sources.setdefault(source, len(sources) + 1)
        key = {"architecture": "backbone", "batch": "batch_size"}
        setting = (row["method"], *(row[key.get(name, name)] for name in layout.setting))
        cells, missing = lines.setdefault((setting, f"[{number}]"), ({}, set()))
        cells.update(targets)
        missing |= {
            recipe
            for slot in targets
            for recipe in _recipes_for(slot, row["method"], values[slot.metric][0], published)
            if (recipe.rstrip(RECONSTRUCTED), slot.stage) not in run
        }
    return [
        (setting, cells, f"{source} {NOT_RUN}: {', '.join(sorted(missing))}" if missing else source)
        for (setting, source), (cells, missing) in lines.items()
    ], [f"[{number}] {source}" for source, number in sources.items()]


def _is_of_full_size(row: Row) -> bool:
    """Whether the experiment has the epochs, batch and network that its recipe states, as far as they are known."""
    recipe = row["recipe"]
    network = recipes.section(recipe, "network")
    stated = {
        "epochs": recipes.section(recipe, "schedule").get("epochs"),
        "batch": recipes.content(recipe).get("batch"),
        "backbone": network.get("backbone"),
        "stem": network.get("stem"),
    }
    return all(value is None or pd.isna(row[key]) or row[key] == value for key, value in stated.items())


def _of_epochs(slot: Slot, row: dict[str, str]) -> bool:
    return slot.epochs is None or slot.epochs == row["epochs"]


def _recipes_for(slot: Slot, method: str, value: str, published: Published) -> list[str]:
    """The suite's recipes that aim at this published value of this method."""
    return [
        f"{name}{RECONSTRUCTED if recipes.is_reconstruction(name) else ''}"
        for name in recipes.names()
        if recipes.section(name, "data").get("dataset") == slot.dataset
        and (recipes.paper(name).get("reported") or {}).get(f"{slot.stage}_{slot.metric}") == float(value)
        and slot.epochs in (None, str(recipes.section(name, "schedule").get("epochs", "")))
        and published.is_method(method, (config := recipes.section(name, "method")).get("name"), config, name)
    ]


def _our_rows(layout: Layout, tables: Tables) -> tuple[list[Line], list[str]]:
    """The rows of this suite's runs, and the notes on them: protocols, flags, what is stale."""
    lines: dict[Setting, tuple[dict[Slot, Cell], list[str]]] = {}
    remarks: dict[str, None] = {}
    for slot in layout.slots:
        rows, protocols = _experiments(slot, tables)
        for row, mark in zip(rows, _marks(rows, slot, layout, tables), strict=True):
            rebuilt = recipes.is_reconstruction(row["recipe"])
            name = " ".join(filter(None, (row["method"], f"({row['recipe']})", row["variant"])))
            label = f"{name} {RECONSTRUCTED}" if rebuilt else name
            named = {
                "architecture": row["backbone"],
                "batch": row["batch"],
                "views": row["views"],
                "epochs": row["epochs"],
            }
            setting = (label, *("" if pd.isna(named[key]) else str(named[key]) for key in layout.setting))
            cells, verdicts = lines.setdefault(setting, ({}, []))
            cells[slot] = value_cell(row, slot.metric, mark)
            verdict = row.get(f"{slot.metric}_verdict")
            verdicts += [f"{slot.column.title} {verdict}"] if verdict else []
            remarks |= {f"{name}: {row['flags']}": None} if row["flags"] else {}
        remarks |= {f"{slot.stage}: protocol {protocol}": None for protocol in protocols}
    suite_lines = [
        (setting, cells, "; ".join(["this suite", *verdicts])) for setting, (cells, verdicts) in lines.items()
    ]
    legend = "This suite: mean ± sd (n pretrainings); bold and underlined where significant, of 3 or more."
    notes = [legend] if suite_lines else []
    return suite_lines, [*notes, *remarks]


def _experiments(slot: Slot, tables: Tables) -> tuple[list[Row], list[str]]:
    """The experiments of this suite that have a value there, and their protocols.

    Of several protocols of an experiment it is the one that its recipe names, else the first; leaderboards have all.
    """
    chosen: dict[tuple[str, ...], tuple[tuple[bool, str], Row]] = {}
    for board in tables.leaderboards:
        here = (board.dataset, board.stage) == (slot.dataset, slot.stage)
        if not here or not board.protocol.endswith(slot.protocol or ""):
            continue
        for row in board.rows:
            if pd.isna(row[f"{slot.metric}_mean"]) or slot.epochs not in (None, str(row["epochs"])):
                continue
            protocol = (recipes.content(row["recipe"]).get("evaluation") or {}).get(board.stage)
            rank = (protocol != board.protocol, board.protocol)
            key = tuple(row[name] for name in GROUP[:3])
            if key not in chosen or rank < chosen[key][0]:
                chosen[key] = rank, {**row, "protocol": board.protocol}
    rows = [row for _, row in chosen.values()]
    return rows, sorted({row["protocol"] for row in rows})


def _marks(rows: list[Row], slot: Slot, layout: Layout, tables: Tables) -> list[str]:
    """Only of values by one protocol: others may not be compared."""
    protocols = {row["protocol"] for row in rows}
    if len(protocols) != 1:
        return [""] * len(rows)
    runs = tables.runs
    same = (runs.dataset == slot.dataset) & (runs.stage == slot.stage) & (runs.protocol == min(protocols))
    resolution = next(
        board.resolution
        for board in tables.leaderboards
        if (board.dataset, board.stage, board.protocol) == (slot.dataset, slot.stage, min(protocols))
    )
    columns = sum((other.dataset, other.stage) == (slot.dataset, slot.stage) for other in layout.slots)
    table = pd.DataFrame(rows, columns=[*GROUP, f"{slot.metric}_mean"])
    return marks(runs[same & (runs.status == "done")], table, GROUP, slot.metric, columns, resolution)
