"""What sites, shells and controllers do to a launch: on one real SLURM cluster, by the launcher's commands."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm.slurm_command import SlurmUnavailable
from tests.support.launching import ROOT, log, prepare, wait_until, write_sweep
from tests.support.own_cluster import NoCluster, own_cluster
from whitebench.errors import UserError

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]
LAUNCH = [sys.executable, str(ROOT / "slurm" / "launch_sweep.py")]
NODES = ("wb1", "wb2")
CANCELS = "PartitionName=cancel Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=0 DefaultTime=5 MaxTime=60"
"""A partition whose jobs are preempted by cancelling them, at once."""
ONE = {"pretrain": {"function": "count"}}
TWO = {**ONE, "linear": {"function": "count"}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    try:
        with own_cluster(settings=CANCELS):
            yield
    except NoCluster as reason:
        pytest.skip(str(reason))


@pytest.fixture
def place(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = prepare(tmp_path, monkeypatch, "lab", "kind: slurm\nsignal_delay_s: 5\n")
    yield folder
    subprocess.run(["scancel", "-u", str(os.getuid())], check=True)
    wait_until(lambda: not queue())


@pytest.fixture
def held(place: Path) -> Iterator[None]:
    """Nodes that start nothing."""
    _update_nodes("drain")
    yield
    subprocess.run(["scancel", "-u", str(os.getuid())], check=True)
    _update_nodes("resume")


def _update_nodes(state: str) -> None:
    for node in NODES:
        subprocess.run(["scontrol", "update", f"nodename={node}", f"state={state}", "reason=test"], check=True)


def queue(field: str = "%i") -> list[str]:
    answer = subprocess.run(["squeue", "-h", "-r", "-o", field], capture_output=True, text=True, check=True)
    return answer.stdout.splitlines()


def preset(place: Path, name: str, **settings: Any) -> str:
    content = {"kind": "slurm", "signal_delay_s": 5, **settings}
    (place / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return name


def jobs(launch: Any, sweep: Path) -> dict[str, dict[str, Any]]:
    """By stage, of a sweep with one cell."""
    return {job["stage"]: job for job in json.loads(launch(sweep, "--status", "--json")[1])["jobs"]}


def fake(place: Path, monkeypatch: pytest.MonkeyPatch, command: str, script: str) -> None:
    """A command of SLURM that does something else first."""
    folder = place / "fake"
    folder.mkdir(exist_ok=True)
    (folder / command).write_text(f"#!/bin/bash\n{script}\n")
    (folder / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


SHELLS = {
    "another user's name": {"LOGNAME": "daemon", "USER": "nobody"},
    "filters of squeue": {"SQUEUE_PARTITION": "urgent", "SQUEUE_STATES": "RUNNING", "SQUEUE_NAMES": "x"},
    "another cluster": {"SLURM_CLUSTERS": "elsewhere", "SQUEUE_FORMAT": "%i", "SQUEUE_ACCOUNT": "x"},
}


def test_the_queue_is_recognised_from_any_shell_and_next_to_any_comment(
    place: Path, held: None, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for comment in ("a|b|c|d|e|f|g|h", "first\nsecond|PENDING|\n7|RUNNING|x|y|1:00|n|z", "whitebench:", "ünï ☃"):
        subprocess.run(["sbatch", "-o", "/dev/null", "--comment", comment, "--wrap", "true"], check=True)
    strangers = len(queue())
    site = preset(place, "site", sbatch={"comment": "preemption=yes"})
    sweep = write_sweep(place, ONE, seeds=1)
    launch(sweep, "--cluster", site)
    assert sum(line.startswith("preemption=yes;whitebench:") for line in queue("%k")) == 2
    for variables in SHELLS.values():
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert "1 queued" in launch(sweep, "--cluster", site)[1]
            assert jobs(launch, sweep)["pretrain"]["state"] == "queued"
    assert len(queue()) == strangers + 2
    assert "2 jobs cancelled" in launch(sweep, "--cancel")[1]
    assert len(queue()) == strangers


def test_jobs_of_a_launch_with_other_settings_are_shown_and_cancelled(place: Path, held: None, launch: Any) -> None:
    sweep = write_sweep(place, ONE)
    launch(sweep, "--cluster", "lab", "schedule.epochs=100")
    shown = launch(sweep, "--cluster", "lab", "schedule.epochs=50")[1]
    assert "2 jobs of an earlier launch of this sweep with other settings are in the queue" in shown
    status = json.loads(launch(sweep, "--status", "--json")[1])
    assert len(status["orphans"]) == 2
    assert status["leaderboard"]["state"] == "queued"
    assert len(queue()) == 5  # one leaderboard waits for the jobs of both launches
    launch(sweep, "--cancel")
    assert not queue()


@pytest.mark.parametrize("setup", ["module load nothere || exit 1", "set -e; false", "set -u; echo $NOT_SET_ANYWHERE"])
def test_a_setup_that_ends_the_job_is_reported_with_its_log_and_not_submitted_again(
    setup: str, place: Path, launch: Any
) -> None:
    site = preset(place, "site", setup=[setup])
    sweep = write_sweep(place, TWO, seeds=1)
    launch(sweep, "--cluster", site)
    wait_until(lambda: not queue())
    found = jobs(launch, sweep)
    assert (found["pretrain"]["state"], found["linear"]["state"]) == ("failed", "blocked")
    assert "setup ended the job with exit code" in found["pretrain"]["error"]
    assert Path(found["pretrain"]["log"]).exists()
    code, shown = launch(sweep, "--cluster", site)
    assert (code, "submitted" in shown) == (1, False)
    assert "== pretrain" in launch(sweep, "--logs", "seed=0")[1]
    launch(sweep, "--cluster", "lab", "--retry-failed")
    wait_until(lambda: not queue())
    assert jobs(launch, sweep)["linear"]["state"] == "done"


def test_nodes_that_do_not_share_the_runs_folder_are_reported(place: Path, launch: Any) -> None:
    sweep, launches = write_sweep(place, TWO, seeds=1), place / "runs" / "sweeps" / "mine" / "launches"
    _update_nodes("drain")
    try:
        launch(sweep, "--cluster", "lab")
        launches.rename(place / "elsewhere")
    finally:
        _update_nodes("resume")
    wait_until(lambda: not queue())
    (place / "elsewhere").rename(launches)
    found = jobs(launch, sweep)
    assert (found["pretrain"]["state"], found["linear"]["state"]) == ("failed", "blocked")
    assert "without a log: can the nodes write to" in found["pretrain"]["error"]
    code, shown = launch(sweep, "--cluster", "lab")
    assert (code, "submitted" in shown) == (1, False)


def test_a_job_without_python_is_reported_with_the_end_of_its_log(place: Path, launch: Any) -> None:
    broken = ["srun() { echo no python on this node; return 127; }", "handle_end() { return 1; }"]
    sweep = write_sweep(place, ONE, seeds=1)
    launch(sweep, "--cluster", preset(place, "broken", setup=broken))
    wait_until(lambda: not queue())
    found = jobs(launch, sweep)["pretrain"]
    assert found["state"] == "failed"
    assert found["error"].endswith("ended before its run began: no python on this node")
    assert launch(sweep, "--cluster", "lab")[0] == 1


def test_set_e_in_the_setup_does_not_keep_a_killed_job_from_coming_back(place: Path, launch: Any) -> None:
    site = preset(place, "site", setup=["set -euo pipefail"])
    sweep = write_sweep(place, {"pretrain": {"function": "die"}, "linear": {"function": "count"}}, seeds=1)
    launch(sweep, "--cluster", site)
    wait_until(lambda: not queue())
    assert {stage: job["state"] for stage, job in jobs(launch, sweep).items()} == {"pretrain": "done", "linear": "done"}


def test_a_job_that_is_preempted_by_cancelling_it_comes_back_and_what_needs_it_goes_on(
    place: Path, launch: Any
) -> None:
    holding = {"pretrain": {"function": "count", "options": {"to": 6, "hold": 4}}, "linear": {"function": "count"}}
    sweep = write_sweep(place, holding, seeds=1)
    launch(sweep, "--cluster", preset(place, "site", partition="cancel"))
    wait_until(lambda: [path.read_text() for path in (place / "runs" / "pretrain").glob("*/count")] == ["4"])
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"]
    subprocess.run(urgent, check=True)
    wait_until(lambda: not queue())
    assert [line["from"] for line in log(place) if "from" in line] == [0, 4, 0]
    assert {job["state"] for job in jobs(launch, sweep).values()} == {"done"}


def test_nothing_of_the_launching_shell_reaches_the_jobs(
    place: Path, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaks = {
        "SBATCH_PARTITION": "urgent",
        "SBATCH_EXPORT": "NONE",
        "SLURM_EXPORT_ENV": "NONE",
        "SBATCH_TIMELIMIT": "1",
        "SLURM_MEM_PER_CPU": "50",
        "SLURM_GPUS": "1",
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "8",
        "SLURM_CPU_BIND": "x",
        "RANK": "3",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "elsewhere",
    }
    for name, value in leaks.items():
        monkeypatch.setenv(name, value)
    site = preset(place, "site", memory_gb=0.3, sbatch={"export": "NONE"})
    sweep = write_sweep(place, {"pretrain": {"function": "environment"}}, seeds=1)
    assert "SBATCH_PARTITION" in launch(sweep, "--cluster", site)[1]
    for name in leaks:
        monkeypatch.delenv(name, raising=False)
    wait_until(lambda: not queue())
    assert jobs(launch, sweep)["pretrain"]["state"] == "done"
    seen = json.loads(next((place / "runs" / "pretrain").glob("*/environment.json")).read_text())
    assert seen["SLURM_JOB_PARTITION"] == "main"
    assert "RANK" not in seen
    assert "WORLD_SIZE" not in seen
    assert seen["SLURM_NTASKS"] == "1"


def test_a_controller_that_does_not_answer_is_never_an_empty_queue(
    place: Path, held: None, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = write_sweep(place, ONE, seeds=1)
    launch(sweep, "--cluster", "lab")
    with monkeypatch.context() as patch:
        for command in ("squeue", "sinfo", "scontrol", "sbatch", "scancel"):
            silent = f"echo '{command}: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
            fake(place, patch, command, silent)
        for options in (["--status"], ["--cancel"], ["--dry-run"], [], ["--cluster", "lab"]):
            with pytest.raises(SlurmUnavailable, match="Unable to contact slurm controller"):
                launch(sweep, *options)
        with subprocess.Popen([*LAUNCH, sweep, "--watch"], stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert "asking again" in watching.stdout.readline()
            for command in ("squeue", "sinfo", "scontrol"):
                (place / "fake" / command).unlink()
            wait_until(lambda: "1 jobs: 1 queued" in (watching.stdout.readline() if watching.stdout else ""), 30)
            watching.kill()
    assert not log(place)
    assert "2 jobs cancelled" in launch(sweep, "--cancel")[1]


def test_slow_answers_are_waited_for(place: Path, held: None, launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("sinfo", "squeue"):
        fake(place, monkeypatch, command, f'sleep 2; exec /usr/bin/{command} "$@"')
    sweep = write_sweep(place, ONE, seeds=1)
    assert "submitted 1 jobs" in launch(sweep)[1]  # auto: not on this machine because SLURM is slow
    assert len(queue()) == 2


@pytest.mark.parametrize("answer", ["Socket timed out on send/recv operation", "Unable to contact slurm controller"])
def test_a_submission_that_was_accepted_without_an_answer_runs_once(
    answer: str, place: Path, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = place / "failed"
    script = (
        f'out=$(/usr/bin/sbatch "$@"); [ -e {flag} ] && echo "$out" && exit; touch {flag}; echo "{answer}" >&2; exit 1'
    )
    fake(place, monkeypatch, "sbatch", script)
    sweep = write_sweep(place, TWO, seeds=1)
    assert "submitted 2 jobs and the leaderboard by 3 calls" in launch(sweep, "--cluster", "lab")[1]
    assert len(queue()) <= 3
    wait_until(lambda: not queue())
    assert [line["stage"] for line in log(place) if "from" in line] == ["pretrain", "linear"]


def test_a_refusal_in_the_middle_says_what_is_queued_and_the_next_launch_adds_the_rest(
    place: Path, held: None, launch: Any
) -> None:
    site = preset(place, "site", stages={"linear": {"partition": "nowhere"}})
    sweep = write_sweep(place, TWO)
    with pytest.raises(UserError, match=r"sbatch refused linear: .*nvalid partition.*2 jobs ARE queued by this launch"):
        launch(sweep, "--cluster", site)
    assert "submitted 2 jobs and the leaderboard by 2 calls" in launch(sweep, "--cluster", "lab")[1]
    # a stage that joins later waits for the array's tasks by one call
    dependencies = [line for line in queue("%E") if "after" in line]
    assert any("aftercorr" in line or "afterok" in line for line in dependencies)


def test_more_jobs_than_the_queue_may_hold_are_queued_by_those_that_end(place: Path, launch: Any) -> None:
    sweep = write_sweep(place, {"pretrain": {"function": "count"}, "linear": {"function": "count"}}, seeds=4)
    shown = launch(sweep, "--cluster", preset(place, "five", max_jobs=5))[1]
    assert "4 jobs wait for room in SLURM's queue (limit of 5 jobs in the queue)" in shown
    most, end = 0, time.monotonic() + 120
    while (entries := queue()) and time.monotonic() < end:
        most = max(most, len(entries))
        time.sleep(0.3)
    assert most <= 5
    assert [job["state"] for job in json.loads(launch(sweep, "--status", "--json")[1])["jobs"]] == ["done"] * 8
    assert len([line for line in log(place) if "end" in line]) == 8
    assert not (place / "runs" / "sweeps" / "mine" / "waiting.json").exists()


def test_a_limit_that_only_sbatch_knows_is_found_out(
    place: Path, held: None, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 'n=$(/usr/bin/squeue -h -r | wc -l); a=$(grep -oP "array=\'?0-\\K[0-9]+" "${@: -1}" || echo 0)'
    full = 'echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1'
    fake(place, monkeypatch, "sbatch", f'{count}; [ $((n + a + 1)) -le 6 ] || {{ {full}; }}; exec /usr/bin/sbatch "$@"')
    sweep = write_sweep(place, TWO, seeds=4)
    shown = launch(sweep, "--cluster", "lab")[1]
    assert "wait for room in SLURM's queue (sbatch: error: QOSMaxSubmitJobPerUserLimit)" in shown
    assert 4 <= len(queue()) <= 6
    launch(sweep, "--cancel")
    assert not queue()
    assert not (place / "runs" / "sweeps" / "mine" / "waiting.json").exists()


def test_sbatch_that_waits_for_room_does_not_keep_the_launcher(
    place: Path, held: None, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = 'echo "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying" >&2; exec sleep 300'
    fake(place, monkeypatch, "sbatch", waits)
    with pytest.raises(UserError, match=r"SLURM takes no more jobs .*temporarily unable to accept job"):
        launch(write_sweep(place, ONE, seeds=1), "--cluster", "lab")


@pytest.mark.long
def test_a_run_that_never_gets_further_within_its_limit_is_given_up(place: Path, launch: Any) -> None:
    """A limit of one minute, of which SLURM announces the end at once."""
    site = preset(place, "short", signal_delay_s=120, hours=0.01)
    sweep = write_sweep(place, {"pretrain": {"function": "forget"}}, seeds=1)
    assert "asked to stop as soon as they start" in launch(sweep, "--cluster", site)[1]
    wait_until(lambda: not queue(), 240)
    found = jobs(launch, sweep)["pretrain"]
    assert found["state"] == "failed"
    assert "stopped 4 times in a row by its time limit without any progress" in found["error"]
    assert "more hours" in found["error"]
