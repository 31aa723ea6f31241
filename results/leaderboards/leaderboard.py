"""The tables: `runs.csv`, one row per evaluation of one seed, and from it a leaderboard per dataset and protocol."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from results.leaderboards import comparisons
from results.leaderboards.across import across
from results.leaderboards.collect import Collection, RunSummary
from results.leaderboards.comparisons import pairwise
from results.leaderboards.experiments import GROUP, Row, ranked, resolution_of, rows_of
from results.leaderboards.over_epochs import over_epochs
from results.leaderboards.published import Published
from results.leaderboards.run_table import COLUMNS, FROM_CELL, HEADLINES, PRETRAIN, Facts
from results.leaderboards.stale import changed_since
from results.leaderboards.transfer import transfer_boards
from results.leaderboards.warnings import FOREIGN, MISSING
from whitebench.errors import printable
from whitebench.hashing import content_hash

BOARD = ["dataset", "stage", "protocol"]
ORDER = [*BOARD, "method", "recipe", "config", "eval_config", "seed", "eval_seed", "id"]
ENDED = ("done", "failed")
MISSING_CELLS = {"string": "", "boolean": False}
"""The value in `runs.csv` where a record says nothing, so that columns read back as text and as truth values."""

LONGEST_NAME = 150
"""Letters of a leaderboard's name; of a longer one the rest is a hash."""


@dataclass
class Leaderboard:
    """The experiments of one dataset, stage and protocol, best first."""

    dataset: str
    stage: str
    protocol: str
    name: str
    """Of its file: `leaderboard_<name>.csv`."""
    table: pd.DataFrame
    pairs: pd.DataFrame
    """How the best of them compare, pair by pair: rows of `comparisons.csv`."""
    resolution: float = 0.0
    """Points that one test image makes; 0 where that is not known."""

    @cached_property
    def rows(self) -> list[Row]:
        """Those of `table`, as dicts."""
        return rows_of(self.table)

    @property
    def headlines(self) -> tuple[str, ...]:
        return HEADLINES[self.stage]


@dataclass
class Tables:
    runs: pd.DataFrame
    leaderboards: list[Leaderboard]
    faults: list[str] = field(default_factory=list)
    """A line for each record that could not be used."""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Records by stage and status."""
    duplicates: int = 0
    conflicts: list[str] = field(default_factory=list)
    """A line for each run of which two records say different things."""
    sources: list[Path] = field(default_factory=list)
    """The `run.json` files behind the tables."""
    over_epochs: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Accuracy over the epochs of pretrainings: the rows of `over_epochs.csv`."""

    @cached_property
    def transfer(self) -> dict[str, pd.DataFrame]:
        """By its file's name, a table of encoders over several datasets: `transfer_<stage>-<protocol>`."""
        names = set[str]()
        boards = transfer_boards(self.runs[self.runs.status == "done"])
        return {
            _file_name("transfer", f"{stage}-{protocol}", names): table for (stage, protocol), table in boards.items()
        }

    @property
    def stale(self) -> list[str]:
        """A line for each experiment of which this checkout has other code or another protocol now."""
        rows = ((board, row) for board in self.leaderboards for row in board.rows if row["stale"])
        return [f"{board.name}: {comparisons.label(row)}: {changed_since(row['stale'])}" for board, row in rows]

    @cached_property
    def across(self) -> pd.DataFrame:
        """Methods over all leaderboards together: the rows of `across.csv`."""
        names = {(board.dataset, board.stage, board.protocol): board.name for board in self.leaderboards}
        done = self.runs[self.runs.status == "done"]
        keys = zip(done.dataset, done.stage, done.protocol, strict=True)
        return across(done.assign(board=[names.get(key, "") for key in keys]), sorted(names.values()))

    @property
    def comparisons(self) -> pd.DataFrame:
        """The pairs of all leaderboards."""
        parts = [board.pairs for board in self.leaderboards if len(board.pairs)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(comparisons.COLUMNS))


def tabulate(collection: Collection, published: Published | None = None) -> Tables:
    """All tables of a collection of records. Equal records give equal tables, whatever folders they lie in."""
    runs = _runs(collection)
    boards = _leaderboards(runs, collection, published or Published())
    sources = sorted(summary.path for summary in _behind(collection))
    faults, conflicts = (sorted(map(printable, lines)) for lines in (collection.faults, collection.conflicts))
    epochs = over_epochs(_kept(collection), runs[runs.status == "done"])
    return Tables(runs, boards, faults, collection.counts, collection.duplicates, conflicts, sources, epochs)


