"""A dataset on the node's own disk: copied once, by the first job that reads it, for all jobs and ranks of the node."""

import fcntl
import os
import shutil
import time
from pathlib import Path

from slurm.stages import Task
from whitebench.hashing import file_hash
from whitebench.records import data_root

SCRATCH = "WHITEBENCH_SCRATCH"
"""The folder, as the cluster's preset has it; it may hold variables of the node."""
MANIFEST = "manifest.json"
OTHERS = ("convert", "detect")
"""Stages that do not read the dataset of the pretraining."""


def use_scratch(task: Task) -> None:
    """Points $WHITEBENCH_DATA to a folder on the node's disk with a copy of the task's dataset, and links to the rest.

    Does nothing where no scratch is set or the stage reads no dataset. Where the folder cannot be used (a variable is
    not set on the node, no such disk, no room) the data are read where they are, and the log says so.
    """
    dataset = task.cell.get("dataset")
    setting = os.environ.get(SCRATCH, "")
    if not setting or not dataset or task.stage in OTHERS or not (data_root() / dataset / MANIFEST).exists():
        return
    source = data_root().absolute()
    path = os.path.expanduser(os.path.expandvars(setting))
    try:
        if "$" in path or not os.path.isabs(path):
            raise OSError("not a folder on this node: a variable is not set" if "$" in path else "not an absolute path")
        root = Path(path) / f"whitebench-{os.getuid()}" / file_hash(source / dataset / MANIFEST)[:16]
        root.mkdir(parents=True, exist_ok=True)
        usable = _prepare(source, dataset, root)
    except OSError as error:
        print(f"scratch {path}: {error.strerror or error}; {dataset} is read from {source}", flush=True)
        return
    if usable:
        os.environ["WHITEBENCH_DATA"] = str(root)


def _prepare(source: Path, dataset: str, root: Path) -> bool:
    """Copies the dataset, links the rest; False if the disk has no space for it."""
    with open(root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a node's own disk supports flock; the others wait for the copy
        if not (root / dataset).exists() and not _copy(source / dataset, root / dataset):
            return False
        for other in source.iterdir():
            if not (root / other.name).exists():
                (root / other.name).symlink_to(other)
    return True


def _copy(source: Path, target: Path) -> bool:
    """Whole or not at all; False if the disk has no space for it."""
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    if shutil.disk_usage(target.parent).free < 1.05 * size:
        print(f"{target.parent}: no room for {source.name} ({size / 1e9:.1f} GB); it is read from {source}", flush=True)
        return False
    began, temporary = time.monotonic(), target.with_name(f".{target.name}.fresh")
    shutil.rmtree(temporary, ignore_errors=True)  # of a job that was killed while it copied
    shutil.copytree(source, temporary)
    temporary.rename(target)
    print(f"{source.name} ({size / 1e9:.1f} GB) copied to {target} in {time.monotonic() - began:.0f} s", flush=True)
    return True
