"""Versions, commit, host and device of a run."""

import importlib.metadata
import json
import platform
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

SNAPSHOT = "snapshot.json"
"""In a copy of the code for queued jobs: its hash, its commit, and whether it differs from the commit."""
CPUINFO = Path("/proc/cpuinfo")
FAMILY_KEYS = ("cpu family", "model")
VERSIONED = (
    "torch", "torchvision", "timm", "numpy", "ffcv", "sal-detectron2", "detectron2", "pycocotools", "lvis",
    "cityscapesscripts", "submitit", "pandas",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions, git state, host and device, without importing any heavy package that is not imported already."""
    return {**_git_state(), **machine()}


def machine() -> dict[str, Any]:
    """`environment` without the state of git."""
    versions: dict[str, str] = {}
    for package in VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    device = torch.cuda.get_device_name() if torch is not None and cuda else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        **versions,
        "host": socket.gethostname(),
        "device": device,
        **processor(CPUINFO),
        **({"vector_extension": torch.backends.cpu.get_cpu_capability()} if torch is not None else {}),
    }


def processor(cpuinfo: Path) -> dict[str, str]:
    """The processor's name and family: libraries choose their kernels by it, and other kernels round otherwise.

    E.g. {"processor": "AMD EPYC 9B14", "processor_family": "AuthenticAMD 25.17"}, from a file as /proc/cpuinfo; empty
    where there is none, or where it says nothing of this.
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    first: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            first.setdefault(key.strip(), value.strip())
    family = " ".join(filter(None, (first.get("vendor_id"), ".".join(filter(None, map(first.get, FAMILY_KEYS))))))
    described = {"processor": first.get("model name", ""), "processor_family": family}
    return {key: value for key, value in described.items() if value}


def cpu_seconds() -> float:
    """CPU time that this process and its children, such as loader workers, have used, seconds.

    As the operating system counts it: of all their threads, of ended children and of those still alive.
    """
    import psutil

    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        total += times.user + times.system
    return total


def _git_state() -> dict[str, Any]:
    """Commit, and whether source files differ from it (tables that a run writes do not count)."""
    here = Path(__file__).parent.parent
    if (here / SNAPSHOT).exists():
        state: dict[str, Any] = json.loads((here / SNAPSHOT).read_bytes())
        return state

    # a checkout that belongs to another user is read all the same
    command = ["git", "-c", f"safe.directory={here}", "-C", str(here)]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.yaml", "*.txt", "*.toml")
    return {"git": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}
