"""What this machine has for a loader: cores, memory, and the kind of file system a file is on."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

NETWORK = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "orangefs", "panfs", "smb3", "smbfs"),
    *("wekafs", "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"),
)
"""File systems whose files come over a network."""
IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    cores: int
    """That a process here may use."""
    memory: int
    """Bytes that are free, or can be freed, for the cached pages of files."""
    filesystem: str
    """Of the file in question, e.g. "ext4", "nfs4", "tmpfs"."""

    @classmethod
    def here(cls, path: Path) -> "Machine":
        """As a process on this machine finds it, for the file `path`; the limits of its control group count."""
        groups = _text("/proc/self/cgroup")
        free = psutil.virtual_memory().available
        memory = min([free, *_limits(groups, "memory", ("memory.max", "memory.limit_in_bytes"))])
        cores = min([len(os.sched_getaffinity(0)), *map(_cores_of, _quotas(groups))])
        return cls(max(1, cores), memory, filesystem_of(path, _text("/proc/self/mountinfo")))

    @property
    def over_network(self) -> bool:
        return self.filesystem in NETWORK

    @property
    def in_memory(self) -> bool:
        return self.filesystem in IN_MEMORY


def filesystem_of(path: Path, mountinfo: str) -> str:
    """The type of the file system that holds `path`, by the content of /proc/self/mountinfo; "unknown" without one."""
    best, kind = "", "unknown"
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4]) if dash else ""
        if dash and len(place) >= len(best) and Path(place) in (path.resolve(), *path.resolve().parents):
            best, kind = place, after.split()[0]
    return kind


def _limits(groups: str, controller: str, names: tuple[str, ...]) -> list[int]:
    """The limits, in the files `names`, of this process's control group and those above it; versions 1 and 2."""
    found = []
    for text in _above(groups, controller, names):
        if text.strip().isdigit():
            found.append(int(text))
    return found


def _quotas(groups: str) -> list[str]:
    return _above(groups, "cpu", ("cpu.max",))


def _cores_of(quota: str) -> int:
    """'200000 100000' -> 2; without a limit, more than any machine has."""
    allowed, _, period = quota.partition(" ")
    return max(1, int(allowed) // int(period)) if allowed.isdigit() and period.strip().isdigit() else 1 << 20


def _above(groups: str, controller: str, names: tuple[str, ...]) -> list[str]:
    texts = []
    for line in groups.splitlines():
        number, controllers, place = line.split(":", 2)
        root = CGROUP if number == "0" else CGROUP / controller
        if number == "0" or controller in controllers.split(","):
            own = root / place.strip("/")
            folders = [own, *(folder for folder in own.parents if folder.is_relative_to(root))]
            texts += [_text(folder / name) for folder in folders for name in names]
    return [text for text in texts if text]


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # not this kernel, not this version of control groups
        return ""
