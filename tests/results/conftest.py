"""Records of runs below a temporary folder, and the tables that they give."""

from collections.abc import Callable
from pathlib import Path

import pytest

from results.aggregate import aggregate
from tests.support.run_records import Records, Rows, read_csv


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "runs")


@pytest.fixture
def table(records: Records, tmp_path: Path) -> Callable[..., Rows]:
    """Aggregates what the records hold, and reads one of the files."""

    def read(name: str = "leaderboard_sample_linear-features.csv") -> Rows:
        aggregate([records.root], tmp_path / "out")
        return read_csv(tmp_path / "out" / name)

    return read
