"""What this host offers a loader: cores, memory, and the kind of file system a file is on."""

import os
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
class Host:
    cores: int
    """Usable by a process: the affinity mask and the control group's quota count."""
    memory: int
    """Bytes that are free, or can be freed, for the cached pages of files."""
    filesystem: str
    """Of the file in question, e.g. "ext4", "nfs4", "tmpfs"."""

    @classmethod
    def of(cls, path: Path) -> "Host":
        """The host that this process runs on, for the file `path`."""
        from joblib import cpu_count  # type: ignore[import-untyped]

        memory = min([psutil.virtual_memory().available, *_memory_limits(_text("/proc/self/cgroup"))])
        return cls(int(cpu_count()), memory, filesystem_of(path))

    @property
    def over_network(self) -> bool:
        """Whether the file comes over a network."""
        return self.filesystem in NETWORK

    @property
    def in_memory(self) -> bool:
        """Whether the file is in memory anyway."""
        return self.filesystem in IN_MEMORY


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds `path`; "unknown" if the host does not list its mounts."""
    ancestors = {str(ancestor) for ancestor in (path.resolve(), *path.resolve().parents)}
    mounts = [mount for mount in psutil.disk_partitions(all=True) if mount.mountpoint in ancestors]
    # the last of several mounts on one folder hides the others
    return str(max(reversed(mounts), key=lambda mount: len(mount.mountpoint)).fstype) if mounts else "unknown"


def _memory_limits(groups: str) -> list[int]:
    """Bytes that this process's control groups, and those above them, allow: versions 1 and 2.

    psutil reports the memory of the host, which a SLURM job or a container may not use.
    """
    limits = []
    for line in groups.splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            root = CGROUP if number == "0" else CGROUP / "memory"
            leaf = root / os.path.normpath(group).strip("/")
            folders = [leaf, *(folder for folder in leaf.parents if folder.is_relative_to(root))]
            texts = [_text(folder / name) for folder in folders for name in ("memory.max", "memory.limit_in_bytes")]
            limits += [int(text) for text in texts if text.strip().isdigit()]
    return limits


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # not this kernel, not this version of control groups
        return ""
