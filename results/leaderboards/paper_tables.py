"""The tables in the papers' own layouts: what was published, then what was run here, so that the field is seen whole.

A row is a method in a setting, a column a dataset, evaluation and metric. Published values keep their digits and their
sources; measured values have sd and n, and marks where differences are significant. Flagged rows stay and are named.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from results.leaderboards import recipe_papers as recipes
from results.leaderboards.comparisons import marks
from results.leaderboards.experiments import EVAL_COST, FAILED_COST, GROUP, Row
from results.leaderboards.leaderboard import Tables
from results.leaderboards.published import NOT_RUN, Published
from results.leaderboards.table_cells import Cell, Column, Grid

RECONSTRUCTED = "†"
NO_EPOCHS = "not stated"


@dataclass(frozen=True)
class Slot:
    """A column of values."""

    group: str
    name: str
    dataset: str
    stage: str
    metric: str
    epochs: str | None = None
    """Of pretraining, where that tells columns apart."""
    protocol: str | None = None
    """How our protocol's name ends, likewise."""

    @property
    def column(self) -> Column:
        return Column(self.name, self.group)


@dataclass(frozen=True)
class Layout:
    name: str
    title: str
    slots: tuple[Slot, ...]
    by_epochs: bool = False
    """Whether epochs are columns, and not a part of a row's setting."""

    @property
    def setting(self) -> tuple[str, ...]:
        """Columns that tell rows apart, in addition to the method."""
        return ("architecture", "batch", "views", *(() if self.by_epochs else ("epochs",)))


Setting = tuple[str, ...]
SMALL = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10", "tiny-imagenet": "Tiny-ImageNet"}
EPOCHS = ("100", "200", "400", "800", "1000", "")
KINDS = {"linear": "linear", "knn": "k-NN"}
BOX = (("AP50", "box_AP50"), ("AP", "box_AP"), ("AP75", "box_AP75"))
MASK = tuple((name, metric.replace("box", "mask")) for name, metric in BOX)


def _detection(dataset: str, parts: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> tuple[Slot, ...]:
    return tuple(Slot(group, name, dataset, "detect", metric) for group, names in parts for name, metric in names)


LAYOUTS = (
    Layout(
        "imagenet",
        "ImageNet-1k: linear probe and k-NN by epochs of pretraining, top-1 in per cent",
        tuple(
            Slot(f"{kind}, epochs", epochs or NO_EPOCHS, "imagenet1k", stage, "top1", epochs)
            for stage, kind in KINDS.items()
            for epochs in EPOCHS
        ),
        by_epochs=True,
    ),
    Layout(
        "small",
        "Small and medium sets: linear probe and 5-NN on frozen features, top-1 in per cent",
        tuple(
            Slot(title, name, dataset, stage, "top1")
            for dataset, title in SMALL.items()
            for stage, name in (("linear", "linear"), ("knn", "5-NN"))
        ),
    ),
    Layout(
        "imagenet100",
        "ImageNet-100: linear probe and 5-NN on frozen features, per cent",
        (
            Slot("", "linear top-1", "imagenet100", "linear", "top1"),
            Slot("", "linear top-5", "imagenet100", "linear", "top5"),
            Slot("", "5-NN top-1", "imagenet100", "knn", "top1"),
        ),
    ),
    *(
        Layout(
            f"semi_{dataset}",
            f"{title}: fine-tuned on a part of the labels, per cent",
            tuple(
                Slot(f"{share} % of labels", metric.replace("top", "top-"), dataset, "semi", metric, None, f"-{share}")
                for share in (1, 10)
                for metric in ("top1", "top5")
            ),
        )
        for dataset, title in (("imagenet1k", "ImageNet-1k"), ("sample", "Built-in sample"))
    ),
    Layout("coco", "COCO: Mask R-CNN, per cent", _detection("coco", (("box", BOX), ("mask", MASK)))),
    Layout("voc", "VOC 07+12: Faster R-CNN, per cent", _detection("voc", (("", BOX),))),
    Layout(
        "sample",
        "Built-in sample: linear probe, k-NN and detection, per cent",
        (
            Slot("digits", "linear", "sample", "linear", "top1"),
            Slot("digits", "k-NN", "sample", "knn", "top1"),
            *_detection("sample-det", (("box", BOX), ("mask", MASK))),
        ),
    ),
)


def layouts(tables: Tables, published: Published) -> list[Grid]:
    """Of LAYOUTS, those that have any row, and the table of costs."""
    grids = [_grid(layout, tables, published) for layout in LAYOUTS]
    return [grid for grid in [*grids, _costs(tables)] if grid.rows]


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
    run = {(row["recipe"], board.stage) for board in tables.leaderboards for row in board.rows}
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
            for recipe in _recipes_for(slot, values[slot.metric][0])
            if (recipe.rstrip(RECONSTRUCTED), slot.stage) not in run
        }
    return [
        (setting, cells, f"{source} {NOT_RUN}: {', '.join(sorted(missing))}" if missing else source)
        for (setting, source), (cells, missing) in lines.items()
    ], [f"[{number}] {source}" for source, number in sources.items()]


