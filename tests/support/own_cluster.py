"""A SLURM cluster for tests: two nodes with pretend GPUs on loopback, started by `tests/support/slurm_cluster`."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import pytest

from tests.support.launching import ROOT
from tests.support.leftovers import marked_processes

SCRIPTS = Path(__file__).parent / "slurm_cluster"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "slurmdbd", "mariadbd")
FOREIGN = ("SLURM_", "SBATCH_", "SQUEUE_", "SALLOC_", "SINFO_", "SRUN_")
"""Variables of whoever runs the tests: perhaps themselves in a job."""


class NoCluster(Exception):
    """Why a cluster cannot be started on this machine."""


@contextmanager
def own_cluster(cpus: int = 4, accounting: bool = False, settings: str = "") -> Iterator[None]:
    """Starts a cluster, and stops it at the end; meanwhile the environment points to it.

    Its daemons end with this process, however that ends. What a test does to the environment does not reach them.

    Args:
        cpus: cores of each node.
        accounting: it keeps a database of its jobs, and refuses those of accounts other than `whitebench`.
        settings: further lines of slurm.conf, e.g. "MaxJobCount=10".
    Raises:
        NoCluster: SLURM is not installed and we are not root on Debian, or it does not start for one who is not root.
    """
    if missing() and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run([ROOT / "install.sh", "slurm"], check=False)
    if missing():
        raise NoCluster(f"needs {', '.join(missing())}: as root on Debian, ./install.sh slurm")
    # a short path: SLURM's sockets are in it, and their names have at most 108 characters
    with (
        pytest.MonkeyPatch.context() as patch,
        TemporaryDirectory(prefix="wb-", dir="/tmp") as folder,
        _free_ports(4) as first_port,
    ):
        for name in [name for name in os.environ if name.startswith(FOREIGN)]:
            patch.delenv(name)
        state = Path(folder) / "slurm"
        patch.setenv("CLUSTER_STATE", str(state))
        patch.setenv("CLUSTER_PORT", str(first_port))
        patch.setenv("CLUSTER_ACCOUNTING", str(int(accounting)))
        patch.setenv("CLUSTER_CPUS", str(cpus))
        patch.setenv("CLUSTER_SETTINGS", settings)
        patch.setenv("SLURM_CONF", str(state / "slurm.conf"))
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        environment = dict(os.environ)  # a test may change PATH, and its fixtures may end after this one
        with _stopped_at_the_end(state, environment):
            started = subprocess.run([SCRIPTS / "start.sh"], capture_output=True, text=True, env=environment)
            if started.returncode and os.geteuid() != 0:
                raise NoCluster(f"the cluster does not start without root: {started.stderr}")
            assert started.returncode == 0, started.stderr
            yield


@contextmanager
def _stopped_at_the_end(state: Path, environment: dict[str, str]) -> Iterator[None]:
    """Stops the cluster, and asserts that nothing of it runs on; a guard does it where this process is killed."""
    guard = subprocess.Popen(
        [sys.executable, __file__, str(state)],
        stdin=subprocess.PIPE,  # it reads until this process closes its end, or dies
        env={**environment, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        yield
    finally:
        stopped = stop(state, environment)
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait(60)
    assert not stopped, f"stop.sh left these running: {stopped}"


def stop(state: Path, environment: dict[str, str]) -> dict[int, str]:
    """Runs stop.sh; processes of the cluster that outlived it and were killed, the jobs' own among them."""
    subprocess.run([SCRIPTS / "stop.sh"], check=False, env=environment)
    end = time.monotonic() + 10.0
    while (left := _daemons(state)) and time.monotonic() < end:
        time.sleep(0.1)
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return left


def _daemons(state: Path) -> dict[int, str]:
    """Processes of the cluster with this folder, other than its guard and those who use it."""
    names = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "slurmstepd")
    return {
        process: command
        for process, command in marked_processes("none", also=str(state)).items()
        if Path(command.split()[0].rstrip(":")).name in names
    }


def missing() -> list[str]:
    return [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]


@contextmanager
def _free_ports(count: int) -> Iterator[int]:
    """The first of `count` consecutive free ports; meanwhile no other cluster of these tests takes them."""
    for first in range(21000, 60000, 97):
        with open(Path(gettempdir()) / f"whitebench-{os.getuid()}-{first}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for port in range(first, first + count):
                    with socket.socket() as probe:
                        probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            yield first
            return
    raise RuntimeError("no free ports")


def _guard(state: Path) -> None:
    """Waits for the end of the process that started the cluster; then nothing of the cluster may be left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    if state.exists() or _daemons(state):
        stop(state, dict(os.environ))
        shutil.rmtree(state.parent, ignore_errors=True)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
