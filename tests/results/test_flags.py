"""Rows that one should doubt say so: stale code, other code, contradicting records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results.aggregate import main, render, tables_of
from results.leaderboards import recipe_papers as recipes
from tests.support.run_records import Records, Rows, made_now, read_csv
from whitebench.code_hash import code_files
from whitebench.hashing import canonical
from whitebench.inheritance import Library


def test_doubtful_rows_are_flagged(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Callable[..., Rows]
) -> None:
    (tmp_path / "recipes" / "sample").mkdir(parents=True)
    (tmp_path / "recipes" / "sample" / "pauc.yaml").write_text("paper: {reconstruction: true}")
    monkeypatch.setattr(recipes, "RECIPES", Library("recipe", tmp_path / "recipes"))
    for read in (recipes.names, recipes.content):
        read.cache_clear()
    records.cell("random", 0, 30.0)
    records.cell("pauc", 0, 60.0)
    records.cell("simclr", 0, 29.0)
    records.cell("intl", 0, 70.0, environment={"git": "3" * 40, "dirty": True})
    other = {**code_files("pretrain", "intl"), "pretrain/optim.py": "0" * 12}
    records.cell("intl", 1, 70.0, environment={"git": "4" * 40}, metrics={"collapsed": True}, code=other)
    records.evaluate(records.pretrain("cwrgp", 0, status="interrupted"), {"top1": 65.0, "deviations": ["batch: 2"]})  # type: ignore[dict-item]
    flags = {row["method"]: row["flags"] for row in table()}
    assert flags == {
        "intl": "1 of 2 collapsed; only 2 pretrainings; uncommitted code; several versions of the code",
        "cwrgp": "one pretraining; deviates from the protocol; pretraining not done",
        "pauc": "reconstruction; one pretraining",
        "random": "untrained; one pretraining",
        "simclr": "not above random; one pretraining",
    }
    for read in (recipes.names, recipes.content):
        read.cache_clear()


def test_what_has_changed_since_a_run_makes_its_rows_stale(records: Records, tmp_path: Path) -> None:
    from pretrain.evaluate.protocols import find_protocol

    same = canonical(find_protocol("linear", "features"))
    pretrained, evaluated = code_files("pretrain", "intl"), code_files("linear")
    shared = "pretrain/losses/whitening.py"
    assert shared in pretrained
    expected = {
        "as-now": "",
        "words": "",
        "shared-loss": shared,
        "evaluation": "pretrain/evaluate/linear.py",
        "file-gone": "pretrain/losses/gone.py",
        "protocol": "protocol",
        "unrecorded": "code unknown",
        "many": f"{'; '.join(sorted(pretrained)[:3])}; and",
    }
    made_now(records, "as-now")
    made_now(records, "words", {"protocol": {**same, "source": "elsewhere"}})
    made_now(records, "shared-loss", code={**pretrained, shared: "0" * 12})
    made_now(records, "evaluation", {"code": {**evaluated, "pretrain/evaluate/linear.py": "0" * 12}})
    made_now(records, "file-gone", code={**pretrained, "pretrain/losses/gone.py": "0" * 12})
    made_now(records, "protocol", {"protocol": {**same, "epochs": 7}})
    made_now(records, "unrecorded", code={})
    made_now(records, "many", code=dict.fromkeys(pretrained, "0" * 12))
    out = tmp_path / "out"
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])
    stale = {row["recipe"]: row["stale"] for row in read_csv(out / "leaderboard_sample_linear-features.csv")}
    assert {**stale, "many": stale["many"].partition(" and")[0] + " and"} == expected
    assert f"{shared} changed since" in render(tables_of([records.root]))


@pytest.mark.parametrize(
    ("start", "flagged"),
    [
        ({"git": "3" * 40, "dirty": False, "hashes": {"method": "1" * 64}}, False),
        ({"git": "4" * 40, "dirty": False, "hashes": {"method": "1" * 64}}, True),
        ({"git": "3" * 40, "dirty": True, "hashes": {"method": "1" * 64}}, True),
        ({"git": "3" * 40, "dirty": False, "hashes": {"method": "2" * 64}}, True),
    ],
)
def test_a_run_that_was_resumed_under_other_code_is_flagged(
    records: Records, table: Callable[..., Rows], start: dict[str, Any], flagged: bool
) -> None:
    records.cell("intl", 0, 70.0, hashes={"method": "1" * 64}, earlier=[start])
    [row] = table()
    assert ("resumed under other code" in row["flags"]) is flagged


def test_two_records_of_one_run_that_differ_are_named(tmp_path: Path) -> None:
    for name, top1 in (("a", 70.0), ("b", 70.0), ("c", 71.0)):
        records = Records(tmp_path / name)
        parent = records.pretrain("intl", artifacts={"backbone": {"sha256": name}})
        records.evaluate(parent, {"top1": top1}, cost={"wall_s": 1.0})
    tables = tables_of([tmp_path / name for name in "abc"])
    value, *weights = sorted(tables.conflicts)
    assert value.startswith("linear/intl-s0")
    assert f"{tmp_path}/a/linear" in value.rpartition(";")[2]
    assert [line.startswith("pretrain/intl-s0") for line in weights] == [True, True]
    assert (tables.duplicates, len(tables.runs)) == (4, 1)
    assert tables.runs.contradicts.tolist() == [True]
    assert "another record contradicts it" in tables.leaderboards[0].table["flags"].iloc[0]
    assert "3 records of one run differ from each other" in render(tables)
