"""The second time only what has changed is read."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from results.aggregate import aggregate, main
from results.leaderboards import collect
from results.leaderboards.collect import read_proven
from tests.support.run_records import Records, csv_contents, three_methods


def _old(root: Path) -> None:
    """As if all records had been written a minute ago: what is being written now is not remembered."""
    for path in root.rglob("run.json"):
        os.utime(path, (time.time() - 60, time.time() - 60))


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths of the records that are read from now on."""
    read: list[Path] = []

    def counted(path: Path) -> Any:
        read.append(path)
        return read_proven(path)

    monkeypatch.setattr(collect, "read_proven", counted)
    return read


def test_the_second_time_only_what_has_changed_is_read(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_methods(records)
    broken = records.root / "linear" / "half-s0-0123456789ab"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    _old(records.root)
    first = aggregate([records.root], tmp_path / "out")
    before, read = csv_contents(tmp_path / "out"), _reads(monkeypatch)
    second = aggregate([records.root], tmp_path / "out")
    assert read == []
    assert csv_contents(tmp_path / "out") == before
    assert (second.faults, second.sources) == (first.faults, first.sources)
    assert len(second.faults) == 1
    changed = records.evaluate(records.pretrain("intl", 0), {"top1": 99.0})
    aggregate([records.root], tmp_path / "out")
    assert {path.parent.name for path in read} == {changed, records.pretrain("intl", 0)}
    assert "99.0" in (tmp_path / "out" / "runs.csv").read_text()
    shutil.rmtree(records.root / "knn")
    assert "knn" not in {board.stage for board in aggregate([records.root], tmp_path / "out").leaderboards}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"code": "x"}', '{"code": "x", "entries": 3}'])
def test_a_damaged_cache_or_one_of_other_code_is_not_used(records: Records, tmp_path: Path, content: str) -> None:
    records.cell("intl", 0, 70.0)
    _old(records.root)
    aggregate([records.root], tmp_path / "out")
    before = csv_contents(tmp_path / "out")
    (tmp_path / "out" / ".collected.json").write_text(content)
    aggregate([records.root], tmp_path / "out")
    assert csv_contents(tmp_path / "out") == before


def test_a_check_reads_everything(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.cell("intl", 0, 70.0)
    main([str(records.root), "--out", str(tmp_path / "out"), "--publish", "--quiet"])
    read = _reads(monkeypatch)
    main(["--out", str(tmp_path / "out"), "--check"])
    assert len(read) == 2
