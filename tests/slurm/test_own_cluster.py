"""The test cluster and the test run end without leaving processes behind, whatever happens to them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launching import ROOT, wait_until
from tests.support.leftovers import MARKER, end_leftovers, marked_processes
from tests.support.own_cluster import NoCluster, own_cluster

PROGRAM = """
import os, time
from pathlib import Path
from tests.support.own_cluster import own_cluster
with own_cluster():
    print(os.environ["CLUSTER_STATE"], flush=True)
    time.sleep(600)
"""


def daemons(state: str) -> list[str]:
    return [command for command in marked_processes("none", also=state).values() if "slurm" in command.split()[0]]


@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_cluster_ends_with_the_process_that_started_it(number: signal.Signals) -> None:
    try:
        with own_cluster():
            pass
    except NoCluster as reason:
        pytest.skip(str(reason))
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        state = process.stdout.readline().strip()
        assert daemons(state)
        process.send_signal(number)
    wait_until(lambda: not daemons(state) and not Path(state).exists(), 60)


@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_a_cluster_stops_though_a_test_has_emptied_path(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with own_cluster():
            state = os.environ["CLUSTER_STATE"]
            assert daemons(state)
            monkeypatch.setenv("PATH", "/nowhere")
    except NoCluster as reason:
        pytest.skip(str(reason))
    assert not daemons(state)


def test_a_process_left_behind_makes_a_green_run_fail_and_is_killed(tmp_path: Path) -> None:
    leaves = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
    (tmp_path / "test_leaves.py").write_text(
        f"import subprocess, sys\n\ndef test_leaves():\n    print({leaves}.pid)\n"
        "def test_ends():\n    subprocess.run([sys.executable, '-c', ''])\n"
    )
    hooks = (ROOT / "tests" / "conftest.py").read_text().partition("@pytest.fixture")[0]
    (tmp_path / "conftest.py").write_text(hooks)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for test, code in (("test_ends", 0), ("test_leaves", 1)):
        ended = subprocess.run(
            [*command, f"test_leaves.py::{test}"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
    assert "time.sleep(600)" in ended.stderr


def test_a_process_that_is_just_ending_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, MARKER: "0123"}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"], env=environment) as process:
        assert process.pid in marked_processes("0123")
        assert not end_leftovers("0123", patience=30.0)
