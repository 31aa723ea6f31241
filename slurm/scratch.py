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
"""The folder, as the cluster's preset names it; the node's own variables may stand in it."""
MANIFEST = "manifest.json"
OTHERS = ("convert", "detect")
"""Stages that do not read the dataset of the pretraining."""


def use_scratch(task: Task) -> None:
    """Points $WHITEBENCH_DATA to a folder on the node's disk with a copy of the task's dataset, and links to the rest.

    Does nothing where no scratch is named, the stage reads no dataset, or there is no room: the log says so then.
    """
    place, dataset = os.path.expandvars(os.environ.get(SCRATCH, "")), task.cell.get("dataset")
    if not place or not dataset or task.stage in OTHERS or not (data_root() / dataset / MANIFEST).exists():
        return
    source = data_root().absolute()
    folder = Path(place) / f"whitebench-{os.getuid()}" / file_hash(source / dataset / MANIFEST)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a node's own disk knows flock; the others wait for the copy
        if not (folder / dataset).exists() and not _copy(source / dataset, folder / dataset):
            return
        for other in source.iterdir():
            if not (folder / other.name).exists():
                (folder / other.name).symlink_to(other)
    os.environ["WHITEBENCH_DATA"] = str(folder)


def _copy(source: Path, target: Path) -> bool:
    """Whole or not at all; False where there is no room."""
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    if shutil.disk_usage(target.parent).free < 1.05 * size:
        print(f"{target.parent}: no room for {source.name} ({size / 1e9:.1f} GB); it is read from {source}", flush=True)
        return False
    began, fresh = time.monotonic(), target.with_name(f".{target.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)  # of a job that was killed while it copied
    shutil.copytree(source, fresh)
    fresh.rename(target)
    print(f"{source.name} ({size / 1e9:.1f} GB) copied to {target} in {time.monotonic() - began:.0f} s", flush=True)
    return True
