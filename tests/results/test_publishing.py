"""Published records, the tables that they give, and the command that checks them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from results.aggregate import aggregate, main
from tests.support.run_records import Records, made_now, read_csv
from whitebench.code_hash import code_files

ROOT = Path(__file__).parents[2]


def test_a_check_fails_on_a_stale_row_and_names_the_changed_file(
    records: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, changed = tmp_path / "out", {**code_files("pretrain", "intl"), "pretrain/networks.py": "0" * 12}
    made_now(records, "as-now")
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])
    assert main(["--out", str(out), "--check"]) == 0
    made_now(records, "older", code=changed)
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])
    assert main(["--out", str(out), "--check"]) == 1
    assert "older: pretrain/networks.py changed since" in capsys.readouterr().err


def test_a_published_record_names_no_folder_of_its_machine(tmp_path: Path) -> None:
    records, out = Records(tmp_path / "runs"), tmp_path / "out"
    command = f"python -m submitit {tmp_path}/sweeps/cell --out={tmp_path}/\u00fcber a/b"
    records.cell("intl", 0, 60.0, command=command)
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])
    published = [path.read_text() for path in (out / "records").glob("*/*.json")]
    assert published
    assert not [text for text in published if str(tmp_path) in text]
    assert "python -m submitit cell --out=\u00fcber a/b" in {json.loads(text).get("command") for text in published}
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])  # again: the same record, no contradiction
    [row] = read_csv(out / "runs.csv")
    assert row["contradicts"] in ("", "False", "false")


def test_a_users_tables_hold_published_records_only_where_asked(tmp_path: Path) -> None:
    published, private, out = Records(tmp_path / "theirs"), Records(tmp_path / "mine"), tmp_path / "out"
    published.cell("intl", 0, 60.0, code={})
    private.cell("simclr", 0, 50.0)
    main([str(published.root), "--out", str(out), "--publish", "--quiet"])
    main([str(private.root), "--out", str(out), "--quiet"])
    assert [row["method"] for row in read_csv(out / "runs.csv")] == ["simclr"]
    main([str(private.root), "--out", str(out), "--quiet", "--with-published"])
    assert [row["method"] for row in read_csv(out / "runs.csv")] == ["intl", "simclr"]
    main(["--out", str(out), "--rebuild"])
    assert [row["method"] for row in read_csv(out / "runs.csv")] == ["intl"]
    assert main(["--out", str(out), "--check"]) == 1  # of code that no record names


def test_records_of_the_claims_are_no_part_of_the_leaderboards(records: Records, tmp_path: Path) -> None:
    records.cell("intl", 0, 60.0)
    out = tmp_path / "out"
    main([str(records.root), "--out", str(out), "--publish", "--quiet"])
    claims = Records(out / "records" / "claims")
    claims.cell("spectral", 0, 50.0)
    main(["--out", str(out), "--rebuild"])
    assert [row["method"] for row in read_csv(out / "runs.csv")] == ["intl"]


def test_published_records_give_the_committed_tables_and_a_change_is_found(
    records: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe in "abc":
        made_now(records, recipe)
    records.pretrain("intl", 9, status="failed")
    records.pretrain("intl", 8, status="running")
    out = tmp_path / "out"
    assert main([str(records.root), "--out", str(out), "--publish", "--quiet"]) == 0
    assert len(list((out / "records").rglob("*.json"))) == 3 + 3 + 1
    shutil.rmtree(records.root)
    assert main(["--out", str(out), "--check"]) == 0
    board = out / "leaderboard_sample_linear-features.csv"
    whole = board.read_text()
    board.write_text(whole.replace("70.0", "71.0", 1))
    capsys.readouterr()
    assert main(["--out", str(out), "--check"]) == 1
    assert "leaderboard_sample_linear-features.csv: line " in capsys.readouterr().err
    board.write_text(whole)
    (out / "leaderboard_typed_by-hand.csv").write_text("x")
    assert main(["--out", str(out), "--check"]) == 1
    assert "no published record gives it" in capsys.readouterr().err
    (out / "leaderboard_typed_by-hand.csv").unlink()
    next((out / "records" / "linear").glob("*.json")).unlink()
    assert main(["--out", str(out), "--check"]) == 1


def test_own_runs_go_before_published_ones_and_done_ones_before_others(tmp_path: Path) -> None:
    published, private = Records(tmp_path / "theirs"), Records(tmp_path / "mine")
    for records, top1 in ((published, 60.0), (private, 70.0)):
        records.cell("intl", 0, top1)
    published.evaluate(published.pretrain("intl", 1), {"top1": 60.0})
    private.evaluate(private.pretrain("intl", 1), {}, status="failed")
    main([str(published.root), "--out", str(tmp_path / "out"), "--publish", "--quiet"])
    aggregate([private.root], tmp_path / "out", with_published=True)
    assert [(r["seed"], r["top1"]) for r in read_csv(tmp_path / "out" / "runs.csv")] == [("0", "70.0"), ("1", "60.0")]


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = str(ROOT / "results" / "aggregate.py")
        return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, cwd=tmp_path)

    absent = command("no/such/folder", "--out", "out")
    assert (absent.returncode, absent.stderr) == (2, "error: no/such/folder: no such folder of runs\n")
    empty = command("--out", "out")
    assert empty.returncode == 2
    assert "no evaluation has ended" in empty.stderr
    assert list(tmp_path.iterdir()) == []
    assert "usage: python results/aggregate.py" in command("--help").stdout
