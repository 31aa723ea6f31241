"""What of the suite works on this machine, and how to mend what does not: `make doctor`, or `python doctor.py`.

Needs only the standard library itself, of any Python 3 that may lie about. Packages are tried in a child process, so
that one that crashes or hangs is one line.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
OK, LIMITED, MISSING = "ok", "limited", "missing"
COLOURS = {OK: "32", LIMITED: "33", MISSING: "31"}
PYTHONS = ((3, 11), (3, 13))
"""The first that works, and the first that does not."""

PROBE_SECONDS = 90
ROOM_GB = 5
"""What the sample sweep, its betons and checkpoints leave room for."""

DETECTRON2_SOURCE = "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"


@dataclass(frozen=True)
class Finding:
    """One line: `state` is ok; limited, where the built-in sweep works without; or missing, where it does not."""

    name: str
    state: str
    what: str
    mend: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Prints the findings; 0 where `make sweep` can work, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python doctor.py", description="Says what of the suite works here, and how to mend what does not."
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--probe", nargs="+", choices=list(PROBES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.probe:
        return _answer(options.probe)
    findings = examine()
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _show(findings, colour=sys.stdout.isatty())
    return int(any(finding.state == MISSING for finding in findings))


def examine() -> list[Finding]:
    """All findings. The slow ones (imports, SLURM) are made side by side."""
    with ThreadPoolExecutor(2) as pool:
        probed, slurm = pool.submit(_probe_all), pool.submit(check_slurm)
        quick = [check_python(), check_packages(), check_suite(), check_git(), check_compiler()]
        machine = [check_cores(), *check_disks()]
        return [*quick, *probed.result(), slurm.result(), *check_data(), *machine]


def _show(findings: Iterable[Finding], colour: bool) -> None:
    findings = list(findings)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        state = f"{finding.state:8}"
        shown = f"\033[{COLOURS[finding.state]}m{state}\033[0m" if colour else state
        print(f"{shown} {finding.name:{width}}  {finding.what}")
        if finding.mend:
            print(f"{'':8} {'':{width}}  -> {finding.mend}")
    missing = [finding.name for finding in findings if finding.state == MISSING]
    print(f"\nmissing: {', '.join(missing)}" if missing else "\nmake sweep can work here")


# --- the interpreter and what is installed -------------------------------------------------------------------------


def check_python() -> Finding:
    shown = f"{platform.python_version()} ({sys.executable})"
    if PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        return Finding("python", OK, shown)
    wanted = " or ".join(f"3.{minor}" for minor in range(PYTHONS[0][1], PYTHONS[1][1]))
    return Finding("python", MISSING, shown, f"Python {wanted} is needed: make env PYTHON=python{wanted[:4]}")


def check_packages(requirements: Path = ROOT / "requirements.txt") -> Finding:
    """Whether what `requirements.txt` pins is installed as pinned."""
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", requirements.read_text(), re.MULTILINE))
    absent, other = [], []
    for name, wanted in pins.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
            continue
        if found.partition("+")[0] != wanted:
            other.append(f"{name} {found} (pinned: {wanted})")
    what = f"{len(pins) - len(absent) - len(other)} of {len(pins)} as pinned"
    if absent:
        return Finding("packages", MISSING, f"{what}; not installed: {_few(absent)}", "make env")
    if other:
        return Finding("packages", LIMITED, f"{what}; others: {_few(other)}", "make env installs the tested versions")
    return Finding("packages", OK, what)


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
    done = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if done:
        return Finding("git", OK, f"commit {done}, which records name")
    return Finding("git", LIMITED, "no commit to name in records", "work in a git checkout, with git installed")


def check_compiler() -> Finding:
    """What ffcv is built with; of no use once it is."""
    tools = [tool for tool in ("g++", "pkg-config") if not shutil.which(tool)]
    headers = {"turbojpeg.h": "libturbojpeg0-dev", "opencv4/opencv2/imgproc.hpp": "libopencv-imgproc-dev"}
    places = [Path("/usr/include"), Path("/usr/local/include")]
    lacking = tools + [
        package for header, package in headers.items() if not any((place / header).exists() for place in places)
    ]
    if not lacking:
        return Finding("compiler", OK, "g++, pkg-config, libturbojpeg and OpenCV, with which ffcv is built")
    mend = f"sudo apt-get install --no-install-recommends {' '.join(lacking)}"
    return Finding("compiler", LIMITED, f"ffcv could not be built anew: {', '.join(lacking)} not found", mend)


# --- packages that must really run: tried in a child process --------------------------------------------------------


def probe_torch() -> list[Finding]:
    """torch with torchvision's compiled operators (one is run), and what accelerator there is."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    try:
        kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    except (RuntimeError, NotImplementedError) as error:
        what = f"{torch.__version__} with torchvision {torchvision.__version__}, whose nms fails: {_line(error)}"
        return [Finding("torch", MISSING, what, "torch and torchvision are not of one release: make env")]
    versions = f"{torch.__version__}, torchvision {torchvision.__version__}"
    if kept != [0, 2]:
        return [Finding("torch", MISSING, f"{versions}: nms gives {kept}, not [0, 2]", "make env")]
    return [Finding("torch", OK, f"{versions} (nms runs)"), _cuda(torch)]


def _cuda(torch: Any) -> Finding:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        torch.ones(8, device="cuda").sum().item()
        return Finding("cuda", OK, f"{torch.version.cuda}: {', '.join(names)}")
    driver = shutil.which("nvidia-smi")
    mend = f"torch is built for CUDA {torch.version.cuda}; see that the driver is as new" if driver else ""
    return Finding(
        "cuda", LIMITED, "no GPU that torch can use: the sample runs on the CPU; ImageNet and COCO want GPUs", mend
    )