def _of_epochs(slot: Slot, row: dict[str, str]) -> bool:
    return slot.epochs is None or slot.epochs == row["epochs"]


def _recipes_for(slot: Slot, value: str) -> list[str]:
    """The suite's recipes that aim at this published value."""
    return [
        f"{name}{RECONSTRUCTED if recipes.is_reconstruction(name) else ''}"
        for name in recipes.names()
        if (recipes.content(name).get("data") or {}).get("dataset") == slot.dataset
        and (recipes.paper(name).get("reported") or {}).get(f"{slot.stage}_{slot.metric}") == float(value)
        and slot.epochs in (None, str((recipes.content(name).get("schedule") or {}).get("epochs", "")))
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
    return marks(runs[same & (runs.status == "done")], pd.DataFrame(rows), GROUP, slot.metric, columns, resolution)


def value_cell(row: Row, metric: str, mark: str = "") -> Cell:
    """Mean, sd over pretrainings, n. One pretraining has no spread, or one of fine-tuning only, which is not shown."""
    spread = "" if row["n_pretrain"] < 2 or pd.isna(row[f"{metric}_sd"]) else f"{row[f'{metric}_sd']:.2f}"
    return Cell(f"{row[f'{metric}_mean']:.2f}", spread, int(row["n_pretrain"]), mark)


def _costs(tables: Tables) -> Grid:
    """What a result costs, pretraining and its evaluations; an experiment a row, the cheapest first."""
    experiments: dict[tuple[str, ...], list[tuple[str, Row]]] = {}
    for board in tables.leaderboards:
        for row in board.rows:
            experiments.setdefault(tuple(row[name] for name in GROUP[:3]), []).append((board.stage, row))
    names = ("wall h", "GPU h", "CPU h", "energy kWh")
    columns = [Column("method", numeric=False), Column("epochs"), *(Column(name, "pretraining") for name in names)]
    columns += [Column(f"{name} h", "evaluations") for name in ("wall", "GPU", "CPU")]
    columns += [Column(f"{name} h", "failed runs") for name in ("GPU", "CPU")]
    columns += [Column("top-1 linear"), Column("box AP")]
    rows = sorted(
        (_cost_row(entries) for entries in experiments.values()), key=lambda row: (float(row[2].text or 0), row[0].text)
    )
    notes = [
        "Means of one pretraining and of one of each of its evaluations, and sums over the failed runs of both.",
        "CPU time as the operating system counts it, loader workers included; energy is empty where no meter was read.",
    ]
    return Grid("cost", "Cost to reach a result", columns, rows, notes)


def _cost_row(rows: list[tuple[str, Row]]) -> list[Cell]:
    """Of one experiment, by its rows (stage, row) on all leaderboards."""
    row = rows[0][1]
    hours = _number(row["pretrain_wall_s"], 3600), _number(row["pretrain_gpu_h"]), _number(row["pretrain_cpu_h"])
    failed = zip(FAILED_COST[:2], FAILED_COST[2:], strict=True)
    evaluations = [(name, 3600 if name == "eval_wall_s" else 1) for name in EVAL_COST[:3]]
    return [
        Cell(" ".join(filter(None, (row["method"], f"({row['recipe']})", row["variant"])))),
        Cell("" if pd.isna(row["epochs"]) else str(row["epochs"])),
        *map(Cell, hours),
        Cell(_number(row["pretrain_energy_kwh"])),
        *(Cell(_sum([other[name] for _, other in rows], divisor)) for name, divisor in evaluations),
        *(Cell(_sum([row[pretrain], *(other[eval_] for _, other in rows)])) for pretrain, eval_ in failed),
        *(_first(rows, stage, metric) for stage, metric in (("linear", "top1"), ("detect", "box_AP"))),
    ]


def _sum(values: Sequence[float], divisor: float = 1.0) -> str:
    """Of those that are known; empty where none is."""
    numbers = [value for value in values if not pd.isna(value)]
    return _number(sum(numbers), divisor) if numbers else ""


def _first(entries: list[tuple[str, Row]], stage: str, metric: str) -> Cell:
    rows = (row for kind, row in entries if kind == stage and not pd.isna(row[f"{metric}_mean"]))
    return next((value_cell(row, metric) for row in rows), Cell())


def _number(value: float, divisor: float = 1.0) -> str:
    return "" if pd.isna(value) else f"{value / divisor:.3f}"
