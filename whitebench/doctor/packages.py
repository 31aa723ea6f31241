"""Packages that must really run, each tried in a child process: one that crashes or hangs is one line."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whitebench.doctor.finding import LIMITED, MISSING, OK, ROOT, Finding, first_words, list_of

PROBE_SECONDS = 90
DETECTRON2_SOURCE = "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"


def check_packages(requirements: Path = ROOT / "requirements.txt") -> Finding:
    """Whether what `requirements.txt` pins is installed as pinned."""
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", requirements.read_text(), re.MULTILINE))
    absent, other = [], []
    for name, pinned in pins.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
            continue
        if installed.partition("+")[0] != pinned:
            other.append(f"{name} {installed} (pinned: {pinned})")
    what = f"{len(pins) - len(absent) - len(other)} of {len(pins)} as pinned"
    if absent:
        return Finding("packages", MISSING, f"{what}; not installed: {list_of(absent)}", "make env")
    if other:
        return Finding(
            "packages", LIMITED, f"{what}; others: {list_of(other)}", "make env installs the tested versions"
        )
    return Finding("packages", OK, what)


def probe_torch() -> list[Finding]:
    """torch with torchvision's compiled operators (one is run), and what accelerator there is."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    try:
        indices = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    except (RuntimeError, NotImplementedError) as error:
        what = f"{torch.__version__} with torchvision {torchvision.__version__}, whose nms fails: {first_words(error)}"
        return [Finding("torch", MISSING, what, "torch and torchvision are not of one release: make env")]
    versions = f"{torch.__version__}, torchvision {torchvision.__version__}"
    if indices != [0, 2]:
        return [Finding("torch", MISSING, f"{versions}: nms gives {indices}, not [0, 2]", "make env")]
    return [Finding("torch", OK, f"{versions} (nms runs)"), _cuda(torch)]


def _cuda(torch: Any) -> Finding:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        torch.ones(8, device="cuda").sum().item()
        return Finding("cuda", OK, f"{torch.version.cuda}: {', '.join(names)}")
    driver = shutil.which("nvidia-smi")
    remedy = f"torch is built for CUDA {torch.version.cuda}; see that the driver is as new" if driver else ""
    return Finding(
        "cuda", LIMITED, "no GPU that torch can use: the sample runs on the CPU; ImageNet and COCO want GPUs", remedy
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
        return [Finding("ffcv", MISSING, "its decoder does not decode a JPEG", "rebuild it: make env")]
    return [Finding("ffcv", OK, f"{importlib.metadata.version('ffcv')} (decodes a JPEG)")]


def probe_detectron2() -> list[Finding]:
    """detectron2 with the operator that Mask R-CNN needs, and whether its own compiled operators exist."""
    import torch
    from detectron2.layers import ROIAlign

    pooled = ROIAlign((2, 2), 1.0, 0)(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]))
    if pooled.shape != (1, 1, 2, 2):
        return [Finding("detectron2", MISSING, f"RoIAlign gives {tuple(pooled.shape)}", "make env")]
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        what = "works, without its compiled operators: no rotated boxes or deformable convolution, and the slower COCO"
        remedy = f"nothing here needs them; with a compiler and the internet: {DETECTRON2_SOURCE}"
        return [Finding("detectron2", LIMITED, f"{what} evaluation", remedy)]
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


def answer(names: Iterable[str]) -> int:
    """In the child: a JSON line per probe, as it ends."""
    warnings.simplefilter("ignore")
    for name in names:
        try:
            findings = PROBES[name]()
        except Exception as error:  # whatever a broken package raises is the finding
            what = "not installed" if isinstance(error, ModuleNotFoundError) else "installed, but does not work"
            findings = [Finding(name, MISSING, f"{what}: {first_words(error)}", HELP[name])]
        print(f"\n{json.dumps([name, [asdict(finding) for finding in findings]])}", flush=True)
    return 0


def probe_all() -> list[Finding]:
    """All probes in one child; where that crashes or hangs, the rest in another."""
    findings_by_name: dict[str, list[Finding]] = {}
    while remaining := [name for name in PROBES if name not in findings_by_name]:
        began = time.monotonic()
        for name, findings in probe_in_child(remaining):
            findings_by_name[name] = findings
        culprit = next((name for name in remaining if name not in findings_by_name), None)
        if culprit is not None:
            how = "hangs" if time.monotonic() - began >= PROBE_SECONDS else "crashes the interpreter"
            findings_by_name[culprit] = [Finding(culprit, MISSING, f"installed, but importing it {how}", HELP[culprit])]
    return [finding for name in PROBES for finding in findings_by_name[name]]


def probe_in_child(names: list[str]) -> Iterator[tuple[str, list[Finding]]]:
    command = [sys.executable, "-m", "whitebench.doctor", "--probe", *names]
    try:
        printed = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, cwd=ROOT).stdout
    except subprocess.TimeoutExpired as expired:
        printed = expired.stdout or b""
    for line in printed.decode(errors="replace").splitlines():
        if line.startswith('["'):
            name, findings = json.loads(line)
            yield name, [Finding(**finding) for finding in findings]
