"""A sweep whose jobs are killed, cancelled and preempted at random ends as an undisturbed one does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import ROOT, log, prepare, write_sweep
from tests.support.own_cluster import missing

pytestmark = [pytest.mark.slurm, pytest.mark.long]


@pytest.mark.skipif(bool(missing()) and os.geteuid() != 0, reason="needs SLURM: as root on Debian, ./install.sh slurm")
def test_random_kills_cancellations_and_preemptions_lose_nothing_and_repeat_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: Any
) -> None:
    place = prepare(tmp_path, monkeypatch, "two", "kind: local\nslots: 2\n")
    stages = {
        "pretrain": {"function": "count", "options": {"to": 60, "every": 0.1}},
        "linear": {"function": "count", "options": {"to": 10, "every": 0.1}},
        "after": {"function": "count", "needs": ["linear"]},
    }
    sweep = write_sweep(place, stages, seeds=3, recipes=("sample/intl", "sample/random"))
    assert launch(sweep, "--cluster", "two")[0] == 0

    work = place / "disturbed"
    command = [sys.executable, "-m", "tests.support.chaos", sweep, "--work", work, "--reference", place / "runs"]
    options = ["--every", "1", "4", "--most", "12", "--cpus", "2"]
    told = subprocess.run([*map(str, command), *options], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-3000:]
    events = [json.loads(line)["action"] for line in (work / "events.jsonl").read_text().splitlines()]
    assert {"kill", "cancel", "preempt"} <= set(events)
    ends = [line["id"] + line["stage"] for line in log(work) if "end" in line]
    assert len(ends) == len(set(ends)) == 18
