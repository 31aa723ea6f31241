"""`--status` of sweeps of any size on terminals of any width."""

from pathlib import Path

import pytest

from slurm.clusters import Preset, Share
from slurm.graph import Graph, Job, Resources
from slurm.job_queue import Queued
from slurm.job_state import JobState, read_states
from slurm.planning import build_graph
from slurm.stages import LEADERBOARD, Task
from slurm.status import Status, status_text
from slurm.sweep import load_sweep
from whitebench.records import Record

REASON = "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"


@pytest.fixture(autouse=True)
def runs(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHITEBENCH_RUNS", f"{tmp_path}/runs")


def sweep(cells: int, state: str = "queued", error: str = "") -> Status:
    """pretrain -> linear, convert -> 5 x detect; pretraining runs in every second cell, the others are in `state`."""
    jobs: list[Job] = []
    states: dict[str, JobState] = {}
    stages = [("pretrain", None), ("linear", None), ("convert", None), *(("detect", seed) for seed in range(5))]
    for cell in range(cells):
        for stage, seed in stages:
            task = Task(stage, "imagenet1k/intl-100ep", id=f"{cell}-{seed}", seed=seed)
            column = stage if seed is None else f"{stage}:{seed}"
            name = f"imagenet1k/intl-100ep seed={cell} optimizer.lr=0.1"
            job = Job(f"{stage}/{task.id}", column, name, (), Resources(), task)
            jobs.append(job)
            running = stage == "pretrain" and cell % 2 == 0
            last = {"epoch": 3, "epochs": 100, "images_per_s": 2000.0}
            states[job.key] = (
                JobState("running", queue_id="12_3", node="n17", last=last, record=Record("x", stage, {}))
                if running
                else JobState(state, queue_id="41830320_0", queue_reason=REASON, error=error)  # type: ignore[arg-type]
            )
    last_task = Task(LEADERBOARD, "", id="mine")
    keys = tuple(job.key for job in jobs)
    return Status(Graph("mine", [*jobs, Job("l", LEADERBOARD, "", keys, Resources(), last_task)]), states)


@pytest.mark.parametrize("width", [30, 60, 80, 100, 160])
def test_a_cell_is_one_line_that_fits_and_a_reason_is_told_once(width: int) -> None:
    text = status_text(sweep(cells=12), width)
    table, _, rest = text.partition("\n\n")
    assert len(table.splitlines()) == 1 + 12
    assert max(map(len, table.splitlines())) <= width
    assert text.count(REASON) == 1
    assert "90 queued: Nodes required" in rest
    assert "on n17" in rest


def test_seeds_of_a_stage_are_one_column() -> None:
    header, first, *_ = status_text(sweep(cells=2), 160).splitlines()
    assert header.split() == ["pretrain", "linear", "convert", "detect"]
    assert first.endswith("5/5 queued")


def test_a_large_sweep_is_summed_up_by_stage_and_its_failures_are_grouped() -> None:
    lines = status_text(sweep(cells=2000, state="failed", error="job 7 on node 3: no room"), 80).splitlines()
    assert len(lines) < 40
    assert lines[0].split() == ["2000", "cells", "jobs", "running", "failed"]
    assert lines[1].split() == ["pretrain", "2000", "1000", "1000"]
    assert lines[4].split() == ["detect", "10000", "-", "10000"]
    assert any("and 9999 more like it" in line for line in lines)


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("RUNNING", "running"),
        ("COMPLETING", "running"),
        ("SUSPENDED", "stalled: suspended by SLURM"),
        ("STOPPED", "stalled: suspended by SLURM"),
        ("PENDING", "queued"),
    ],
)
def test_a_suspended_job_is_neither_queued_nor_simply_running(state: str, shown: str) -> None:
    graph = sweep(cells=1).graph
    job = graph.work[0]
    states = read_states(graph, {job.key: Queued("7", state, node="n1", seconds=60.0)})
    result = states[job.key]
    assert f"{result.label}{f': {result.stalled}' if result.stalled else ''}" == shown
    assert (shown in status_text(Status(graph, states))) or result.label == "running"


def test_the_leaderboard_asks_for_no_more_cores_than_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("recipes: [sample/random]\nseeds: [0]\nstages: {pretrain: {}, knn: {}, leaderboard: {}}\n")
    graph = build_graph(load_sweep(str(path), [], []), Preset(cpus=64, memory_gb=100.0))
    assert {job.stage: job.resources.cpus for job in graph.work} == {"pretrain": 64, "knn": 64}
    assert (graph.leaderboard.resources.cpus, graph.leaderboard.resources.memory_gb) == (1, 8.0)
    small = build_graph(load_sweep(str(path), [], []), Preset(memory_gb=2.0))
    assert small.leaderboard.resources.memory_gb == 2.0
    chosen = Preset(cpus=64, memory_gb=100.0, stages={"leaderboard": Share(cpus=3, memory_gb=20.0)})
    resources = build_graph(load_sweep(str(path), [], []), chosen).leaderboard.resources
    assert (resources.cpus, resources.memory_gb) == (3, 20.0)
