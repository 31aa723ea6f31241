"""The launcher's command on a real SLURM cluster, brought up on loopback by `tests/support/slurm_cluster`.

The cluster allows arrays of 4 tasks, cancels nothing by itself whose dependency failed, and requeues nothing by itself.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import log, prepare, wait_until, write_sweep
from tests.support.own_cluster import NoCluster, own_cluster
from whitebench.errors import UserError

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["plain", "accounting"])
def cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without and with an accounting database."""
    try:
        with own_cluster(accounting=request.param):
            yield
    except NoCluster as reason:
        pytest.skip(str(reason))


@pytest.fixture
def place(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # USR2 may come a minute before its time: the delay is small, or jobs would be told too early
    return prepare(tmp_path, monkeypatch, "lab", "kind: slurm\nsignal_delay_s: 5\n")


def starts(place: Path, stage: str) -> list[int]:
    """Where each start of a stage began to count."""
    return [line["from"] for line in log(place) if line["stage"] == stage and "from" in line]


def queue(*options: str) -> list[str]:
    told = subprocess.run(["squeue", "-h", "-r", *options], capture_output=True, text=True, check=True)
    return told.stdout.split()


def submissions(place: Path) -> list[dict[str, Any]]:
    lines = (place / "runs" / "sweeps" / "jobs.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "keys" in line]


def wait_for_empty_queue() -> None:
    wait_until(lambda: not queue())


def counts(place: Path) -> list[int]:
    return [int(path.read_text()) for path in (place / "runs" / "pretrain").glob("*/count")]


def running_count(place: Path) -> int:
    """Of the only cell."""
    return sum(counts(place))


def test_a_whole_sweep_runs_by_itself_and_a_failure_cancels_only_what_needs_it(place: Path, launch: Any) -> None:
    stages = {
        "pretrain": {"function": "count", "options": {"to": 3, "every": 0.1}},
        "linear": {"function": "count"},
        "knn": {"function": "fail", "options": {"recipes": ["sample/random"], "unless": str(place / "mended")}},
        "after": {"function": "count", "needs": ["knn"]},
    }
    sweep = write_sweep(place, stages, seeds=3, recipes=("sample/intl", "sample/random"))
    code, shown = launch(sweep, "--cluster", "lab")
    assert code == 0
    assert "submitted 24 jobs and the leaderboard by 9 calls of sbatch" in shown  # 6 cells by 4: two arrays a stage

    code, shown = launch(sweep, "--cluster", "lab")
    assert "submitted" not in shown  # all of it is on its way
    assert len(submissions(place)) == 9
    wait_for_empty_queue()
    assert sorted(starts(place, "pretrain")) == [0] * 6
    assert len(starts(place, "linear")) == 6
    assert len(starts(place, "after")) == 3
    states = {job["stage"]: set() for job in json.loads(launch(sweep, "--status", "--json")[1])["jobs"]}
    for job in json.loads(launch(sweep, "--status", "--json")[1])["jobs"]:
        states[job["stage"]].add((job["cell"].split()[0], job["state"]))
    assert states["knn"] == {("sample/intl", "done"), ("sample/random", "failed")}
    assert states["after"] == {("sample/intl", "done"), ("sample/random", "blocked")}
    assert (place / "tables" / "runs.csv").exists()

    before = log(place)
    code, shown = launch(sweep, "--cluster", "lab")
    assert code == 1
    assert "knn failed: ValueError: deliberate" in shown
    assert len(submissions(place)) == 9

    (place / "mended").touch()
    code, _ = launch(sweep, "--cluster", "lab", "--retry-failed", "--wait")
    assert code == 0
    again = [line["stage"] for line in log(place)[len(before) :] if "end" in line]
    assert sorted(again) == ["after"] * 3 + ["knn"] * 3


def test_a_job_told_of_its_time_limit_is_saved_queued_again_and_goes_on(place: Path, launch: Any) -> None:
    stages = {"pretrain": {"function": "count", "options": {"to": 6, "hold": 4}}, "linear": {"function": "count"}}
    sweep = write_sweep(place, stages, seeds=1)
    launch(sweep, "--cluster", "lab")
    wait_until(lambda: running_count(place) == 4)
    subprocess.run(["scancel", "--signal=USR2", *queue("-t", "running", "-o", "%i")], check=True)
    wait_for_empty_queue()
    assert starts(place, "pretrain") == [0, 4]
    assert running_count(place) == 6
    assert starts(place, "linear") == [0]  # waited for the end, not for the requeue
    record = json.loads(next((place / "runs" / "pretrain").glob("*/run.json")).read_text())
    assert record["status"] == "done"
    assert record["cost"]["restarts"] == 1


def test_a_preempted_job_goes_on_when_there_is_room_again(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count", "options": {"to": 6, "hold": 4}}}, seeds=1)
    launch(sweep, "--cluster", "lab")
    wait_until(lambda: running_count(place) == 4)
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"]
    subprocess.run(urgent, check=True)
    wait_for_empty_queue()
    assert starts(place, "pretrain") == [0, 4]
    assert running_count(place) == 6


def test_a_killed_job_comes_back_by_itself_and_what_needs_it_goes_on_waiting(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "die"}, "linear": {"function": "count"}}, seeds=1)
    launch(sweep, "--cluster", "lab")
    wait_for_empty_queue()
    assert starts(place, "pretrain") == [0]
    assert starts(place, "linear") == [0]
    record = json.loads(next((place / "runs" / "pretrain").glob("*/run.json")).read_text())
    assert record["cost"]["restarts"] == 1
    assert record["environment"]["code"] == next((place / "runs" / "sweeps" / "code").iterdir()).name
    assert len(submissions(place)) == 3


def test_a_launch_right_after_a_cancellation_loses_nothing(place: Path, launch: Any) -> None:
    stages = {
        "pretrain": {"function": "count", "options": {"to": 6, "hold": 4}},
        "linear": {"function": "count"},
        "after": {"function": "count", "needs": ["linear"]},
    }
    sweep = write_sweep(place, stages, seeds=1)
    launch(sweep, "--cluster", "lab")
    wait_until(lambda: running_count(place) == 4)
    subprocess.run(["scancel", *queue("-t", "running", "-o", "%i")], check=True)
    assert "submitted 3 jobs" in launch(sweep, "--cluster", "lab")[1]  # the cancelled one may still be ending
    wait_for_empty_queue()
    assert [len(starts(place, stage)) for stage in stages] == [2, 1, 1]
    assert (place / "tables" / "runs.csv").exists()


def test_a_cancelled_job_stays_away_until_the_next_launch_which_goes_on(place: Path, launch: Any) -> None:
    stages = {"pretrain": {"function": "count", "options": {"to": 6, "hold": 4}}, "linear": {"function": "count"}}
    sweep = write_sweep(place, stages, seeds=1)
    launch(sweep, "--cluster", "lab")
    wait_until(lambda: running_count(place) == 4)
    subprocess.run(["scancel", *queue("-t", "running", "-o", "%i")], check=True)
    wait_for_empty_queue()  # linear as well, since its need can never be met
    assert not starts(place, "linear")
    launch(sweep, "--cluster", "lab", "--wait")
    assert starts(place, "pretrain") == [0, 4]
    assert starts(place, "linear") == [0]


def test_the_last_task_of_an_array_comes_back_alone(place: Path, launch: Any) -> None:
    """Its SLURM_JOB_ID is that of the whole array."""
    sweep = write_sweep(place, {"pretrain": {"function": "count", "options": {"to": 6, "hold": 4}}})
    launch(sweep, "--cluster", "lab")
    wait_until(lambda: counts(place) == [4, 4])
    first, last = sorted(queue("-t", "running", "-o", "%i"))
    subprocess.run(["scancel", first], check=True)
    wait_until(lambda: first not in queue("-o", "%i"))
    attempts = [line for path in (place / "runs" / "pretrain").glob("*/attempts.jsonl") for line in path.open()]
    (process,) = [line["pid"] for line in map(json.loads, attempts) if line["job"] == last]
    os.kill(process, signal.SIGKILL)
    wait_for_empty_queue()
    records = (place / "runs" / "pretrain").glob("*/run.json")
    assert sorted(json.loads(path.read_text())["status"] for path in records) == ["done", "interrupted"]
    assert len(starts(place, "pretrain")) == 3


def test_one_cell_is_cancelled_by_the_launcher_s_command_and_the_others_go_on(place: Path, launch: Any) -> None:
    options = {"to": 6, "hold": 4, "until": str(place / "go")}
    stages = {"pretrain": {"function": "count", "options": options}, "linear": {"function": "count"}}
    sweep = write_sweep(place, stages)
    launch(sweep, "--cluster", "lab")
    wait_until(lambda: counts(place) == [4, 4])
    with pytest.raises(UserError, match="--cancel --cell 'seed=0' it first"):
        launch(sweep, "--cluster", "lab", "--rerun", "seed=0")
    assert "2 jobs cancelled" in launch(sweep, "--cluster", "lab", "--cancel", "--cell", "seed=0")[1]
    (place / "go").touch()
    wait_for_empty_queue()
    jobs = json.loads(launch(sweep, "--status", "--json")[1])["jobs"]
    assert {(job["cell"][-1], job["state"]) for job in jobs if job["stage"] == "linear"} == {
        ("0", "new"),
        ("1", "done"),
    }


def test_a_launcher_that_dies_while_it_submits_leaves_nothing_to_be_run_twice(
    place: Path, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slurm import submit

    sweep = write_sweep(place, {"pretrain": {"function": "count"}, "linear": {"function": "count"}}, seeds=2)
    real = submit.call_sbatch

    def dies_after_sbatch(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(submit, "call_sbatch", dies_after_sbatch)
    with pytest.raises(KeyboardInterrupt):
        launch(sweep, "--cluster", "lab")
    monkeypatch.setattr(submit, "call_sbatch", real)
    launch(sweep, "--cluster", "lab", "--wait")
    assert starts(place, "pretrain") == [0, 0]
    assert starts(place, "linear") == [0, 0]


def test_what_sbatch_refuses_is_told_in_its_own_words(place: Path, launch: Any) -> None:
    (place / "bad.yaml").write_text("kind: slurm\npartition: nowhere\n")
    with pytest.raises(UserError, match=r"sbatch refused pretrain: sbatch: error: .*nvalid partition"):
        launch(write_sweep(place, {"pretrain": {"function": "count"}}, seeds=1), "--cluster", "bad")
    assert not queue()


def test_auto_takes_slurm_where_it_answers(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count"}}, seeds=6)
    shown = launch(sweep, "--dry-run")[1]
    assert "on SLURM: 3 calls of sbatch, at most 4 tasks an array" in shown
    assert not queue()