def probe_ffcv() -> list[Finding]:
    """ffcv's decoder, on a JPEG made here."""
    import numpy as np
    from ffcv.libffcv import imdecode
    from PIL import Image

    photo = io.BytesIO()
    Image.fromarray(np.full((16, 24, 3), 200, np.uint8)).save(photo, "JPEG")
    decoded = np.zeros((16, 24, 3), np.uint8)
    failed = imdecode(np.frombuffer(photo.getvalue(), np.uint8), decoded, 16, 24, 16, 24)
    if failed or abs(int(decoded.mean()) - 200) > 2:
        return [Finding("ffcv", MISSING, "its decoder does not decode a JPEG", "build it anew: make env")]
    return [Finding("ffcv", OK, f"{importlib.metadata.version('ffcv')} (decodes a JPEG)")]


def probe_detectron2() -> list[Finding]:
    """detectron2 with the operator that Mask R-CNN lives on, and whether its own compiled ones are there."""
    import torch
    from detectron2.layers import ROIAlign

    pooled = ROIAlign((2, 2), 1.0, 0)(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]))
    if pooled.shape != (1, 1, 2, 2):
        return [Finding("detectron2", MISSING, f"RoIAlign gives {tuple(pooled.shape)}", "make env")]
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        what = "works, without its compiled operators: no rotated boxes or deformable convolution, and the slower COCO"
        mend = f"nothing here needs them; with a compiler and the internet: {DETECTRON2_SOURCE}"
        return [Finding("detectron2", LIMITED, f"{what} evaluation", mend)]
    return [Finding("detectron2", OK, "works, with its compiled operators")]


def probe_submitit() -> list[Finding]:
    import submitit

    return [Finding("submitit", OK, submitit.__version__)]


PROBES: dict[str, Callable[[], list[Finding]]] = {
    "torch": probe_torch,
    "ffcv": probe_ffcv,
    "detectron2": probe_detectron2,
    "submitit": probe_submitit,
}
HELP = {
    "torch": "make env",
    "ffcv": "make env (it says why where it cannot build it); without it, data.loader=folder",
    "detectron2": "make env",
    "submitit": "make env",
}


def _answer(names: Iterable[str]) -> int:
    """In the child: a JSON line per probe, as it ends."""
    warnings.simplefilter("ignore")
    for name in names:
        try:
            findings = PROBES[name]()
        except Exception as error:  # whatever a broken package raises is the finding
            what = "not installed" if isinstance(error, ModuleNotFoundError) else "installed, but does not work"
            findings = [Finding(name, MISSING, f"{what}: {_line(error)}", HELP[name])]
        print(f"\n{json.dumps([name, [asdict(finding) for finding in findings]])}", flush=True)
    return 0


def _probe_all() -> list[Finding]:
    """All probes in one child; where that crashes or hangs, the rest in another."""
    found: dict[str, list[Finding]] = {}
    while left := [name for name in PROBES if name not in found]:
        began = time.monotonic()
        for name, findings in _child(left):
            found[name] = findings
        culprit = next((name for name in left if name not in found), None)
        if culprit is not None:
            how = "hangs" if time.monotonic() - began >= PROBE_SECONDS else "crashes the interpreter"
            found[culprit] = [Finding(culprit, MISSING, f"installed, but importing it {how}", HELP[culprit])]
    return [finding for name in PROBES for finding in found[name]]


def _child(names: list[str]) -> Iterator[tuple[str, list[Finding]]]:
    command = [sys.executable, str(Path(__file__).resolve()), "--probe", *names]
    try:
        printed = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, cwd=ROOT).stdout
    except subprocess.TimeoutExpired as expired:
        printed = expired.stdout or b""
    for line in printed.decode(errors="replace").splitlines():
        if line.startswith('["'):
            name, findings = json.loads(line)
            yield name, [Finding(**finding) for finding in findings]


# --- the cluster, the data, the machine -----------------------------------------------------------------------------


def check_slurm() -> Finding:
    if not shutil.which("sbatch"):
        return Finding("slurm", LIMITED, "no sbatch here: sweeps run on this machine, on its own cores")
    partitions = _output("sinfo", "--noheader", "--format=%P %a %D")
    if not partitions:
        mend = "ask for `sinfo` on a login node; sweeps run on this machine meanwhile (--cluster local)"
        return Finding("slurm", LIMITED, "sbatch is installed, but no controller answers sinfo", mend)
    return Finding("slurm", OK, f"{_few(partitions.splitlines())} (partition, state, nodes)")


def check_data() -> list[Finding]:
    """The datasets of $WHITEBENCH_DATA; the built-in sample is made where it is missing."""
    root = Path(os.environ.get("WHITEBENCH_DATA", ROOT / "data"))
    found = [finding for folder in sorted(root.glob("*")) if (finding := _dataset(folder)) is not None]
    if not any(finding.name == "data: sample" for finding in found):
        found.insert(0, Finding("data: sample", LIMITED, f"not in {root} yet", "make sample (make sweep does it, too)"))
    return found


def _dataset(folder: Path) -> Finding | None:
    name, manifest = f"data: {folder.name}", folder / "manifest.json"
    if manifest.exists():
        try:
            splits = json.loads(manifest.read_text())["splits"]
            counts = ", ".join(f"{split} {content['count']}" for split, content in splits.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return Finding(name, LIMITED, f"its manifest is damaged ({_line(error)})", "write the dataset anew")
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


def _output(*command: str) -> str:
    """What the command prints; '' where it fails, hangs or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _few(items: list[str], most: int = 4) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


if __name__ == "__main__":
    sys.exit(main())
