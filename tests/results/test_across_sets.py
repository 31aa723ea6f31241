"""Encoders over several datasets are on the page: a table of ranks and accuracies for each protocol, and a chart."""

import re
from pathlib import Path

import pytest

from results.leaderboards.collect import collect
from results.leaderboards.leaderboard import Tables, tabulate
from results.page.across_sets import datasets_boards, datasets_frame, datasets_of
from results.page.marks import Marks
from results.page.page import page
from tests.support.run_records import Records

SETS = {"flowers": 0.0, "pets": 10.0, "a_rank": -5.0}
FOREIGN = ("sha256:" + "a" * 64, "sha256:" + "b" * 64)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """intl and simclr on three datasets, simclr better on one; two foreign encoders of one name on some of them."""
    records = Records(tmp_path / "runs")
    for method, level in (("intl", 60.0), ("simclr", 55.0)):
        for seed in range(3):
            parent = records.pretrain(method, seed)
            for name, shift in SETS.items():
                better = 20.0 if (method, name) == ("simclr", "pets") else 0.0
                evaluate(records, parent, name, level + shift + better + seed)
    for number, parent in enumerate(FOREIGN):
        for name in list(SETS)[: 2 + number]:
            evaluate(records, parent, name, 30.0 + number)
    return tabulate(collect([records.root]))


def evaluate(records: Records, parent: str, dataset: str, top1: float) -> None:
    cell = {"recipe": "dino.pth", "method": "foreign", "dataset": dataset, "seed": 0}
    own = {"cell": cell} if parent.startswith("sha256:") else {}
    records.evaluate(parent, {"top1": top1, "top5": 99.0}, config={"dataset": dataset}, **own)


def test_the_table_has_ranks_on_each_dataset_and_what_is_missing(tables: Tables) -> None:
    (board,) = datasets_boards(tables.transfer, Marks(["intl", "simclr", "foreign"]))
    assert board.title == "linear, protocol features"
    assert [head.key for head in board.table.heads] == [
        *("encoder", "n", "mean_rank", "mean", "a_rank", "flowers", "pets", "missing"),
    ]
    names = [str(row.cells[0].csv) for row in board.table.rows]
    assert names[:2] == ["intl (sample/intl)", "simclr (sample/simclr)"]
    assert names[2:] == ["foreign (dino.pth) bbbbbbbb", "foreign (dino.pth) aaaaaaaa"]
    pets = [re.sub(r"<[^>]*>", "", str(row.cells[6].content)) for row in board.table.rows]
    assert [text.rpartition("(")[2] for text in pets[:3]] == ["2)", "1)", "3)"]
    assert "(" not in pets[3]  # it has not all datasets, so it has no rank
    missing = [row.cells[7].content for row in board.table.rows]
    assert missing == ["", "", "", "a_rank"]


def test_the_chart_has_the_encoders_that_have_all_datasets(tables: Tables) -> None:
    frame = datasets_frame(tables.transfer)
    assert list(frame.method) == ["intl", "simclr", "foreign"]
    assert list(frame.mean_rank) == pytest.approx([4 / 3, 5 / 3, 3])
    assert (frame.mean_rank_low <= frame.mean_rank).all()
    assert frame.mean_rank_high.iloc[2] == frame.mean_rank.iloc[2]  # one pretraining


def test_a_dataset_may_have_an_odd_name(tables: Tables) -> None:
    (table,) = tables.transfer.values()
    assert datasets_of(table) == ["a_rank", "flowers", "pets"]


def test_the_page_has_one_section_of_it(tables: Tables, tmp_path: Path) -> None:
    text = page(tables)
    assert text.count('<section id="datasets">') == 1
    assert "Encoders across datasets" in text
    records = Records(tmp_path / "one")
    records.cell("intl", 0, 70.0)
    assert '<section id="datasets">' not in page(tabulate(collect([records.root])))
