"""A SLURM cluster on loopback, of our own: two nodes with pretend GPUs, brought up by `tests/support/slurm_cluster`."""

import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import pytest

from tests.support.launching import ROOT

SCRIPTS = Path(__file__).parent / "slurm_cluster"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "slurmdbd", "mariadbd")


class NoCluster(Exception):
    """Why there can be none on this machine."""


@contextmanager
def own_cluster(cpus: int = 4, accounting: bool = False) -> Iterator[None]:
    """Brings it up, each node with so many cores, and stops it in the end; the environment finds it meanwhile.

    With accounting it keeps a database of its jobs, and refuses those of accounts other than `whitebench`.

    Raises:
        NoCluster: SLURM is not installed and we are not root on Debian, or it does not start for one who is not root.
    """
    if missing() and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run([ROOT / "install.sh", "slurm"], check=False)
    if missing():
        raise NoCluster(f"needs {', '.join(missing())}: as root on Debian, ./install.sh slurm")
    # a short path: SLURM's sockets lie in it, whose names have at most 108 characters
    with (
        pytest.MonkeyPatch.context() as patch,
        TemporaryDirectory(prefix="wb-", dir="/tmp") as folder,
        _free_ports(4) as first_port,
    ):
        state = Path(folder) / "slurm"
        patch.setenv("CLUSTER_STATE", str(state))
        patch.setenv("CLUSTER_PORT", str(first_port))
        patch.setenv("CLUSTER_ACCOUNTING", str(int(accounting)))
        patch.setenv("CLUSTER_CPUS", str(cpus))
        patch.setenv("SLURM_CONF", str(state / "slurm.conf"))
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        try:
            started = subprocess.run([SCRIPTS / "start.sh"], capture_output=True, text=True)
            if started.returncode and os.geteuid() != 0:
                raise NoCluster(f"the cluster does not start without root: {started.stderr}")
            assert started.returncode == 0, started.stderr
            yield
        finally:
            subprocess.run([SCRIPTS / "stop.sh"], check=False)


def missing() -> list[str]:
    return [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]


@contextmanager
def _free_ports(count: int) -> Iterator[int]:
    """The first of so many neighbouring free ports; meanwhile no other cluster of these tests takes them."""
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
