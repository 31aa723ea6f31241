"""Clocks, disks, users and checkouts that are not as one expects; SLURM itself is not needed."""

import errno
import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slurm import job_queue, launch_lock, sweep_commands, watch
from slurm import status as status_module
from slurm.display import Display, Snapshot
from slurm.graph import Graph, Job, Resources, load_graph
from slurm.job_state import JobState, read_states
from slurm.slurm_command import SlurmUnavailable
from slurm.snapshot import take_snapshot
from slurm.stages import LEADERBOARD, Task
from slurm.status import Status, read_status
from slurm.submissions import LEDGER, Ledger, announce, note_job, read_ledger, sweeps_folder
from tests.conftest import Disk
from tests.support.launching import prepare, write_sweep
from tests.support.lock_files import write_lock_of
from whitebench.errors import UserError
from whitebench.locks import Lock
from whitebench.records import read_record


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare(tmp_path, monkeypatch, "two", "kind: local\nslots: 2\n")


@pytest.fixture
def graph(place: Path, launch: Any) -> Graph:
    """Of a sweep of one cell that is done."""
    sweep = write_sweep(place, {"pretrain": {"function": "count"}}, seeds=1)
    assert launch(sweep, "--cluster", "debug")[0] == 0
    return load_graph("mine")


def set_running(graph: Graph) -> Path:
    folder = graph.work[0].folder
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    return folder


@pytest.mark.parametrize("ahead", [600.0, -600.0])
def test_a_login_node_whose_clock_is_wrong_calls_no_running_job_stalled(
    ahead: float, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = set_running(graph)
    (folder / "metrics.jsonl").write_text(json.dumps({"time": time.time(), "epoch": 1, "seconds": 60}) + "\n")
    (folder / "attempts.jsonl").write_text(json.dumps({"time": time.time() - 300}) + "\n")
    lock = Lock(folder / ".lock")
    lock.acquire()
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + ahead)
        (state,) = read_states(graph, {}).values()
    lock.release()
    assert (state.state, state.stalled) == ("running", "")
    assert 300 <= state.seconds < 500


def test_records_that_a_network_file_system_shows_late_are_waited_for(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = graph.work
    done = read_record(job.folder)
    assert done is not None
    late = JobState("interrupted", replace(done, status="running"))
    answers = [late, late, late, JobState("done", done)]
    monkeypatch.setattr(watch, "EVERY_S", 0.0)
    monkeypatch.setattr(watch, "status_or_reason", lambda graph: Status(graph, {job.key: answers.pop(0)}))
    assert watch.watch(graph) == {job.key: "done"}
    monkeypatch.setattr(watch, "LATE_S", 0.0)
    monkeypatch.setattr(watch, "status_or_reason", lambda graph: Status(graph, {job.key: late}))
    assert watch.watch(graph) == {job.key: "interrupted"}


@pytest.mark.parametrize("command", ["--watch", "--wait"])
def test_watching_goes_on_when_slurm_or_the_file_system_has_no_answer_for_a_moment(
    command: str, graph: Graph, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (job,) = graph.work
    stale = OSError(errno.ESTALE, "Stale file handle", str(job.folder / "run.json"))
    answers: list[Any] = [SlurmUnavailable("SLURM does not answer: squeue"), stale, stale, read_status(graph)]

    def read(graph: Graph) -> Status:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Status)
        return answer

    monkeypatch.setattr(status_module, "read_status", read)
    for module in (watch, sweep_commands):
        monkeypatch.setattr(module, "EVERY_S", 0.0)
    if command == "--wait":
        assert watch.watch(graph) == {job.key: "done"}
    else:
        assert sweep_commands.watch_status(graph) == 0
    output = capsys.readouterr().out
    assert output.count("asking again") == 3
    assert "run.json: stale file handle of a network file system" in output.replace("\n", "")
    answers.append(PermissionError(errno.EACCES, "Permission denied", "runs"))
    with pytest.raises(PermissionError):  # that does not pass by itself
        watch.watch(graph)


def test_another_launcher_is_waited_for_with_a_word_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch_lock, "PATIENCE_S", 0.5)
    monkeypatch.setattr(launch_lock, "SILENCE_S", 0.0)
    write_lock_of(tmp_path / ".lock", "elsewhere", pid=4711)
    told = r"another launcher \(process 4711 on elsewhere\); it may be stopped \(Ctrl-Z\)"
    with pytest.raises(launch_lock.Busy, match=told):
        launch_lock.launch_lock(tmp_path / ".lock", wait=True, what="another launcher").__enter__()
    assert "another launcher (process 4711 on elsewhere): waiting for it" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_runs_folder_that_this_user_may_not_write_is_one_line(
    number: int, place: Path, monkeypatch: pytest.MonkeyPatch, launch: Any
) -> None:
    def refused(lock: Lock) -> None:
        raise OSError(number, os.strerror(number), str(lock.path))

    monkeypatch.setattr(Lock, "acquire", refused)
    with pytest.raises(UserError, match="this user may not write there; set WHITEBENCH_RUNS to a folder of yours"):
        launch(write_sweep(place, {"pretrain": {"function": "count"}}), "--cluster", "two")


