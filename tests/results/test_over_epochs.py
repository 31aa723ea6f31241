"""Accuracy over epochs: kept backbones are in a table and a chart of their own, and in no leaderboard."""

import json
from pathlib import Path

import pytest

from results.leaderboards.collect import collect
from results.leaderboards.leaderboard import tabulate
from results.page.page import page
from tests.support.run_records import Records


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Two pretrainings of 20 epochs, evaluated after epochs 5, 10 and 20; another one at its end only."""
    records = Records(tmp_path / "runs")
    for method, kept in (("intl", (5, 10)), ("simclr", ())):
        for seed in range(2):
            records.cell(method, seed, 70.0 + seed)
            parent = next(path.name for path in (records.root / "pretrain").glob(f"{method}-s{seed}-*"))
            (last,) = (path for path in (records.root / "linear").glob(f"{method}-s{seed}-*"))
            config = json.loads((last / "run.json").read_text())["config"]
            for epoch in kept:
                top = {"top1": 5.0 * epoch + seed, "top5": 99.0}
                cell = {"recipe": f"sample/{method}", "method": method, "seed": seed, "kept_epoch": epoch}
                records.put(
                    "linear", f"{method}-s{seed}", {**config, "epoch": epoch}, cell=cell, parents=[parent], metrics=top
                )
    return records


def test_kept_backbones_are_in_no_leaderboard(records: Records) -> None:
    tables = tabulate(collect([records.root]))
    assert len(tables.runs) == 4
    (board,) = tables.leaderboards
    assert list(board.table.n_pretrain) == [2, 2]
    assert board.table.top1_mean.min() > 70


def test_every_kept_epoch_has_a_mean_over_pretrainings(records: Records) -> None:
    table = tabulate(collect([records.root])).over_epochs
    assert set(table.method) == {"intl"}
    assert list(table.epoch) == [5, 10, 20]
    assert list(table["mean"]) == pytest.approx([25.5, 50.5, 70.5])
    assert list(table.n_pretrain) == [2, 2, 2]
    assert (table.low < table["mean"]).all()
    assert (table["mean"] < table.high).all()


def test_the_page_has_one_chart_of_it(records: Records) -> None:
    html = page(tabulate(collect([records.root])))
    assert html.count('<section id="epochs">') == 1
    assert "No epoch is chosen by its result" in html


def test_without_kept_backbones_there_is_no_table(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs")
    records.cell("intl", 0, 70.0)
    tables = tabulate(collect([records.root]))
    assert tables.over_epochs.empty
    assert '<section id="epochs">' not in page(tables)
