"""What becomes of a job whose processes were killed or failed without a word; no cluster is needed for this."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import DelayedSubmission, JobPaths, cloudpickle_dump

from slurm import requeue, worker
from slurm.attempts import ATTEMPTS
from slurm.exit_codes import explain
from slurm.requeue import MAX_KILLS_WITHOUT_PROGRESS, main, should_requeue
from slurm.stages import Task
from slurm.worker import MAX_PREEMPTIONS_WITHOUT_PROGRESS, PARENT_MISSING, Worker
from whitebench.files import write_json
from whitebench.records import Record, read_record

TASK = Task("linear", "sample/intl", id="intl-s0-0123456789ab", cell={"recipe": "sample/intl", "seed": 0})


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(requeue, "runs_on", lambda job: True)
    monkeypatch.setattr(requeue, "ended_by_slurm", lambda job: "")
    return tmp_path / "runs"


def leave(status: str, **more: Any) -> None:
    write_json(TASK.folder / "run.json", asdict(Record(TASK.id, "linear", config={}, status=status, **more)))  # type: ignore[arg-type]


def killed() -> bool:
    return should_requeue(TASK, 137, None, "12", "the-log")


def test_a_killed_job_returns_until_it_gets_no_further() -> None:
    leave("running")
    assert [killed() for _ in range(MAX_KILLS_WITHOUT_PROGRESS)] == [True] * MAX_KILLS_WITHOUT_PROGRESS
    (TASK.folder / "metrics.jsonl").write_text('{"step": 7}\n')
    assert [killed() for _ in range(MAX_KILLS_WITHOUT_PROGRESS + 1)] == [True] * MAX_KILLS_WITHOUT_PROGRESS + [False]
    record = read_record(TASK.folder)
    assert record is not None
    assert record.status == "failed"
    assert "killed 4 times in a row" in (record.error or "")
    assert all(json.loads(line)["log"] == "the-log" for line in (TASK.folder / ATTEMPTS).read_text().splitlines())


def test_a_cancelled_job_does_not_return(monkeypatch: pytest.MonkeyPatch) -> None:
    leave("running")
    monkeypatch.setattr(requeue, "runs_on", lambda job: False)
    assert not killed()
    record = read_record(TASK.folder)
    assert record is not None
    assert record.status == "running"  # so that the next launch goes on with it


@pytest.mark.parametrize("code", [None, 130])
def test_a_job_whose_time_limit_came_too_early_returns_until_it_gets_no_further(
    monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    leave("interrupted")
    monkeypatch.setattr(requeue, "runs_on", lambda job: False)
    monkeypatch.setattr(requeue, "ended_by_slurm", lambda job: "time limit")
    told = [should_requeue(TASK, code, None, "12", "the-log") for _ in range(MAX_KILLS_WITHOUT_PROGRESS + 1)]
    assert told == [True] * MAX_KILLS_WITHOUT_PROGRESS + [False]
    record = read_record(TASK.folder)
    assert record is not None
    assert "time limit ends before it saves: more hours, or signal_delay_s" in (record.error or "")


def test_a_job_that_is_preempted_by_cancelling_it_returns_until_it_gets_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave("interrupted")
    monkeypatch.setattr(requeue, "runs_on", lambda job: False)
    monkeypatch.setattr(requeue, "ended_by_slurm", lambda job: "preemption")
    allowed = MAX_PREEMPTIONS_WITHOUT_PROGRESS
    returns = [should_requeue(TASK, None, None, "12", "the-log") for _ in range(allowed + 1)]
    assert returns == [True] * allowed + [False]
    record = read_record(TASK.folder)
    assert record is not None
    assert record.error == f"preempted {allowed + 1} times in a row without any progress"


RECORD = (
    "JobId=12 JobState={} Reason=None StartTime=2026-11-25T20:16:49 EndTime=x PreemptTime={} Comment=JobState=PENDING"
)


@pytest.mark.parametrize(
    ("reason", "record", "ending"),
    [
        ("TimeLimit", "", "time limit"),
        ("None", RECORD.format("COMPLETING", "2026-11-25T20:16:53"), "preemption"),
        ("None", RECORD.format("PREEMPTED", "2026-11-25T20:16:53"), "preemption"),
        ("None", RECORD.format("COMPLETING", "None"), ""),  # by scancel
        ("None", RECORD.format("COMPLETING", "2026-11-25T20:11:00"), ""),  # of an earlier start
        ("None", RECORD.format("RUNNING", "2026-11-25T20:16:53"), ""),
        ("None", "", ""),
    ],
)
def test_what_slurm_ends_by_itself_is_told_from_what_was_cancelled(
    reason: str, record: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ask", lambda *command, timeout: reason if command[0] == "squeue" else record)
    assert worker.ended_by_slurm("12") == ending


def test_a_job_that_is_ended_for_another_reason_than_its_time_limit_is_left_alone() -> None:
    leave("running")
    assert not should_requeue(TASK, None, None, "12", "the-log")
    record = read_record(TASK.folder)
    assert record is not None
    assert record.status == "running"
    assert not (TASK.folder / ATTEMPTS).exists()


def test_the_error_of_whatever_rank_failed_is_kept_though_the_others_were_killed() -> None:
    leave("running")
    assert not should_requeue(TASK, 137, "rank 3: ValueError: deliberate", "12", "the-log")
    record = read_record(TASK.folder)
    assert record is not None
    assert (record.status, record.error) == ("failed", "rank 3: ValueError: deliberate")


@pytest.mark.parametrize(
    ("code", "text", "retried"),
    [
        (137, "out of memory", True),
        (139, "segmentation fault", True),
        (135, "shared memory", True),
        (152, "CPU time limit", False),
        (132, "another processor", False),
        (192, "exit code 192", False),
        (127, "not found on the node", False),
        (255, "exit code 255", False),
    ],
)
def test_an_exit_code_says_what_it_means_and_only_chance_is_retried(code: int, text: str, retried: bool) -> None:
    leave("running")
    assert should_requeue(TASK, code, None, "12", "the-log") is retried
    assert text in explain(code).text
    assert ("memory" in explain(code).text) == (code in (137, 135))
    record = read_record(TASK.folder)
    assert record is not None
    assert (text in (record.error or "")) is not retried


def test_a_job_whose_parent_is_not_done_runs_nothing_and_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM forgets failed jobs, and then starts what waited for them."""
    task = replace(TASK, parents={"pretrain": "intl-s0-0000"})
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr(worker, "PARENTS_S", 0.0)
    with pytest.raises(SystemExit) as ended:
        worker._require_parents(task)
    assert ended.value.code == PARENT_MISSING
    assert not should_requeue(task, PARENT_MISSING, None, "12", "the-log")
    assert read_record(task.folder) is None


