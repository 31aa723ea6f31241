"""Jobs that are forked from a process that has done their imports are as isolated as processes started for them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from slurm import local_jobs
from slurm.clusters import load_preset
from slurm.graph import Job
from slurm.local_jobs import ForkedJob, LocalJobs, RunningJob, SubmititJob
from slurm.planning import build_graph
from slurm.sweep import load_sweep
from slurm.worker import job_environment
from tests.support.launching import ROOT, log, prepare, wait_until, write_sweep
from whitebench.records import read_record

LAUNCH = [sys.executable, str(ROOT / "slurm" / "launch_sweep.py")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare(tmp_path, monkeypatch, "two", "kind: local\nslots: 2\n")


def planned(place: Path, function: str, **options: Any) -> list[Job]:
    sweep = write_sweep(place, {"pretrain": {"function": function, "options": options}}, seeds=3)
    return build_graph(load_sweep(str(sweep), [], []), load_preset("two")).work


def finish(handle: RunningJob) -> None:
    wait_until(handle.done)


def states(jobs: list[Job]) -> list[dict[str, Any]]:
    return [json.loads((job.folder / "state.json").read_text()) for job in jobs]


@pytest.fixture
def starter(place: Path) -> Any:
    jobs = LocalJobs(place / "launch", set(), job_environment(threads=1))
    yield jobs
    jobs.close()


def test_forked_jobs_share_nothing_but_imports(place: Path, starter: LocalJobs) -> None:
    jobs = planned(place, "state")
    for job in jobs:
        handle = starter.start(job, {**job_environment(1), "ONLY_OF": job.key}, [])
        assert isinstance(handle, ForkedJob)
        finish(handle)
        assert handle.log.read_text().count(f"the log of {job.task.id}") == 1
    found = states(jobs)
    assert len({state["process"] for state in found}) == 3
    assert {state["parent"] for state in found} == {starter.servers[0].process.pid}
    assert [state["environment"]["ONLY_OF"] for state in found] == [job.key for job in jobs]
    assert all("TRACE_OF_A_JOB" not in state["environment"] for state in found)
    assert [state["trace"] for state in found] == [None] * 3
    assert len({state["draw"] for state in found}) == 3


def test_a_forked_job_s_process_is_as_one_started_for_it(place: Path, starter: LocalJobs) -> None:
    forked, started = planned(place, "state")[:2]
    finish(starter.start(forked, job_environment(1), []))
    finish(SubmititJob(starter.folder / "started", started, job_environment(1), []))
    a, b = states([forked, started])
    for kind in ("affinity", "blocked", "handlers", "threads"):
        assert a[kind] == b[kind], kind
    own = {"SUBMITIT_FOLDER", "SUBMITIT_LOCAL_JOB_ID"}
    of_the_controller = {name for name in b["environment"] if name.startswith("SUBMITIT")} | {"LC_CTYPE"}
    differing = {
        name
        for name in a["environment"].keys() | b["environment"].keys()
        if a["environment"].get(name) != b["environment"].get(name)
    }
    assert differing - own <= of_the_controller
    assert a["descriptors"] <= b["descriptors"] + 1
    commands = [json.loads((job.folder / "run.json").read_text())["command"] for job in (forked, started)]
    assert all("submitit.core._submit" in command for command in commands)


@pytest.mark.parametrize("kind", [{"threads": 2}, {"processes": 2}])
def test_jobs_of_several_threads_or_processes_are_started_not_forked(
    place: Path, starter: LocalJobs, kind: dict[str, int]
) -> None:
    from dataclasses import replace

    job = planned(place, "count")[0]
    job = replace(job, resources=replace(job.resources, **kind))
    handle = starter.start(job, job_environment(job.resources.threads), [])
    assert isinstance(handle, SubmititJob)
    finish(handle)
    record = read_record(job.folder)
    assert record is not None
    assert record.metrics["threads"] == str(job.resources.threads)


def test_a_change_of_the_code_is_run_by_the_next_job(
    place: Path, starter: LocalJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = planned(place, "state", seconds=2.0)
    module = place / "project" / "pretrain" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text("a = 1\n")
    monkeypatch.setattr(local_jobs, "ROOT", place / "project")
    starter.code = local_jobs.code_state()
    first = starter.start(jobs[0], job_environment(1), [])
    module.write_text("a = 2\n")
    second = starter.start(jobs[1], job_environment(1), [])
    third = starter.start(jobs[2], job_environment(1), [])
    for handle in (first, second, third):
        finish(handle)
    before, after, last = (state["parent"] for state in states(jobs))
    assert before == starter.servers[0].process.pid != after
    assert after == last == starter.servers[1].process.pid
    wait_until(lambda: starter.servers[0].process.poll() == 0)


def test_a_process_with_threads_is_not_forked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), os.environ["PYTHONPATH"]]))
    jobs = LocalJobs(place / "launch", set(), job_environment(1))
    handle = jobs.start(planned(place, "count")[0], job_environment(1), [])
    assert isinstance(handle, SubmititJob)
    finish(handle)
    jobs.close()


def test_the_death_of_the_server_ends_neither_its_jobs_nor_the_launch(place: Path, starter: LocalJobs) -> None:
    jobs = planned(place, "state", seconds=2.0)
    first = starter.start(jobs[0], job_environment(1), [])
    starter.servers[0].process.kill()
    second = starter.start(jobs[1], job_environment(1), [])
    assert not first.done()
    for handle, job in ((first, jobs[0]), (second, jobs[1])):
        finish(handle)
        record = read_record(job.folder)
        assert record is not None
        assert record.status == "done"


def test_however_a_job_dies_the_others_are_done(place: Path, launch: Any) -> None:
    ways = ["SIGKILL", "SIGSEGV", "SIGABRT", "exit", "memory"]
    stages = {"pretrain": {"function": "perish", "options": {"ways": ways}}, "linear": {"function": "count"}}
    code, shown = launch(write_sweep(place, stages, seeds=7), "--cluster", "two")
    assert code == 1
    assert shown.count("its process died") == 4
    assert shown.count("MemoryError") == 1
    assert [line["stage"] for line in log(place) if "end" in line].count("linear") == 2


def test_ctrl_c_ends_the_jobs_and_the_process_they_are_forked_from(place: Path) -> None:
    options = {"to": 100, "hold": 3, "every": 0.05}
    sweep = write_sweep(place, {"pretrain": {"function": "count", "options": options}})
    with subprocess.Popen([*LAUNCH, sweep, "--cluster", "two"], start_new_session=True) as process:
        wait_until(lambda: len(log(place)) == 2)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) == 3
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    assert not [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_stops_jobs_only_once_they_are_saved(place: Path, number: signal.Signals) -> None:
    options = {"to": 100, "hold": 3, "every": 0.05}
    sweep = write_sweep(place, {"pretrain": {"function": "count", "options": options}}, seeds=1)
    with subprocess.Popen([*LAUNCH, sweep, "--cluster", "two"], start_new_session=True) as process:
        wait_until(lambda: bool(log(place)))
        os.killpg(process.pid, number)
        assert process.wait(60) == 130
    record = json.loads(next((place / "runs" / "pretrain").glob("*/run.json")).read_text())
    assert record["status"] == "interrupted"


def test_a_forked_training_leaves_the_same_bytes_as_one_in_a_process_of_its_own(
    place: Path, launch: Any, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHITEBENCH_DATA", str(tiny_root))
    settings = ["data.dataset=tiny", "schedule.epochs=1", "batch=64", "monitor.knn_every=1"]
    path = place / "mine.yaml"
    path.write_text("recipes: [sample/intl]\nseeds: [0]\nstages: {knn: {}}\n")
    out = f"sweep.stages.leaderboard.out={place / 'tables'}"
    assert launch(path, "--cluster", "two", out, *settings)[0] == 0
    forked = {path.parent.parent.name: path.parent for path in (place / "runs").glob("*/*/run.json")}

    monkeypatch.setenv("WHITEBENCH_RUNS", str(place / "other"))
    pretrain = [sys.executable, "-m", "pretrain", "sample/intl", *settings, "seed=0"]
    subprocess.run(pretrain, check=True, capture_output=True, cwd=ROOT)
    started = place / "other" / "pretrain" / forked["pretrain"].name
    for name in ("backbone.safetensors", "checkpoint.pt"):
        assert (started / name).read_bytes() == (forked["pretrain"] / name).read_bytes()
    record = read_record(forked["knn"])
    assert record is not None
    command = [sys.executable, "-m", "pretrain.evaluate", "knn", "--ckpt", str(started)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    other = read_record(place / "other" / "knn" / record.id)
    assert other is not None
    assert other.metrics == record.metrics
    assert other.code == record.code
