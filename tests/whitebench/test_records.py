"""The record of a run is whole at every moment, belongs to one process at a time, and says how the run ended."""

import contextlib
import errno
import math
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from whitebench.errors import Interrupted, UserError, nearest, parse_seeds, run_command
from whitebench.files import write_json
from whitebench.records import Record, Run, parse_record, read_metrics, read_record, stage_folder

ROOT = Path(__file__).parents[2]
CONFIG = {"epochs": 2, "method": {"name": "intl"}}
CELL = {"recipe": "sample/intl", "method": "intl", "seed": 0, "dataset": "sample"}


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def open_run(config: Any = None, **changes: Any) -> Run:
    return Run("pretrain", "intl-s0", CONFIG if config is None else config, cell=CELL, **changes)


def python(script: str, *arguments: Path, **changes: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)], text=True, cwd=ROOT, **changes
    )


# --- how a run ends -------------------------------------------------------------------------------------------------


def test_a_run_that_ends_is_done_with_its_metrics_and_cost(runs: Path) -> None:
    with open_run(gpus=2) as run:
        assert read_record(run.folder).status == "running"  # type: ignore[union-attr]
        run.metrics["top1"] = 71.5
    record = read_record(run.folder)
    assert record is not None
    assert run.folder == stage_folder("pretrain", run.id) == runs / "pretrain" / run.id
    assert (record.status, record.metrics, record.error) == ("done", {"top1": 71.5}, None)
    assert record.ended is not None
    assert record.cost["gpu_s"] == pytest.approx(2 * record.cost["wall_s"])
    assert record.environment["python"]
    assert record.command.startswith("python ")


def test_phases_are_parts_of_the_cpu_time_and_add_up_over_restarts() -> None:
    for status in ("interrupted", "done"):
        with contextlib.suppress(Interrupted), open_run() as run:
            for _ in range(2):
                with run.phase("training"):
                    before = time.process_time()
                    while time.process_time() - before < 0.05:
                        pass
            if status == "interrupted":
                raise Interrupted
    record = read_record(run.folder)
    assert record is not None
    assert record.status == "done"
    assert 0.2 <= record.cost["cpu_s_training"] <= record.cost["cpu_s"]


def test_only_the_first_run_of_a_process_counts_what_came_before_it(runs: Path) -> None:
    script = """
        from whitebench.records import Run
        for seed in (0, 1):
            with Run("linear", "x", {"seed": seed}, cell={}) as run:
                print(run.record.cost.get("cpu_s_startup", 0.0))
    """
    with python(script, stdout=subprocess.PIPE) as process:
        first, second = map(float, process.communicate()[0].split())
    assert first > 0
    assert second == 0


def test_a_run_that_fails_says_so_and_keeps_the_traceback() -> None:
    run = open_run()
    with pytest.raises(ZeroDivisionError), run:
        _ = 1 / 0
    record = read_record(run.folder)
    assert record is not None
    assert (record.status, record.error) == ("failed", "ZeroDivisionError: division by zero")
    assert "1 / 0" in (run.folder / "error.txt").read_text()


@pytest.mark.parametrize("stop", [Interrupted("saved after step 7"), KeyboardInterrupt(), SystemExit(1)])
def test_a_run_that_is_stopped_is_interrupted_not_failed(stop: BaseException) -> None:
    run = open_run()
    with pytest.raises(type(stop)), run:
        raise stop
    record = read_record(run.folder)
    assert record is not None
    assert record.status == "interrupted"


def test_a_killed_run_stays_running_in_its_record_and_can_be_taken_up_by_another_process(runs: Path) -> None:
    script = """
        import os
        from whitebench.records import Run
        run = Run("pretrain", "intl-s0", {"epochs": 2, "method": {"name": "intl"}}, cell={})
        run.__enter__()
        os.kill(os.getpid(), 9)
    """
    assert python(script).wait() == -signal.SIGKILL
    assert read_record(open_run().folder).status == "running"  # type: ignore[union-attr]
    with open_run() as run:
        assert not run.already_done
    assert read_record(run.folder).cost["restarts"] == 1  # type: ignore[union-attr]


def test_a_done_run_is_not_touched_again() -> None:
    with open_run() as run:
        run.metrics["top1"] = 71.5
    before = (run.folder / "run.json").read_bytes()
    with open_run() as again:
        assert again.already_done
        assert again.metrics == {"top1": 71.5}
    assert (run.folder / "run.json").read_bytes() == before


def test_cost_is_summed_over_restarts() -> None:
    with pytest.raises(Interrupted), open_run() as run:
        raise Interrupted
    first = read_record(run.folder)
    assert first is not None
    first.cost["wall_s"] = 100.0
    write_json(run.folder / "run.json", first)
    with open_run():
        pass
    last = read_record(run.folder)
    assert last is not None
    assert 100 < last.cost["wall_s"] < 110
    assert last.started == first.started
    assert last.cost["restarts"] == 1


def test_a_resumed_run_keeps_the_code_of_its_earlier_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for git in ("1" * 40, "1" * 40, "2" * 40):
        monkeypatch.setattr("whitebench.environment._git_state", lambda git=git: {"git": git, "dirty": False})
        with pytest.raises(Interrupted), open_run() as run:
            raise Interrupted
    record = read_record(run.folder)
    assert record is not None
    assert [start["git"][0] for start in record.earlier] == ["1", "1"]
    assert record.resumed_under_other_code


