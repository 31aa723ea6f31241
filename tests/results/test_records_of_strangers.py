"""Records that somebody else made: what they name stays a name, no file is opened or written for it, and none hangs."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results.aggregate import aggregate, main, render
from results.export import export
from results.export import main as export_main
from results.leaderboards.run_table import no_number, text
from results.page.pictures import RUN_PICTURES, PictureBudget
from results.page.run_details import Detail
from results.page.views import sheets
from results.report import main as report_main
from tests.support.run_records import Records, read_csv
from whitebench.errors import UserError
from whitebench.hashing import file_hash
from whitebench.records import Record


def rename(path: Path, name: Callable[[str], str]) -> None:
    """Gives a record another id with the hash of its config."""
    record = json.loads(path.read_text())
    record["id"] = name(record["id"][-13:])
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["../../../escaped", "/escaped", "..", ".hidden", "a\nb", "a\x1b[31m"])
def test_an_id_that_is_no_files_name_is_left_out(records: Records, tmp_path: Path, name: str) -> None:
    parent = records.cell("intl", 0, 70.0)
    odd = records.evaluate(parent, {"top1": 60.0}, seed=1)
    rename(records.root / "linear" / odd / "run.json", lambda digest: f"{name}{digest}")
    out = tmp_path / "a" / "b" / "out"
    assert main([str(records.root), "--out", str(out), "--publish", "--quiet"]) == 0
    [fault] = aggregate([records.root], out).faults
    assert "its id is not a file's name" in fault
    assert not list(tmp_path.rglob("*escaped*"))
    assert len(list((out / "records").rglob("*.json"))) == 2


def test_names_of_protocols_are_looked_up_and_never_opened(records: Records, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    parent = records.pretrain("intl")
    for name in (str(tmp_path / "pipe.yaml"), "/dev/zero.yaml", "nowhere.yaml", "../protocols/c4-1x"):
        records.evaluate(parent, {"box_AP": 10.0}, "detect", config={"protocol": {"name": name}})
    rows = read_csv_of(records, tmp_path)
    assert len(rows) == 4


def test_any_number_of_views_is_compared_at_once(records: Records, tmp_path: Path) -> None:
    data = {"dataset": "cifar10", "views": [{"size": 32, "count": 10**15}]}
    parent = records.pretrain("simclr", config={"data": data})
    records.evaluate(parent, {"top1": 90.0}, config={"dataset": "cifar10"})
    [row] = read_csv_of(records, tmp_path)
    assert row["views"] == f"{10**15}x32"


def read_csv_of(records: Records, tmp_path: Path) -> list[dict[str, str]]:
    aggregate([records.root], tmp_path / "out")
    return read_csv(tmp_path / "out" / "runs.csv")


def test_names_hold_no_control_characters(records: Records, tmp_path: Path) -> None:
    parent = records.pretrain("intl", recipe="a\x1b[2Jb\x07\x9b31m\u202ec\x00")
    records.evaluate(parent, {"top1": 50.0})
    tables = aggregate([records.root], tmp_path / "out")
    assert set(tables.runs.recipe) == {"a [2Jb 31m c"}
    assert "\x1b" not in render(tables)
    assert text("\x00\n") is None


def test_hashes_of_settings_are_no_numbers() -> None:
    assert no_number("1234567890ab" + "0" * 52, 8) == "4567890a"
    assert no_number("12345e67" * 8, 8) == "e6712345"
    assert no_number("abcdef0123" + "0" * 54, 8) == "abcdef01"
    assert no_number("0" * 64, 8) == "0" * 8


def test_a_folder_whose_name_is_not_unicode_is_named(
    records: Records, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    records.cell("intl", 0, 70.0)
    (records.root / "linear" / os.fsdecode(b"\xff\x1b")).mkdir()
    assert main([str(records.root), "--out", str(tmp_path / "out")]) == 0
    assert rb"linear/\udcff\x1b: no run.json" in capsysbinary.readouterr().out


def test_checks_read_the_published_records_alone(records: Records) -> None:
    for option in ("--check", "--rebuild"):
        with pytest.raises(UserError, match=r"take no folder of runs"):
            main([str(records.root), option])


def test_a_published_record_that_is_no_file_is_named(records: Records, tmp_path: Path) -> None:
    records.cell("intl", 0, 70.0)
    os.mkfifo(records.root / "linear" / "pipe.json")
    (records.root / "linear" / "dangling.json").symlink_to("nowhere")
    faults = aggregate([records.root], tmp_path / "out").faults
    assert ["not readable" in faults[0], "not a regular file" in faults[1]] == [True, True]


@pytest.mark.parametrize("count", [0, -5])
def test_a_test_set_without_images_is_impossible(records: Records, tmp_path: Path, count: int) -> None:
    parent = records.cell("intl", 0, 70.0)
    data = {"manifest": {"splits": {"val": {"count": count}}}}
    records.evaluate(parent, {"top1": 60.0}, seed=1, data=data)
    [fault] = aggregate([records.root], tmp_path / "out").faults
    assert f"its test set has {count} images" in fault


def test_a_corruption_error_may_be_above_100(records: Records, tmp_path: Path) -> None:
    for seed, error in enumerate((120.0, 130.0, 125.0)):
        own = {"parent": records.pretrain("intl", seed), "protocol": {"name": "c"}, "dataset": "c", "seed": 0}
        data = {"manifest": {"splits": {"val": {"count": 360}}}}
        records.put("robust", "a", own, metrics={"top1": 20.0 + seed, "mCE": error}, data=data)
    below = {**own, "seed": 1}
    records.put("robust", "b", below, metrics={"top1": 20.0, "mCE": -1.0})
    [fault] = aggregate([records.root], tmp_path / "out").faults
    assert "mCE is -1, below 0" in fault
    [row] = read_csv(tmp_path / "out" / "leaderboard_c_robust-c.csv")
    assert (row["mCE_mean"], row["mCE_test_ci95"]) == ("125.0", "")
    assert float(row["mCE_low"]) == pytest.approx(125 - 4.302653 * 5 / 3**0.5, abs=1e-4)
    assert float(row["mCE_high"]) == pytest.approx(125 + 4.302653 * 5 / 3**0.5, abs=1e-4)


@pytest.mark.parametrize("artifacts", [[], {"backbone": "x"}, {"backbone": None}, None])
def test_a_bundle_needs_the_hash_of_its_weights(records: Records, tmp_path: Path, artifacts: Any) -> None:
    folder = records.root / "pretrain" / records.pretrain("intl", artifacts=artifacts)
    (folder / "backbone.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"is not the file that run\.json names"):
        export(str(folder), [records.root], tmp_path / "out")


@pytest.mark.parametrize("run", [".", "intl", "pretrain/intl"])
def test_a_bundle_is_made_from_any_working_folder(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    identity = records.pretrain("intl")
    (records.root / "pretrain" / identity / "backbone.safetensors").write_bytes(b"weights")
    sha = file_hash(records.root / "pretrain" / identity / "backbone.safetensors")
    records.pretrain("intl", artifacts={"backbone": {"sha256": sha}})
    records.evaluate(identity, {"top1": 61.5})
    folder = records.root / "pretrain" / identity
    monkeypatch.chdir({".": folder, "intl": folder.parent}.get(run, records.root))
    export_main([run.replace("intl", identity), "--out", str(tmp_path / "out")])
    assert "61.50" in (tmp_path / "out" / identity / "README.md").read_text()


def test_of_many_pictures_the_page_has_a_few_and_their_number(tmp_path: Path) -> None:
    for i in range(RUN_PICTURES + 1000):
        (tmp_path / f"{i:04}.png").write_bytes(b"")
    pictures = PictureBudget().of_run(tmp_path)
    assert [picture.name for picture in pictures[RUN_PICTURES:]] == ["1000 more pictures"]


@pytest.mark.parametrize("most", ["-1", "1.5", "x", ""])
def test_a_number_of_pretrainings_is_whole_and_not_negative(capsys: pytest.CaptureFixture[str], most: str) -> None:
    with pytest.raises(SystemExit):
        report_main([f"--most={most}"])
    assert f"'{most}' is not a number of pretrainings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"dataset": "../elsewhere"}, "not the name of a dataset"),
        ({"dataset": "/home/somebody/photos"}, "not the name of a dataset"),
        ({"views": [{"size": 48, "count": 200}]}, "are not drawn: more than"),
        ({"views": [{"size": 1000, "count": 2}]}, "are not drawn: more than"),
        ({"views": [{"size": 48, "count": 10**9}]}, "data.views.0.count"),
        ({}, "views cannot be drawn (ValueError: damaged)"),
        (["no section"], "data"),
    ],
)
def test_views_are_drawn_of_datasets_of_the_data_folder_alone(
    monkeypatch: pytest.MonkeyPatch, data: Any, problem: str
) -> None:
    def damaged(*arguments: Any, **options: Any) -> None:
        assert problem.endswith("damaged)")
        raise ValueError("damaged")

    monkeypatch.setattr("pretrain.data.show.write_contact_sheet", damaged)
    views = {"dataset": "sample", "views": [{"size": 48, "count": 2}]}
    record = Record("a-1", "pretrain", {"data": {**views, **data} if isinstance(data, dict) else data})
    pictures, [line] = sheets([Detail(record, None)], PictureBudget())
    assert pictures == []
    assert problem in line
