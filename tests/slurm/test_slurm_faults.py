"""Faults of processes, nodes and the controller: nothing is lost, and nothing is run twice. On a cluster of our own."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.job_queue import NEVER
from tests.conftest import Disk
from tests.support.launching import log, prepare, wait_until, write_sweep
from tests.support.own_cluster import NoCluster, own_cluster

pytestmark = [pytest.mark.slurm, pytest.mark.long]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    try:
        with own_cluster():
            yield prepare(tmp_path, monkeypatch, "lab", "kind: slurm\nsignal_delay_s: 5\n")
    except NoCluster as reason:
        pytest.skip(str(reason))


def attempts(place: Path) -> dict[str, dict[str, Any]]:
    """Id of each run to what its latest job has noted."""
    found = {}
    for path in (place / "runs" / "pretrain").glob("*/attempts.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = lines[-1]
    return found


def queue_is_empty() -> bool:
    told = subprocess.run(["squeue", "-h"], capture_output=True, text=True)
    return told.returncode == 0 and not told.stdout.strip()


def assert_all_counted_once(place: Path, cells: int, to: int) -> None:
    ends = [line["id"] for line in log(place) if "end" in line]
    assert len(ends) == len(set(ends)) == cells
    counts = [int(path.read_text()) for path in (place / "runs" / "pretrain").glob("*/count")]
    assert counts == [to] * cells
    records = [json.loads(path.read_text()) for path in (place / "runs" / "pretrain").glob("*/run.json")]
    assert [record["status"] for record in records] == ["done"] * cells


def test_sigkill_at_twenty_random_moments_loses_nothing(place: Path, launch: Any) -> None:
    chosen, killed = random.Random(0), 0
    sweep = write_sweep(place, {"pretrain": {"function": "count", "options": {"to": 200, "every": 0.1}}}, seeds=7)
    launch(sweep, "--cluster", "lab")
    end = time.monotonic() + 500
    while killed < 20 and time.monotonic() < end:
        time.sleep(chosen.uniform(0.0, 1.5))
        alive = [
            line["pid"]
            for line in attempts(place).values()
            if "pid" in line and b"submitit" in _command_line(line["pid"])
        ]
        if alive:
            os.kill(chosen.choice(alive), signal.SIGKILL)
            killed += 1
        elif queue_is_empty():
            break
    wait_until(queue_is_empty, 300)
    assert killed == 20
    assert_all_counted_once(place, cells=7, to=200)


def test_a_restarted_controller_and_a_node_that_goes_down_lose_nothing(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count", "options": {"to": 400, "every": 0.1}}}, seeds=2)
    launch(sweep, "--cluster", "lab")
    wait_until(lambda: len([line for line in log(place) if "from" in line]) == 2)
    state = Path(os.environ["CLUSTER_STATE"])
    _end(state / "slurmctld.pid", signal.SIGTERM)
    code = subprocess.run(["squeue", "-h"], capture_output=True, timeout=60).returncode
    assert code != 0
    subprocess.run(["slurmctld"], check=True)
    wait_until(lambda: subprocess.run(["scontrol", "ping"], capture_output=True).returncode == 0, 60)
    running = subprocess.run(["squeue", "-h", "-t", "running", "-o", "%N"], capture_output=True, text=True)
    node = running.stdout.split()[0]
    _end(state / f"slurmd.{node}.pid", signal.SIGKILL)
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    wait_until(lambda: not any(b"submitit" in _command_line(line["pid"]) for line in _on(place, node)), 60)
    subprocess.run(["slurmd", "-N", node], check=True)
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=True)
    wait_until(queue_is_empty, 300)
    assert_all_counted_once(place, cells=2, to=400)


def test_what_a_killed_controller_forgets_or_holds_the_next_launch_submits(place: Path, launch: Any) -> None:
    """Killed, it has not kept the last seconds: SLURM drops young jobs, or starts them beside their old selves."""
    sweep = write_sweep(place, {"pretrain": {"function": "count", "options": {"to": 100, "every": 0.1}}}, seeds=3)
    launch(sweep, "--cluster", "lab")
    wait_until(lambda: len([line for line in log(place) if "from" in line]) == 3)
    _end(Path(os.environ["CLUSTER_STATE"]) / "slurmctld.pid", signal.SIGKILL)
    subprocess.run(["slurmctld"], check=True)
    time.sleep(10)  # it sorts out who is who
    for _ in range(3):
        wait_until(nothing_moves, 120)
        launch(sweep, "--cluster", "lab")
    wait_until(queue_is_empty, 120)
    assert_all_counted_once(place, cells=3, to=100)


def nothing_moves() -> bool:
    """Whether all that is left in the queue is held, or waits for that."""
    told = subprocess.run(["squeue", "-h", "-o", "%T %r"], capture_output=True, text=True)
    stuck = ("PENDING Dependency", *(f"PENDING {reason}" for reason in NEVER))
    return told.returncode == 0 and all(line in stuck for line in told.stdout.splitlines())


def test_a_time_limit_that_runs_out_is_crossed_by_who_saves_in_time_and_by_who_is_killed(
    place: Path, launch: Any
) -> None:
    """A minute, SLURM's shortest; each run needs more than two. One hears the warning, one is deaf at first."""
    (place / "short.yaml").write_text("kind: slurm\nsignal_delay_s: 5\nhours: 0.016\n")
    stages = {
        "pretrain": {"function": "count", "options": {"to": 1500, "every": 0.1}},
        "linear": {"function": "deaf", "options": {"to": 1600, "every": 0.1}, "needs": []},
    }
    sweep = write_sweep(place, stages, seeds=1)
    launch(sweep, "--cluster", "short")
    told = subprocess.run(["squeue", "-h", "-o", "%l"], capture_output=True, text=True, check=True).stdout.split()
    assert "1:00" in told
    wait_until(queue_is_empty, 600)
    for stage, to in (("pretrain", 1500), ("linear", 1600)):
        lines = [line for line in log(place) if line["stage"] == stage]
        starts = [line["from"] for line in lines if "from" in line]
        assert len([line for line in lines if "end" in line]) == 1
        assert starts == sorted(set(starts)), "a start went back"
        assert len(starts) >= 2
        (folder,) = (place / "runs" / stage).iterdir()
        record = json.loads((folder / "run.json").read_text())
        assert (record["status"], record["metrics"]["top1"]) == ("done", to)
        assert record["cost"]["restarts"] == len(starts) - 1