def _runs(collection: Collection) -> pd.DataFrame:
    return _frame(collection, (summary for summary in collection.evaluations if summary.status in ENDED))


def _kept(collection: Collection) -> pd.DataFrame:
    """Done evaluations of backbones that were kept during training, as `_runs`, with a column `kept_epoch`."""
    done = [summary for summary in collection.kept_evaluations if summary.status == "done"]
    frame = _frame(collection, done)
    epochs = {(summary.stage, summary.id): summary.facts["kept_epoch"] for summary in done}
    keys = zip(frame.stage, frame.id, strict=True)
    return frame.assign(kept_epoch=pd.array([epochs[key] for key in keys], dtype="Int64"))


def _frame(collection: Collection, evaluations: Iterable[RunSummary]) -> pd.DataFrame:
    cells: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for row in map(_row_of(collection), evaluations):
        for name, column in cells.items():
            column.append(row.get(name))
    columns = {name: pd.Series(cells[name], dtype=kind) for name, kind in COLUMNS.items()}
    missing = {name: MISSING_CELLS[kind] for name, kind in COLUMNS.items() if kind in MISSING_CELLS}
    return pd.DataFrame(columns).fillna(missing).sort_values(ORDER, kind="stable", ignore_index=True)


def _row_of(collection: Collection) -> Callable[[RunSummary], Facts]:
    """Evaluation -> its row, completed by what the record of its pretraining says."""
    contradicted = collection.contradicted

    def row(evaluation: RunSummary) -> Facts:
        facts, parent = evaluation.facts, evaluation.facts["parent"] or ""
        facts = {**facts, "contradicts": bool({(evaluation.stage, evaluation.id), (PRETRAIN, parent)} & contradicted)}
        pretraining = collection.summaries.get((PRETRAIN, parent))
        if pretraining is None:  # of these, each encoder is an experiment of its own
            foreign = parent.startswith("sha256:")
            config = parent.removeprefix("sha256:")[:8] if foreign else parent[-8:]
            return {**facts, "config": config, "pretrain_status": FOREIGN if foreign else MISSING}
        inherited = {
            key: value for key, value in pretraining.facts.items() if value is not None or key not in FROM_CELL
        }
        return {**facts, **inherited}

    return row


def _leaderboards(runs: pd.DataFrame, collection: Collection, published: Published) -> list[Leaderboard]:
    failed = [
        summary.facts
        for summary in collection.summaries.values()
        if (summary.stage, summary.status) == (PRETRAIN, "failed")
    ]
    boards, file_names = [], set[str]()
    for _, part in runs.groupby(BOARD, sort=True):
        dataset, stage, protocol = (str(part[key].iloc[0]) for key in BOARD)
        if (part.status == "done").any():
            name = _file_name(dataset, f"{stage}-{protocol}", file_names)
            table = ranked(part, collection.texts, failed, published)
            done = part[part.status == "done"]
            resolution = resolution_of(done)
            pairs = pairwise(done, table, GROUP, resolution)
            boards.append(Leaderboard(dataset, stage, protocol, name, table, pairs, resolution))
    return boards


def _file_name(dataset: str, protocol: str, file_names: set[str]) -> str:
    """`<dataset>_<protocol>`, fit for a file; with a hash where `file_names` has it already."""
    parts = dataset, protocol
    name = "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", part).strip("-.") or "unnamed" for part in parts)
    if name in file_names or len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{content_hash(parts)[:6]}"
    file_names.add(name)
    return name


def _behind(collection: Collection) -> Iterable[RunSummary]:
    """The records behind the tables: ended evaluations, their pretrainings, and pretrainings that failed."""
    ended = [run for run in [*collection.evaluations, *collection.kept_evaluations] if run.status in ENDED]
    parents = {(PRETRAIN, summary.facts["parent"]) for summary in ended}
    yield from ended
    for key, summary in collection.summaries.items():
        if key in parents or (summary.stage, summary.status) == (PRETRAIN, "failed"):
            yield summary
