"""The host: interpreter, compiler, SLURM, datasets, cores, memory and disks."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from whitebench.doctor.finding import LIMITED, MISSING, OK, ROOT, Finding, first_words, list_of, output_of

PYTHONS = ((3, 11), (3, 13))
"""The first version that works, and the first that does not."""
ROOM_GB = 5
"""Disk space that the sample sweep, its betons and checkpoints fit in."""


def check_python() -> Finding:
    version = f"{platform.python_version()} ({sys.executable})"
    if PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        return Finding("python", OK, version)
    supported = " or ".join(f"3.{minor}" for minor in range(PYTHONS[0][1], PYTHONS[1][1]))
    return Finding("python", MISSING, version, f"Python {supported} is needed: make env PYTHON=python{supported[:4]}")


def check_suite() -> Finding:
    """Scripts of the suite import each other as installed packages, wherever they are started."""
    try:
        importlib.metadata.version("whitebench")
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            "suite", MISSING, "not installed in this environment", "make env, or: pip install --no-deps -e ."
        )
    return Finding("suite", OK, f"installed from {ROOT}")


def check_git() -> Finding:
    done = output_of("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if done:
        return Finding("git", OK, f"commit {done}, which records name")
    return Finding("git", LIMITED, "no commit to name in records", "work in a git checkout, with git installed")


def check_compiler() -> Finding:
    """The tools that ffcv is built with; not needed afterwards."""
    tools = [tool for tool in ("g++", "pkg-config") if not shutil.which(tool)]
    headers = {"turbojpeg.h": "libturbojpeg0-dev", "opencv4/opencv2/imgproc.hpp": "libopencv-imgproc-dev"}
    folders = [Path("/usr/include"), Path("/usr/local/include")]
    lacking = tools + [
        package for header, package in headers.items() if not any((folder / header).exists() for folder in folders)
    ]
    if not lacking:
        return Finding("compiler", OK, "g++, pkg-config, libturbojpeg and OpenCV, with which ffcv is built")
    remedy = f"sudo apt-get install --no-install-recommends {' '.join(lacking)}"
    return Finding("compiler", LIMITED, f"ffcv could not be rebuilt: {', '.join(lacking)} not found", remedy)


def check_slurm() -> Finding:
    if not shutil.which("sbatch"):
        return Finding("slurm", LIMITED, "no sbatch here: sweeps run on this machine, on its own cores")
    partitions = output_of("sinfo", "--noheader", "--format=%P %a %D")
    if not partitions:
        remedy = "ask for `sinfo` on a login node; sweeps run on this machine meanwhile (--cluster local)"
        return Finding("slurm", LIMITED, "sbatch is installed, but no controller answers sinfo", remedy)
    return Finding("slurm", OK, f"{list_of(partitions.splitlines())} (partition, state, nodes)")


def check_data() -> list[Finding]:
    """The datasets of $WHITEBENCH_DATA; the built-in sample is made where it is missing."""
    root = Path(os.environ.get("WHITEBENCH_DATA", ROOT / "data"))
    findings = [finding for folder in sorted(root.glob("*")) if (finding := _dataset(folder)) is not None]
    if not any(finding.name == "data: sample" for finding in findings):
        findings.insert(
            0, Finding("data: sample", LIMITED, f"not in {root} yet", "make sample (make sweep does it, too)")
        )
    return findings


def _dataset(folder: Path) -> Finding | None:
    name, manifest = f"data: {folder.name}", folder / "manifest.json"
    if manifest.exists():
        try:
            splits = json.loads(manifest.read_text())["splits"]
            counts = ", ".join(f"{split} {content['count']}" for split, content in splits.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return Finding(name, LIMITED, f"its manifest is damaged ({first_words(error)})", "write the dataset again")
        return Finding(name, OK, f"classification: {counts} images")
    if any(folder.glob("annotations/instances_*.json")):
        counts = ", ".join(
            f"{split.name} {sum(1 for _ in split.iterdir())}"
            for split in sorted(folder.glob("*2017"))
            if split.is_dir()
        )
        return Finding(name, OK, f"detection: {counts or 'no'} images")
    return None


def check_cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    what = f"{usable} cores, {memory:.0f} GB of memory"
    if memory < 3 * usable:
        return Finding(
            "machine", LIMITED, what, "jobs take about 3 GB each: fewer run side by side than there are cores"
        )
    return Finding("machine", OK, what)


def check_disks() -> Iterator[Finding]:
    """Free space where runs and data go."""
    for name, variable, default in (("runs", "WHITEBENCH_RUNS", "runs"), ("data", "WHITEBENCH_DATA", "data")):
        folder = Path(os.environ.get(variable, ROOT / default))
        standing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(standing).free / 1e9
        what = f"{free:.0f} GB free at {folder}"
        if not os.access(standing, os.W_OK):
            yield Finding(
                f"disk: {name}", MISSING, f"{standing} is not writable", f"set {variable} to a folder that is"
            )
        elif free < ROOM_GB:
            yield Finding(f"disk: {name}", LIMITED, what, f"set {variable} to a disk with more room")
        else:
            yield Finding(f"disk: {name}", OK, what)
