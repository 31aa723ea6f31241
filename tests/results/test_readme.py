"""`results/README.md` explains every file and every column that the commands write."""

import csv
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from results.aggregate import aggregate
from results.leaderboards import across, claim_tests, comparisons, experiments, over_epochs
from results.leaderboards.run_table import COLUMNS, HEADLINES, METRICS
from results.leaderboards.write import TABLE_PATTERNS
from tests.support.run_records import Records

RESULTS = Path(__file__).parents[2] / "results"
TEXT = (RESULTS / "README.md").read_text()
PATTERNS = {"<metric>": {metric for metrics in METRICS.values() for metric in metrics}}
PATTERNS["<threshold>"] = {str(threshold) for threshold in across.THRESHOLDS}


def documented(heading: str) -> set[str]:
    """The columns in the table below a heading, with `<metric>` and `<threshold>` filled in."""
    section = re.split(rf"^### .*{re.escape(heading)}.*$", TEXT, flags=re.MULTILINE)[1].partition("\n###")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    names = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    for pattern, values in PATTERNS.items():
        filled = {name.replace(pattern, value) for name in names if pattern in name for value in values}
        names = {name for name in names if pattern not in name} | filled
    return names


def published_columns() -> list[str]:
    with open(RESULTS / "inputs" / "published.csv", newline="") as file:
        return next(csv.reader(file))


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("`runs.csv`", COLUMNS),
        ("`comparisons.csv`", comparisons.COLUMNS),
        ("`across.csv`", across.COLUMNS),
        ("`over_epochs.csv`: one row", over_epochs.COLUMNS),
        ("`claims.csv`", claim_tests.COLUMNS),
        ("`inputs/published.csv`", published_columns()),
        ("`leaderboard_", {column for stage in HEADLINES for column in experiments.columns(stage)}),
    ],
)
def test_every_column_is_explained_and_no_other(heading: str, columns: Iterable[str]) -> None:
    expected, explained = set(columns), documented(heading)
    assert expected - explained == set()
    if heading != "`leaderboard_":  # there, not every metric has every column
        assert explained - expected == set()


def test_every_file_is_named() -> None:
    stems = {pattern.partition("*")[0].split("/")[0] for pattern in TABLE_PATTERNS}
    assert not [stem for stem in stems if f"`{stem}" not in TEXT]
    for path in (RESULTS / "inputs").iterdir():
        assert f"inputs/{path.name}" in TEXT


def test_the_example_reads_the_tables(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs")
    for method, top in (("intl", 70.0), ("simclr", 60.0)):
        for seed in range(3):
            parent = records.cell(method, seed, top + seed)
            for stage, metric in (("voc07", "mAP"), ("robust", "top1")):
                own = {"parent": parent, "protocol": {"name": stage}, "dataset": "x", "seed": 0}
                records.put(stage, "x", own, metrics={metric: 30.0 + seed})
    aggregate([records.root], tmp_path / "out")
    script = [sys.executable, str(RESULTS.parent / "examples" / "read_results.py")]
    shown = subprocess.run([*script, str(tmp_path / "out")], capture_output=True, text=True, check=True).stdout
    assert "18 evaluations of 6 pretrainings" in shown
    assert "sample_linear-features" in shown
    assert re.search(r"sample/intl +71\.0 .* 3 +best", shown)
    empty = subprocess.run([*script, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert "no runs.csv yet" in empty


def test_what_lands_is_checked_against_its_records() -> None:
    commands = (RESULTS.parent / ".ci" / "run").read_text().splitlines()
    assert [line.split()[-2:] for line in commands if line.endswith("--check")] == [
        ["results/aggregate.py", "--check"],
        ["results/claims.py", "--check"],
    ]