def test_a_disk_that_runs_full_ends_its_job_and_the_next_launch_goes_on(
    place: Path, launch: Any, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = disk(24)
    monkeypatch.setenv("WHITEBENCH_RUNS", str(runs))
    stages = {
        "pretrain": {"function": "count", "options": {"to": 20}},
        "linear": {"function": "hoard", "options": {"megabytes": 30}},
        "after": {"function": "count", "needs": ["linear"]},
    }
    sweep = write_sweep(place, stages, seeds=1)
    launch(sweep, "--cluster", "lab")
    wait_until(queue_is_empty, 120)
    jobs = {job["stage"]: job["state"] for job in json.loads(launch(sweep, "--status", "--json")[1])["jobs"]}
    assert jobs == {"pretrain": "done", "linear": "interrupted", "after": "new"}
    # the log is on the full disk, too, and ends in the middle of what it had to say
    disk(80)
    launch(sweep, "--cluster", "lab")
    wait_until(queue_is_empty, 120)
    ends = [json.loads(line)["stage"] for line in (runs / "log.jsonl").read_text().splitlines() if '"end"' in line]
    assert ends == ["pretrain", "linear", "after"]


def test_two_hundred_tiny_cells_go_through_arrays_of_four(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count"}}, seeds=200)
    shown = launch(sweep, "--cluster", "lab")[1]
    assert "submitted 200 jobs and the leaderboard by 51 calls of sbatch" in shown
    wait_until(queue_is_empty, 900)
    assert_all_counted_once(place, cells=200, to=1)


def _on(place: Path, node: str) -> list[dict[str, Any]]:
    """What jobs have noted that the queue does not show as running: those of the node that is down."""
    told = subprocess.run(["squeue", "-h", "-r", "-t", "running", "-o", "%i"], capture_output=True, text=True)
    return [line for line in attempts(place).values() if line["job"] not in told.stdout.split()]


def _command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def _end(file: Path, number: signal.Signals) -> None:
    process = int(file.read_text())
    os.kill(process, number)
    wait_until(lambda: not _command_line(process), 30)
