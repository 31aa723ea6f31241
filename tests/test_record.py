"""The record of a run is whole at every moment, belongs to one process at a time, and says how the run ended."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.command import Interrupted, UserError, nearest, parse_seeds, run_command
from results.record import (
    Run,
    canonical,
    content_hash,
    file_hash,
    parse_record,
    plain_hash,
    read_metrics,
    read_record,
    run_id,
    stage_folder,
    write_atomically,
    write_json,
)

ROOT = Path(__file__).parents[1]
CONFIG = {"epochs": 2, "method": {"name": "intl"}}
CELL = {"recipe": "sample/intl", "method": "intl", "seed": 0, "dataset": "sample"}

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


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


# --- identity -------------------------------------------------------------------------------------------------------


@given(trees)
def test_a_hash_survives_being_written_and_read_again(tree: Any) -> None:
    plain = canonical(tree)
    assert (
        content_hash(tree) == content_hash(json.loads(json.dumps(plain))) == plain_hash(json.loads(json.dumps(plain)))
    )


@given(st.dictionaries(st.text(), trees, min_size=2))
def test_a_hash_does_not_depend_on_the_order_of_keys(tree: dict[str, Any]) -> None:
    assert content_hash(tree) == content_hash(dict(reversed(tree.items())))


@given(trees, trees)
def test_different_contents_have_different_hashes(a: Any, b: Any) -> None:
    same = json.dumps(canonical(a), sort_keys=True) == json.dumps(canonical(b), sort_keys=True)
    assert (content_hash(a) == content_hash(b)) == same


def test_values_that_mean_the_same_in_json_hash_alike() -> None:
    @dataclass
    class Section:
        sizes: tuple[int, ...]
        path: Path

    assert content_hash(Section((1, 2), Path("a/b"))) == content_hash({"sizes": [1, 2], "path": "a/b"})
    assert content_hash({"x": math.nan}) == content_hash({"x": None}) == content_hash({"x": math.inf})
    assert content_hash({1: 2}) == content_hash({"1": 2})


def test_numbers_that_are_written_differently_are_different_settings() -> None:
    """A config is text: whoever writes 1 or 1.0, 0.0 or -0.0 gets the hash of what is written."""
    assert len({content_hash(x) for x in (1, 1.0, True, 0, 0.0, -0.0, False, None, "1")}) == 9


def test_numpy_and_torch_scalars_are_plain_numbers_and_other_objects_are_refused() -> None:
    import numpy as np

    assert canonical({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True)}) == {"a": 0.5, "b": 3, "c": True}
    with pytest.raises(TypeError, match="object has no place in a record"):
        canonical({"x": object()})


def test_the_id_is_a_label_and_the_hash_of_the_config() -> None:
    assert run_id("intl-s0", CONFIG) == f"intl-s0-{content_hash(CONFIG)[:12]}"
    assert run_id("a", {"epochs": 1}) != run_id("a", {"epochs": 2})


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    script = """
        import os, sys
        from pathlib import Path
        from results import record
        os.fsync = lambda number: os.kill(os.getpid(), 9)  # written, not yet renamed
        record.write_atomically(Path(sys.argv[1]), b"new" * 100_000)
    """
    assert python(script, path).wait() == -signal.SIGKILL
    assert path.read_text() == "old"
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir() if p.is_file()] == [("run.json", "old")]


def test_readers_and_other_writers_always_see_a_whole_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "table.csv", [letter.encode() * 50_000 for letter in "abcd"]
    write_atomically(path, contents[0])

    def write(content: bytes) -> None:
        for _ in range(20):
            write_atomically(path, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["table.csv"]


def test_file_hash_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


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
        from results.record import Run
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


def test_a_second_process_is_refused_while_the_first_is_at_work() -> None:
    script = """
        import sys
        from results.record import Run
        with Run("pretrain", "intl-s0", {"epochs": 2, "method": {"name": "intl"}}, cell={}):
            print("open", flush=True)
            sys.stdin.read()
    """
    other = python(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(UserError, match="another process is at work on this run"), open_run():
        pass
    other.communicate()
    with open_run() as run:
        assert run.already_done


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


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)
    with pytest.raises(PermissionError):
        run_command(_denied)


def _denied() -> int:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_command_exits_with_what_its_main_returns() -> None:
    for returned, code in ((None, 0), (0, 0), (1, 1)):
        with pytest.raises(SystemExit) as exit_:
            run_command(lambda returned=returned: returned)
        assert exit_.value.code == code


def test_a_reader_that_leaves_is_no_error() -> None:
    script = """
        from results.command import run_command
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
    assert nearest("zzz", ["b", "a"]) == "; there are: a, b"
    assert nearest("zzz", []) == ""


@pytest.mark.parametrize("text", ["", "a", "0,0", "-1", "0,,1"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_seeds(text)


def test_seeds_are_read() -> None:
    assert parse_seeds("0,1,2") == [0, 1, 2]
    assert parse_seeds("7") == [7]
