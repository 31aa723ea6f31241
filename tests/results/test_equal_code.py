"""Changes of the code that are listed as changing no number: they make nothing stale, and the list holds together."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from results.aggregate import main
from results.leaderboards import equal_code, stale
from results.leaderboards.equal_code import EQUAL_CODE, newest_equal
from tests.support.run_records import Records, made_now, read_csv
from whitebench import code_hash
from whitebench.code_hash import ROOT, code_files

NETWORKS, OPTIM = "pretrain/networks.py", "pretrain/optim.py"
HEADER = "file,before,after,difference,evidence\n"


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two changes of networks.py, one after the other, changed no number."""
    now = code_files("pretrain", "intl")[NETWORKS]
    lines = f"{NETWORKS},{'0' * 12},{'1' * 12},a,b\n{NETWORKS},{'1' * 12},{now},a,b\n"
    (tmp_path / "equal_code.csv").write_text(HEADER + lines)
    monkeypatch.setattr(equal_code, "EQUAL_CODE", tmp_path / "equal_code.csv")
    stale._differences.cache_clear()
    yield
    stale._differences.cache_clear()


@pytest.mark.usefixtures("listed")
def test_listed_changes_make_nothing_stale_and_others_still_do(records: Records, tmp_path: Path) -> None:
    code = code_files("pretrain", "intl")
    made_now(records, "first", code={**code, NETWORKS: "0" * 12})
    made_now(records, "second", code={**code, NETWORKS: "1" * 12})
    made_now(records, "unlisted", code={**code, NETWORKS: "2" * 12})
    made_now(records, "other-file", code={**code, NETWORKS: "0" * 12, OPTIM: "0" * 12})
    main([str(records.root), "--out", str(tmp_path / "out"), "--quiet"])
    stale = {row["recipe"]: row["stale"] for row in read_csv(tmp_path / "out/leaderboard_sample_linear-features.csv")}
    assert stale == {"first": "", "second": "", "unlisted": NETWORKS, "other-file": OPTIM}


def test_seeds_of_equal_versions_are_of_one_version(records: Records, tmp_path: Path, listed: None) -> None:
    code = code_files("pretrain", "intl")
    for seed, (recipe, version) in enumerate((("equal", "0"), ("equal", "1"), ("unequal", "0"), ("unequal", "3"))):
        records.cell("intl", seed, 60.0, recipe=recipe, code={**code, NETWORKS: version * 12})
    main([str(records.root), "--out", str(tmp_path / "out"), "--quiet"])
    flags = {row["recipe"]: row["flags"] for row in read_csv(tmp_path / "out/leaderboard_sample_linear-features.csv")}
    assert "several versions" not in flags["equal"]
    assert "several versions of the code" in flags["unequal"]


def test_a_circle_in_the_list_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "circle.csv").write_text(HEADER + "a.py,1,2,a,b\na.py,2,1,a,b\n")
    monkeypatch.setattr(equal_code, "EQUAL_CODE", tmp_path / "circle.csv")
    assert newest_equal("a.py", "1") in ("1", "2")
    assert newest_equal("a.py", "3") == "3"


def test_every_listed_change_leads_to_the_code_of_this_checkout_and_says_what_was_repeated() -> None:
    with open(EQUAL_CODE, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({(row["file"], row["before"]) for row in rows}) == len(rows)
    for row in rows:
        assert newest_equal(row["file"], row["before"]) == code_hash._tree_hash(ROOT / row["file"]), row["file"]
        assert len(row["difference"]) > 20
        assert "equal" in row["evidence"]
