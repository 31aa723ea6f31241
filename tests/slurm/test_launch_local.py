"""The same graph on this machine: slots, dependencies, failures, Ctrl-C, and going on where it was.

Stages of `tests/support/slurm_stages.py` stand in for the real ones, so that this is about scheduling alone.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from slurm.clusters import load_preset
from slurm.planning import build_graph
from slurm.sweep import load_sweep
from tests.support.launching import ROOT, log, prepare, wait_until, write_sweep
from tests.support.lock_files import write_lock_of
from whitebench.errors import UserError

LAUNCH = [sys.executable, str(ROOT / "slurm" / "launch_sweep.py")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare(tmp_path, monkeypatch, "two", "kind: local\nslots: 2\n")


def times(place: Path) -> dict[str, tuple[float, float]]:
    """Id to start and end of each run that came to its end."""
    starts = {line["id"]: line["start"] for line in log(place) if "start" in line}
    return {line["id"]: (starts[line["id"]], line["end"]) for line in log(place) if "end" in line}


def counts(place: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted((place / "runs" / "pretrain").glob("*/count"))]


def test_a_whole_graph_runs_in_the_order_of_need_and_within_its_slots(place: Path, launch: Any) -> None:
    stages = {
        "pretrain": {"function": "count", "options": {"to": 3, "every": 0.1}},
        "linear": {"function": "count"},
        "own": {"function": "count", "needs": ["linear", "pretrain"], "seeds": [0, 1]},
    }
    code, shown = launch(write_sweep(place, stages), "--cluster", "two")
    assert code == 0
    plan = json.loads((place / "runs" / "sweeps" / "mine" / "plan.json").read_text())
    ran = times(place)
    assert len(ran) == 8
    for job in plan["jobs"][:-1]:
        assert all(ran[need.partition("/")[2]][1] <= ran[job["task"]["id"]][0] for need in job["needs"])
    moments = sorted([(start, 1) for start, _ in ran.values()] + [(end, -1) for _, end in ran.values()])
    at_once = [sum(step for _, step in moments[: i + 1]) for i in range(len(moments))]
    assert max(at_once) <= 2
    assert shown.count("done ") == 8
    assert "top1 3.00" in shown
    record = json.loads(next((place / "runs" / "own").glob("*/run.json")).read_text())
    assert record["metrics"]["saw"] == {"pretrain": "3", "linear": "1"}
    assert record["metrics"]["threads"] == "1"
    assert (place / "tables" / "runs.csv").exists()

    before = log(place)
    code, shown = launch(place / "mine.yaml", "--cluster", "two")
    assert code == 0
    assert "0 of 8 jobs to do" in shown
    assert log(place) == before


def test_a_seed_is_complete_before_the_next_and_the_longest_chain_begins_first(place: Path) -> None:
    from slurm.local import _order

    stages = {
        "pretrain": {"function": "count", "hours": 2},
        "linear": {"function": "count", "hours": 0.1},
        "long": {"function": "count", "hours": 3, "recipes": ["sample/random"]},
    }
    sweep = write_sweep(place, stages, seeds=2, recipes=("sample/intl", "sample/random"))
    graph = build_graph(load_sweep(str(sweep), [], []), load_preset("two"))
    order = [(graph[key].cell, graph[key].stage) for key in _order(graph)]
    of_a_seed = [
        *((recipe, "linear") for recipe in ("intl", "random")),
        ("random", "long"),
        *((recipe, "pretrain") for recipe in ("random", "intl")),
    ]
    assert order == [(f"sample/{recipe} seed={seed}", stage) for seed in (0, 1) for recipe, stage in of_a_seed]


def test_a_failed_stage_stops_only_what_needs_it_and_runs_again_only_on_request(place: Path, launch: Any) -> None:
    stages = {
        "pretrain": {"function": "count"},
        "knn": {"function": "fail", "options": {"recipes": ["sample/random"], "unless": str(place / "mended")}},
        "after": {"function": "count", "needs": ["knn"]},
        "linear": {"function": "count"},
    }
    sweep = write_sweep(place, stages, seeds=1, recipes=("sample/intl", "sample/random"))
    code, shown = launch(sweep, "--cluster", "two")
    assert code == 1
    assert "ValueError: deliberate" in shown
    done = [line["stage"] for line in log(place) if "end" in line]
    assert sorted(done) == ["after", "knn", "linear", "linear", "pretrain", "pretrain"]

    status = json.loads(launch(sweep, "--status", "--json", "--cluster", "two")[1])
    found = {(job["cell"], job["stage"]): job for job in status["jobs"]}
    failed = found["sample/random seed=0", "knn"]
    assert failed["state"] == "failed"
    assert failed["error"] == "ValueError: deliberate"
    assert "deliberate" in Path(failed["log"]).read_text()
    assert found["sample/random seed=0", "after"]["state"] == "blocked"
    assert found["sample/intl seed=0", "after"]["state"] == "done"
    text = launch(sweep, "--status", "--cluster", "two")[1]
    assert "8 jobs: 6 done, 1 failed, 1 blocked" in text
    assert "knn failed: ValueError: deliberate (1 wait for it)" in text

    before = log(place)
    assert launch(sweep, "--cluster", "two")[0] == 1
    assert log(place) == before

    (place / "mended").touch()
    assert launch(sweep, "--cluster", "two", "--retry-failed")[0] == 0
    assert [line["stage"] for line in log(place)[len(before) :] if "end" in line] == ["knn", "after"]


def test_ctrl_c_stops_all_jobs_and_launching_again_goes_on(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count", "options": {"to": 6, "hold": 4}}})
    with subprocess.Popen(
        [*LAUNCH, sweep, "--cluster", "two"], stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        wait_until(lambda: counts(place) == [4, 4])
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and to all that it started
        assert process.wait(30) == 130
        assert b"interrupted" in process.communicate()[1]
    for line in log(place):
        assert not psutil.pid_exists(line["pid"])
    states = {json.loads(path.read_text())["status"] for path in (place / "runs" / "pretrain").glob("*/run.json")}
    assert states == {"interrupted"}

    assert launch(sweep, "--cluster", "two")[0] == 0
    assert counts(place) == [6, 6]
    assert [line["from"] for line in log(place) if "from" in line] == [0, 0, 4, 4]


def test_a_second_ctrl_c_kills_what_does_not_stop(place: Path) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "stubborn"}}, seeds=1)
    with subprocess.Popen([*LAUNCH, sweep, "--cluster", "two"], stdout=subprocess.PIPE) as process:
        wait_until(lambda: bool(log(place)))
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(4)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    wait_until(lambda: not psutil.pid_exists(log(place)[0]["pid"]), 10)


def test_a_job_that_was_killed_is_told_and_goes_on_with_the_next_launch(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "die"}, "linear": {"function": "count"}}, seeds=1)
    code, shown = launch(sweep, "--cluster", "two")
    assert code == 1
    assert "its process died" in shown
    assert "linear" not in {line["stage"] for line in log(place)}
    assert launch(sweep, "--cluster", "two")[0] == 0
    assert {line["stage"] for line in log(place)} == {"pretrain", "linear"}


def test_a_run_that_another_process_is_at_is_waited_for_not_run_twice(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count"}, "linear": {"function": "count"}}, seeds=1)
    assert launch(sweep, "--cluster", "two")[0] == 0
    record_path = next((place / "runs" / "pretrain").glob("*/run.json"))
    done = record_path.read_text()
    for path in (place / "runs" / "linear").glob("*/*"):
        path.unlink()
    record_path.write_text(json.dumps({**json.loads(done), "status": "running"}))
    holder = (
        "import sys; from pathlib import Path; from whitebench.locks import Lock; "
        "lock = Lock(Path(sys.argv[1])); lock.acquire(); print(flush=True); input()"
    )
    command = [sys.executable, "-c", holder, str(record_path.parent / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()

        def finish() -> None:
            time.sleep(2.0)
            record_path.write_text(done)

        threading.Thread(target=finish).start()
        before = len(log(place))
        assert launch(sweep, "--cluster", "two")[0] == 0
        other.communicate(b"\n")
    assert {line["stage"] for line in log(place)[before:]} == {"linear"}


def test_a_second_launcher_of_the_same_sweep_is_refused(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count"}})
    lock = place / "runs" / "sweeps" / "mine" / ".lock"
    lock.parent.mkdir(parents=True)
    write_lock_of(lock, "elsewhere", pid=4711)
    with pytest.raises(UserError, match=r"another launcher \(process 4711 on elsewhere\)"):
        launch(sweep, "--cluster", "two")
    assert not log(place)


def test_a_job_that_asks_for_a_gpu_is_refused_where_there_is_none(
    place: Path, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    sweep = write_sweep(place, {"pretrain": {"function": "count", "gpus": 1}})
    with pytest.raises(UserError, match="asks for 1 GPUs; this machine has 0"):
        launch(sweep, "--cluster", "local")


def test_debug_runs_all_in_this_process(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count"}, "linear": {"function": "count"}}, seeds=1)
    assert launch(sweep, "--cluster", "debug")[0] == 0
    assert {line["pid"] for line in log(place) if "pid" in line} == {os.getpid()}


def test_status_before_a_launch_says_so(place: Path, launch: Any) -> None:
    with pytest.raises(UserError, match="'mine' was not launched yet"):
        launch(write_sweep(place, {"pretrain": {"function": "count"}}), "--status", "--cluster", "two")


def test_help_and_status_import_nothing_heavy(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count"}}, seeds=1)
    assert launch(sweep, "--cluster", "debug")[0] == 0
    heavy = "{'torch', 'pydantic', 'numpy', 'pandas', 'submitit', 'psutil'} & sys.modules.keys()"
    for arguments in (["--help"], [str(sweep), "--status", "--cluster", "two"]):
        lines = [
            f"import sys; sys.argv[1:] = {arguments}",
            "from slurm.launch_sweep import main",
            f"try: main()\nfinally: print({heavy})",
        ]
        told = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
        assert told.stdout.endswith("set()\n"), told.stdout + told.stderr


def test_a_user_s_error_is_one_line_and_exit_code_2(place: Path) -> None:
    told = subprocess.run([*LAUNCH, "sampel", "--cluster", "local"], capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stderr.startswith("error: unknown sweep 'sampel'; did you mean 'sample'")
    assert told.stderr.count("\n") == 1
