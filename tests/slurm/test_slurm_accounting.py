"""The launcher on a cluster that keeps an accounting database: accounts are enforced, and sacct tells of every job.

All of `test_slurm.py` runs on such a cluster too, among the long tests.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import log, prepare, wait_until, write_sweep
from tests.support.own_cluster import NoCluster, own_cluster
from whitebench.errors import UserError

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    try:
        with own_cluster(accounting=True, settings="AccountingStorageEnforce=associations,limits,qos"):
            yield prepare(tmp_path, monkeypatch, "lab", "kind: slurm\nsignal_delay_s: 5\naccount: whitebench\n")
    except NoCluster as reason:
        pytest.skip(str(reason))


def test_limits_of_accounting_shorten_jobs_and_make_waves(place: Path, launch: Any) -> None:
    limits = ["MaxSubmitJobsPerUser=4", "MaxWall=00:10:00"]
    subprocess.run(["sacctmgr", "-i", "-Q", "modify", "qos", "normal", "set", *limits], check=True)
    (place / "site.yaml").write_text("kind: slurm\nsignal_delay_s: 5\naccount: whitebench\nqos: normal\nhours: 5\n")
    sweep = write_sweep(place, {"pretrain": {"function": "count"}, "linear": {"function": "count"}}, seeds=3)
    shown = launch(sweep, "--cluster", "site")[1]
    assert "pretrain: SLURM allows 0.166667 h, less than the 5 h that are asked for" in shown
    assert "3 jobs wait for room in SLURM's queue (limit of 4 jobs in the queue)" in shown
    wait_until(lambda: not subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout, 120)
    jobs = json.loads(launch(sweep, "--status", "--json")[1])["jobs"]
    assert [job["state"] for job in jobs] == ["done"] * 6


def accounted() -> dict[str, str]:
    """Job id, of an array's task `<array>_<task>`, to the last state in the database."""
    told = subprocess.run(
        ["sacct", "-X", "-n", "-P", "-S", "now-1hour", "-o", "JobID,State"], capture_output=True, text=True, check=True
    )
    return dict(line.split("|") for line in told.stdout.splitlines())


def test_a_sweep_with_a_kill_and_a_failure_is_told_alike_by_status_and_by_sacct(
    place: Path, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "stranger.yaml").write_text("kind: slurm\naccount: nobody-s\n")
    stages = {"pretrain": {"function": "die"}, "linear": {"function": "count"}, "knn": {"function": "fail"}}
    sweep = write_sweep(place, stages)
    with pytest.raises(UserError, match=r"sbatch refused pretrain: sbatch: error: .*nvalid account"):
        launch(sweep, "--cluster", "stranger")

    launch(sweep, "--cluster", "lab")
    wait_until(lambda: not subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout, 120)
    jobs = json.loads(launch(sweep, "--status", "--json")[1])["jobs"]
    states = {"pretrain": "done", "linear": "done", "knn": "failed"}
    assert {(job["stage"], job["state"]) for job in jobs} == set(states.items())
    assert len([line for line in log(place) if line["stage"] == "pretrain" and "from" in line]) == 2

    wait_until(lambda: not {"RUNNING", "PENDING"} & set(accounted().values()), 30)
    found = accounted()
    words = {"done": "COMPLETED", "failed": "FAILED"}
    for job in jobs:
        attempts = [json.loads(line) for line in (Path(job["folder"]) / "attempts.jsonl").read_text().splitlines()]
        assert found[attempts[-1]["job"]] == words[job["state"]]

    monkeypatch.setenv("PATH", str(place))  # and without SLURM's commands, from the folders alone
    assert json.loads(launch(sweep, "--status", "--json")[1])["jobs"] == jobs
