"""Damaged and hostile run folders: one clear line, the rest of the page, and no file of anywhere else in it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from results.page import curves, spectra
from results.page.frames import compact, script_json
from results.page.page import Options, page
from results.page.pictures import PictureBudget
from results.page.run_details import Detail, read_details
from results.page.run_files import Unreadable, json_lines, number, read_inside
from results.page.snapshot import build_page, read_runs
from tests.support.html_page import Page
from tests.support.report_runs import history
from tests.support.run_records import Records
from whitebench.records import Record

SECRET = "the-secret-of-another-file"


def report(records: Records) -> str:
    text = build_page(read_runs([records.root]), Options(views=False)).decode()
    Page(text)
    return text


def one_run(records: Records, **changes: Any) -> Path:
    """The folder of a pretraining with an evaluation."""
    parent = records.pretrain("intl", 0, **changes)
    records.evaluate(parent, {"top1": 50.0})
    return records.root / "pretrain" / parent


def test_hostile_names_stay_text(records: Records) -> None:
    evil = "\"'><script>alert(1)<img src=x onerror=alert(1)>{{ 7 * 7 }}"  # without a slash: part of a folder's name
    parent = records.pretrain(evil, recipe=evil, command=evil, environment={"git": evil}, error=evil)
    history(records.root / "pretrain" / parent)
    (records.root / "pretrain" / parent / "error.txt").write_text(evil)
    records.evaluate(parent, {"top1": 1.0}, config={"dataset": evil, "protocol": {"name": evil}})
    text = report(records)
    tags = Page(text).tags
    assert "img" not in tags
    assert tags.count("script") == report_scripts(records)
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") > 10


def report_scripts(records: Records) -> int:
    """Script elements of a page without runs."""
    return Page(page(read_runs([records.root / "nothing"]).tables, options=Options(views=False))).tags.count("script")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"epoch": 1, "loss": 2}\n\xff\xfe\n', "metrics.jsonl: line 2 is not UTF-8"),
        (b'{"epoch": 1, "loss": 2}\n5\n{"epoch": 2, "loss": 1}\n', "metrics.jsonl: line 2 is not a JSON object"),
        (b'{"epoch": 1, "loss": 2}\n{"epoch": \n', "metrics.jsonl: line 2 is not JSON"),
        (b"[" * 100_000 + b"\n", "metrics.jsonl: line 1 is not JSON"),
        (b'{"epoch": null, "loss": 2}\n', "neither an epoch nor a step"),
        (b'{"epoch": 1e999, "loss": "x"}\n', "neither an epoch nor a step"),
    ],
)
def test_a_damaged_curve_is_one_line_and_the_rest_of_the_page(records: Records, content: bytes, line: str) -> None:
    folder = one_run(records)
    (folder / "metrics.jsonl").write_bytes(content)
    text = report(records)
    assert line in text
    assert '<section id="leaderboards">' in text


FILES = ("metrics.jsonl", "spectra.jsonl", "attempts.jsonl", "x.png", "error.txt")


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link", "circular link", "unreadable"])
def test_what_is_no_file_is_named(records: Records, kind: str) -> None:
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    folder = one_run(records)
    for name in FILES:
        put(folder / name, kind)
    text = report(records)
    assert [name for name in FILES if name not in text] == []


def put(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "circular link":
        path.symlink_to(path)
    else:
        path.write_text("x")
        path.chmod(0)


def test_links_out_of_the_runs_folder_are_not_followed(records: Records, tmp_path: Path) -> None:
    folder = one_run(records)
    (tmp_path / "secret").write_text(json.dumps({"epoch": 1, "loss": 1.0, "log": SECRET, "text": SECRET}) + "\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture", "png")
    for name in FILES:
        (folder / name).symlink_to(tmp_path / ("picture" if name == "x.png" else "secret"))
    text = report(records)
    assert SECRET not in text
    assert "data:image" not in text
    for name in FILES:
        assert f"{name}: outside the run&#39;s folder, not read" in text


@pytest.mark.parametrize(
    "log",
    [
        "{secret}",
        "sweeps/../../secret",
        "{root}/sweeps/s/launches/l/../../../../../secret",
        "{root}/sweeps/s/launches/../../../secret",
        "{root}/sweeps/s/launches/l/link",
        "{root}/sweeps/s/launches/away/secret",
        "{root}/sweeps/away/launches/l/secret",
        "../../../secret",
        "\u0000",
        "x" * 5000,
    ],
)
def test_only_logs_of_the_run_and_its_launch_are_read(records: Records, tmp_path: Path, log: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    launch = records.root / "sweeps" / "s" / "launches" / "l"
    launch.mkdir(parents=True)
    (launch / "link").symlink_to(secret)
    (launch.parent / "away").symlink_to(tmp_path)
    (tmp_path / "launches" / "l").mkdir(parents=True)
    (tmp_path / "launches" / "l" / "secret").write_text(f"{SECRET}\n")
    (records.root / "sweeps" / "away").symlink_to(tmp_path)
    folder = one_run(records)
    path = log.format(secret=secret, root=records.root)
    (folder / "attempts.jsonl").write_text(json.dumps({"log": path}) + "\n")
    assert SECRET not in report(records)


def test_a_log_in_the_runs_own_folder_is_read(records: Records) -> None:
    folder = one_run(records)
    (folder / "own.log").write_text("a line of the log\n")
    (folder / "attempts.jsonl").write_text(json.dumps({"log": str(folder / "own.log")}) + "\n")
    assert "a line of the log" in report(records)


def test_odd_records_do_not_stop_the_page(records: Records) -> None:
    one_run(records, recipe="\ud800 lone surrogate", error="\udfff")
    long = records.pretrain("moco", 1, recipe="r" * 300)
    records.evaluate(long, {"top1": 40.0})
    records.evaluate(records.pretrain("byol", 1, command=None), {"top1": 40.0})
    records.evaluate(records.pretrain("dino", 1, cost={"wall_s": None}, environment={"git": None}), {"top1": 40.0})
    text = report(records)
    assert "r" * 300 in text
    assert text.encode()


def test_pictures_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    notes = {picture.name: picture.note for picture in PictureBudget().of_run(tmp_path)}
    assert notes["whole.png"] == ""
    assert notes["huge.png"] == "not shown: 9000 x 9000 pixels"
    assert all(notes[name].startswith("not a readable picture") for name in ("text.png", "cut.png"))


# --- any content ----------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "<script>", "/etc/passwd"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
KEYS = ("epoch", "step", "loss", "lr", "online_knn_top1", "log", "backbone", "embedding", "eigenvalues")
LINES = st.lists(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5).map(lambda line: json.dumps(line).encode())
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=30),
    max_size=6,
).map(b"\n".join)
PROBE = st.fixed_dictionaries(
    {"epoch": VALUES, "backbone": st.fixed_dictionaries({"eigenvalues": VALUES, "effective_rank": VALUES})}
)
ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(ANY, max_examples=10_000)
FUZZED: dict[str, Any] = {"content": LINES, "attempts": LINES, "probes": LINES}
CHARTED: dict[str, Any] = {
    "lines": st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), max_size=4),
    "probes": st.lists(PROBE),
}


@ANY
@given(**FUZZED)
def test_any_content_of_a_runs_files_is_read(tmp_path: Path, content: bytes, attempts: bytes, probes: bytes) -> None:
    check_files(tmp_path, content, attempts, probes)


@pytest.mark.long
@pytest.mark.timeout(7200)
@MANY
@given(**FUZZED)
def test_many_contents_of_a_runs_files_are_read(tmp_path: Path, content: bytes, attempts: bytes, probes: bytes) -> None:
    check_files(tmp_path, content, attempts, probes)


def check_files(tmp_path: Path, content: bytes, attempts: bytes, probes: bytes) -> None:
    records = Records(tmp_path / "runs")
    folder = records.root / "pretrain" / records.pretrain()
    for name, text in (("metrics.jsonl", content), ("attempts.jsonl", attempts), ("spectra.jsonl", probes)):
        (folder / name).write_bytes(text + b"\n")
    [detail] = read_details([folder / "run.json"])
    assert "root:" not in detail.log
    charted([detail])


@ANY
@given(**CHARTED)
def test_any_values_are_charted_or_left_out(lines: list[dict[str, Any]], probes: list[dict[str, Any]]) -> None:
    charted([Detail(Record("a-1", "pretrain", {}), None, curve=lines, spectra=probes)])


@pytest.mark.long
@pytest.mark.timeout(7200)
@MANY
@given(**CHARTED)
def test_many_values_are_charted_or_left_out(lines: list[dict[str, Any]], probes: list[dict[str, Any]]) -> None:
    charted([Detail(Record("a-1", "pretrain", {}), None, curve=lines, spectra=probes)])


def charted(details: list[Detail]) -> None:
    frame = curves.curve_frame(details)
    curves.overview_charts(frame)
    curves.loss_charts(frame)
    curves.without_curves(details)
    probed = spectra.chosen(details)
    data = spectra.frames(probed)
    spectra.spectrum_charts(probed, data)
    script_json({name: compact(each) for name, each in {**data, "curves": frame}.items()})


@ANY
@given(content=st.binary(max_size=200))
def test_any_bytes_are_lines_or_a_problem(tmp_path: Path, content: bytes) -> None:
    check_bytes(tmp_path, content)


@pytest.mark.long
@pytest.mark.timeout(7200)
@MANY
@given(content=st.binary(max_size=200))
def test_many_bytes_are_lines_or_a_problem(tmp_path: Path, content: bytes) -> None:
    check_bytes(tmp_path, content)


def check_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    lines, problem = json_lines(tmp_path / "f", tmp_path)
    assert all(isinstance(line, dict) for line in lines)
    assert "\n" not in problem


def test_numbers_are_finite() -> None:
    assert [number(value) for value in (True, "1", None, 10**400, float("nan"), float("-inf"), 2)] == [None] * 6 + [2.0]


def test_reading_is_limited_and_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("0123456789")
    assert read_inside(tmp_path / "f", [tmp_path], 4) == b"0123"
    assert read_inside(tmp_path / "f", [tmp_path], 4, from_end=True) == b"6789"
    with pytest.raises(FileNotFoundError):
        read_inside(tmp_path / "missing", [tmp_path], 4)
    with pytest.raises(Unreadable, match="outside"):
        read_inside(Path("/etc/hostname"), [tmp_path], 4)
