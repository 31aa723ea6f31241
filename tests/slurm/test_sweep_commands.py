"""What one does with a launched sweep: --status of what hangs, --watch, --logs, --cancel, --rerun."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import ROOT, log, prepare, wait_until, write_sweep
from whitebench.errors import UserError
from whitebench.locks import Lock

STAGES = {"pretrain": {"function": "count"}, "linear": {"function": "count"}}
LAUNCH = [sys.executable, str(ROOT / "slurm" / "launch_sweep.py")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare(tmp_path, monkeypatch, "two", "kind: local\nslots: 2\n")


@pytest.fixture
def sweep(place: Path, launch: Any) -> Path:
    """A sweep of two cells that has run to its end, in this process."""
    path = write_sweep(place, STAGES)
    assert launch(path, "--cluster", "debug")[0] == 0
    return path


def runs_of(place: Path) -> Counter[str]:
    return Counter(f"{line['stage']} {line['id'][:7]}" for line in log(place) if "end" in line)


def test_a_cell_is_run_anew_with_what_builds_on_it_and_its_old_runs_are_kept_aside(
    place: Path, sweep: Path, launch: Any
) -> None:
    assert launch(sweep, "--cluster", "debug", "--rerun", "seed=1")[0] == 0
    assert runs_of(place) == {"pretrain intl-s0": 1, "linear intl-s0": 1, "pretrain intl-s1": 2, "linear intl-s1": 2}
    assert launch(sweep, "--cluster", "debug", "--rerun", "sample/intl seed=0:linear")[0] == 0
    assert runs_of(place)["linear intl-s0"] == 2
    assert runs_of(place)["pretrain intl-s0"] == 1
    aside = sorted((place / "runs" / "sweeps" / "mine" / "replaced").glob("*/*/*/run.json"))
    assert sorted(path.parts[-3] for path in aside) == ["linear", "linear", "pretrain"]


def test_a_cell_that_is_not_there_names_the_nearest(sweep: Path, launch: Any) -> None:
    with pytest.raises(UserError, match=r"no cell 'sample/intl seed=11'.*did you mean 'sample/intl seed=1'"):
        launch(sweep, "--cluster", "debug", "--logs", "sample/intl seed=11")


@pytest.mark.parametrize("columns", [28, 40, 80, 160])
def test_status_has_one_line_per_cell_on_any_terminal(
    columns: int, sweep: Path, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table, rest = launch(sweep, "--cluster", "debug", "--status")[1].split("\n\n")
    assert len(table.splitlines()) == 1 + 2
    assert max(map(len, table.splitlines())) <= columns
    assert ("all done" if columns < 40 else "top1 1.00") in table
    assert rest.startswith("4 jobs: 4 done")


def test_logs_shows_the_end_of_the_latest_log_of_the_stage(place: Path, sweep: Path, launch: Any) -> None:
    with pytest.raises(UserError, match="no job of it has begun"):
        launch(sweep, "--cluster", "debug", "--logs", "seed=0")
    folder = next((place / "runs" / "linear").glob("intl-s0-*"))
    (place / "log").write_text("".join(f"line {i}\n" for i in range(100)))
    (folder / "attempts.jsonl").write_text(json.dumps({"log": str(place / "log")}) + "\n")
    shown = launch(sweep, "--cluster", "debug", "--logs", "seed=0:linear")[1].splitlines()
    assert shown[0] == f"== linear sample/intl seed=0: {place / 'log'}"
    assert shown[1:] == [f"line {i}" for i in range(80, 100)]


@pytest.mark.parametrize(
    ("logged", "why"),
    [(0, None), (7200, "no progress for 2.0 h")],
)
def test_a_job_that_has_fallen_silent_is_called_stalled(
    logged: float, why: str | None, place: Path, sweep: Path, launch: Any
) -> None:
    folder = next((place / "runs" / "pretrain").glob("intl-s0-*"))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    (folder / "attempts.jsonl").write_text(json.dumps({"time": time.time() - 9000, "log": "l"}) + "\n")
    (folder / "metrics.jsonl").write_text(json.dumps({"time": time.time() - logged, "epoch": 3, "seconds": 60}) + "\n")
    lock = Lock(folder / ".lock")
    lock.acquire()
    jobs = json.loads(launch(sweep, "--cluster", "debug", "--status", "--json")[1])["jobs"]
    text = launch(sweep, "--cluster", "debug", "--status")[1]
    lock.release()
    found = next(job for job in jobs if job["id"] == folder.name and job["stage"] == "pretrain")
    assert (found["state"], found["why"]) == (("stalled", why) if why else ("running", ""))
    assert (f"stalled: {why}" if why else "epoch 3") in text


def test_watch_ends_when_nothing_is_on_its_way(sweep: Path, launch: Any) -> None:
    code, shown = launch(sweep, "--cluster", "debug", "--watch")
    assert code == 0
    assert shown.count("4 jobs: 4 done") == 1


def test_cancel_stops_the_launcher_of_this_machine_and_keeps_what_was_reached(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count", "options": {"to": 300, "every": 0.1}}})
    with subprocess.Popen([*LAUNCH, sweep, "--cluster", "two"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
        wait_until(lambda: len(list((place / "runs" / "pretrain").glob("*/count"))) == 2)
        with pytest.raises(UserError, match="as a whole"):
            launch(sweep, "--cluster", "two", "--cancel", "--cell", "seed=0")
        assert "was asked to stop" in launch(sweep, "--cluster", "two", "--cancel")[1]
        assert one.wait(60) == 130
    assert "nothing of it is queued or running" in launch(sweep, "--cluster", "two", "--cancel")[1]
    states = {json.loads(path.read_text())["status"] for path in (place / "runs" / "pretrain").glob("*/run.json")}
    assert states == {"interrupted"}
