"""The runs that have not ended well: what they are doing, since when nothing was heard, or why they stopped."""

from collections.abc import Sequence
from datetime import UTC, datetime

from results.page.curves import run_words
from results.page.data_tables import Cell, Head, Table, TableRow, chips, number_cell, without_empty_columns
from results.page.environment import macro
from results.page.run_details import Detail
from results.page.run_files import number

KINDS = {"running": "good", "failed": "warn", "interrupted": "warn"}


def progress_table(details: Sequence[Detail]) -> Table:
    """A row for each run whose status is not "done"."""
    heads = [Head("run", "run"), Head("stage", "stage"), Head("state", "state"), Head("epoch", "epoch", numeric=True)]
    heads += [Head("loss", "loss", numeric=True), Head("rate", "images per second", numeric=True)]
    heads += [Head("left", "time left, min", numeric=True), Head("heard", "last line written"), Head("error", "error")]
    rows = [TableRow(run_words(detail), _cells(detail)) for detail in details if detail.record.status != "done"]
    return without_empty_columns(Table("progress-table", heads, rows))


def _cells(detail: Detail) -> list[Cell]:
    record = detail.record
    last = detail.curve[-1] if detail.curve else {}
    epoch, epochs, remaining = number(last.get("epoch")), number(last.get("epochs")), number(last.get("eta_s"))
    of = f" of {epochs:g}" if epochs is not None else ""
    return [
        Cell(macro("cells.html", "run_link")(record.id, detail.title), csv=record.id),
        Cell(record.stage),
        Cell(chips([record.status], KINDS.get(record.status, "")), csv=record.status),
        Cell("" if epoch is None else f"{epoch:g}{of}", epoch),
        number_cell(number(last.get("loss")), "{:.4g}"),
        number_cell(number(last.get("images_per_s")), "{:.0f}"),
        number_cell(None if remaining is None else remaining / 60, "{:.1f}"),
        Cell(_time(detail.modified)),
        Cell(str(record.error or "")[:300]),
    ]


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