def test_a_run_that_failed_before_it_began_was_not_resumed() -> None:
    run = open_run()
    write_json(run.folder / "run.json", Record(run.id, "pretrain", {}, status="failed"))
    with open_run() as run:
        pass
    record = read_record(run.folder)
    assert record is not None
    assert (record.earlier, record.resumed_under_other_code) == ([], False)


def run_in_another_process() -> subprocess.Popen[str]:
    """A process that is at work on the run of `open_run()` until its input ends."""
    script = """
        import sys
        from whitebench.records import Run
        with Run("pretrain", "intl-s0", {"epochs": 2, "method": {"name": "intl"}}, cell={}):
            print("open", flush=True)
            sys.stdin.read()
    """
    other = python(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    return other


def test_a_second_process_is_refused_while_the_first_is_at_work() -> None:
    other = run_in_another_process()
    with pytest.raises(UserError, match="another process is running this"), open_run():
        pass
    other.communicate()
    with open_run() as run:
        assert run.already_done


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_that_may_wait_finds_the_run_done_or_takes_it_over(killed: bool) -> None:
    other, said = run_in_another_process(), list[str]()

    def end_other(text: str) -> None:
        said.append(text)
        if killed:
            other.kill()
        other.communicate()

    with open_run(waiting=end_other) as run:
        assert run.already_done != killed
    assert [f"process {other.pid} on" in text for text in said] == [True]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    with open_run(folder=tmp_path / "here"):
        pass
    with pytest.raises(UserError, match="holds another run"), open_run({"epochs": 3}, folder=tmp_path / "here"):
        pass


# --- metrics --------------------------------------------------------------------------------------------------------


def test_a_line_cut_short_by_a_kill_is_left_out_and_rewinding_drops_what_comes_again() -> None:
    with open_run() as run:
        for step in (10, 20, 30):
            run.log(step=step, loss=1.0 / step, bad=math.nan)
        with open(run.folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 40, "lo')
        assert [line["step"] for line in read_metrics(run.folder)] == [10, 20, 30]
        assert read_metrics(run.folder)[0]["bad"] is None
        run.rewind(20)
        run.log(step=30, loss=0.5)
    assert [line["step"] for line in read_metrics(run.folder)] == [10, 20, 30]
    assert read_metrics(run.folder)[-1]["loss"] == 0.5


def test_artifacts_are_named_with_their_hash() -> None:
    with open_run() as run:
        (run.folder / "backbone.safetensors").write_bytes(b"abc")
        run.artifact("backbone", run.folder / "backbone.safetensors")
    record = read_record(run.folder)
    assert record is not None
    assert record.artifacts["backbone"]["path"] == "backbone.safetensors"
    assert record.artifacts["backbone"]["sha256"].startswith("ba7816bf")


# --- damaged records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b'{"schema": 1}',
        b'{"schema": 2, "id": "a", "stage": "b", "config": {}}',
        b'{"schema": 1, "id": "a", "stage"',
        b"[" * 100_000,
    ],
)
def test_a_damaged_record_is_a_user_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json: not a"):
        read_record(tmp_path)


def test_a_folder_without_a_record_has_none_and_an_unreadable_one_is_named(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UserError, match=r"run\.json"):
        read_record(tmp_path)


def test_keys_of_a_later_version_of_the_suite_do_not_hurt(tmp_path: Path) -> None:
    content = b'{"schema": 1, "id": "a-b", "stage": "knn", "config": {}, "colour": "green"}'
    assert parse_record(content, tmp_path).stage == "knn"


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("recipe.yaml: epoch: unknown key; did you mean 'epochs'?"), 2, "error: recipe.yaml: epoch"),
        (Interrupted("saved"), 130, "interrupted: saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x.beton"),
            2,
            "no space left on the disk of /data/x.beton",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "error: no space left on the disk"),
    ],
)
def test_what_its_user_can_mend_is_one_line_and_an_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    shown = capsys.readouterr()
    assert exit_.value.code == code
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out


def _denied() -> int:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_command_exits_with_what_its_main_returns() -> None:
    for returned, code in ((None, 0), (0, 0), (1, 1)):
        with pytest.raises(SystemExit) as exit_:
            run_command(lambda returned=returned: returned)
        assert exit_.value.code == code


def test_a_reader_that_leaves_is_no_error() -> None:
    script = """
        from whitebench.errors import run_command
        run_command(lambda: [print("x" * 100) for _ in range(10_000)] and None)
    """
    process = python(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 0


def test_unknown_names_are_answered_with_the_nearest_or_with_all() -> None:
    assert nearest("temprature", ["temperature", "groups"]) == "; did you mean 'temperature'?"
    assert nearest("zzz", ["b", "a"]) == "; valid: a, b"
    assert nearest("zzz", []) == ""


@pytest.mark.parametrize("text", ["", "a", "0,0", "-1", "0,,1", "1.5", str(2**63)])
def test_text_that_is_not_a_list_of_seeds_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="seed"):
        parse_seeds(text)


def test_seeds_are_read() -> None:
    assert parse_seeds("0,1,2") == [0, 1, 2]
    assert parse_seeds("7") == [7]