LOST = "RuntimeError: [pair.cc:545] Read error [127.0.0.1]:4534: Connection reset by peer."


@pytest.mark.parametrize("status", ["running", "failed"])
def test_ranks_that_failed_because_another_was_killed_do_not_hide_it(status: str) -> None:
    leave(status, error=LOST if status == "failed" else None)
    assert should_requeue(TASK, 137, f"rank 1: {LOST}", "12", "the-log")


def test_the_cause_goes_before_its_consequences_in_other_ranks(tmp_path: Path) -> None:
    for rank, told in enumerate([LOST, "Traceback\nValueError: deliberate", LOST]):
        cloudpickle_dump(("error", told), JobPaths(tmp_path, "12", rank).result_pickle)
    assert requeue._error(tmp_path, "12", 4) == "rank 1: ValueError: deliberate"


def test_processes_that_end_before_they_can_say_why_leave_a_failure_that_names_the_log() -> None:
    assert not should_requeue(TASK, 1, None, "12", "the-log")
    record = read_record(TASK.folder)
    assert record is not None
    assert record.status == "failed"
    assert record.error == "ended with exit code 1, and did not say why; see the-log"


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("failed", 137)])
def test_the_batch_script_succeeds_where_the_run_was_done_before_the_kill(
    status: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    DelayedSubmission(Worker(TASK)).dump(JobPaths(tmp_path, "12").submitted_pickle)
    cloudpickle_dump(("success", None), JobPaths(tmp_path, "12").result_pickle)
    leave(status)
    assert main(tmp_path, 137) == code