def test_the_queue_is_asked_for_all_users_who_have_submitted_to_these_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = announce("mine", ["pretrain/a"], place)
    ledger = sweeps_folder() / LEDGER
    ledger.write_text(ledger.read_text().replace(f'"user": {os.getuid()}', '"user": 4711'))
    asked = []

    def ask(*command: str) -> str:
        asked.append(command)
        return f"12|RUNNING|None|(null)|1:00|n1|{mark}\n"

    monkeypatch.setattr(job_queue, "ask", ask)
    assert job_queue.queued_jobs()["pretrain/a"].id == "12"
    users = asked[0][asked[0].index("-u") + 1].split(",")
    assert set(users) == {"4711", str(os.getuid())}


def test_a_checkout_that_may_not_be_written_gets_its_tables_among_the_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, launch: Any
) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count"}}, seeds=1)
    sweep.write_text("\n".join(line for line in sweep.read_text().splitlines() if "tables" not in line))
    sweep.write_text(sweep.read_text().replace("leaderboard:", "leaderboard: {}"))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "results" not in str(path) and access(path, mode))
    assert launch(sweep, "--cluster", "debug")[0] == 0
    assert load_graph("mine").leaderboard.task.options["out"] == str(place / "runs" / "tables")


def test_a_snapshot_without_room_names_its_folder_and_leaves_nothing(disk: Disk) -> None:
    into = disk(1) / "code"
    with pytest.raises(UserError, match=f"{into}: the code for the jobs cannot be copied there: No space left"):
        take_snapshot(into)
    assert not list(into.glob("*"))
    assert not list(into.glob(".*"))


@pytest.mark.parametrize(
    ("ends", "submissions", "state", "text"),
    [
        ({"12": "FAILED, exit code 1, on n7"}, 1, "failed", "job 12 ended as FAILED, exit code 1, on n7 without a log"),
        ({}, 1, "new", ""),  # SLURM does not remember: once may be chance
        ({}, 2, "failed", "left the queue, the last of 2 submissions that did so without a log"),
        ({"12": "CANCELLED, on n7"}, 1, "new", ""),
    ],
)
def test_jobs_on_nodes_that_do_not_share_the_runs_are_told_of(
    ends: dict[str, str], submissions: int, state: str, text: str, place: Path
) -> None:
    job = Job("pretrain/a", "pretrain", "a", (), Resources(), Task("pretrain", "a", id="a"))
    board = Job(f"{LEADERBOARD}/mine", LEADERBOARD, "", (job.key,), Resources(), Task(LEADERBOARD, "", id="mine"))
    for _ in range(submissions):
        note_job(announce("mine", [job.key], place / "launches" / "not-there"), "12")
    graph = Graph("mine", [job, board])
    (found,) = read_states(graph, {}, read_ledger(), lambda ids: ends).values()
    assert found.state == state
    assert text in found.error
    if state == "failed":
        assert f"can the nodes write to {place / 'launches' / 'not-there'}?" in found.error
    (found,) = read_states(graph, {}, Ledger(), lambda ids: ends).values()
    assert found.state == "new"


def test_the_line_of_wait_is_short_and_counts_from_the_start_of_the_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.display.PLAIN_EVERY_S", 0.0)
    jobs = [Job(f"p/{i}", "pretrain", f"cell {i}", (), Resources(), Task("pretrain", "a", id=str(i))) for i in range(9)]
    display = Display()
    display.refresh(Snapshot([(job, {"epoch": 2}, 7200.0) for job in jobs], {"done": 3, "running": 9}, 12))
    display.close()
    line = capsys.readouterr().out
    assert "3 of 12 jobs done, 9 running" in line
    assert "pretrain cell 0 epoch 2 (2.0 h)" in line
    assert "and 5 more" in line
    assert "cell 4" not in line


def test_a_checkout_of_another_user_has_its_commit_in_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    from whitebench.environment import environment

    root = Path(__file__).parents[2]
    commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    if commit.returncode:
        pytest.skip("not a checkout")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    if not subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("this git does not look at owners")
    state = environment()
    assert state["git"] == commit.stdout.strip()
    assert state["dirty"] is not None
