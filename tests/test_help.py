"""Every command answers --help, and without what takes long to import."""

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

COMMANDS = [
    ["-m", "pretrain"],
    *(["-m", "pretrain.data", *more] for more in ([], ["write"], ["subset"], ["verify"], ["show"], ["sample"])),
    *(["-m", "pretrain.data", command] for command in ("preflight", "measure")),
    *(["-m", "pretrain.evaluate", *more] for more in ([], ["linear"], ["finetune"], ["robust"])),
    ["-m", "pretrain.diagnostics"],
    ["transfer/coco_det.py"],
    ["slurm/launch_sweep.py"],
    ["results/aggregate.py"],
    ["results/claims.py"],
    ["results/report.py"],
    ["results/export.py"],
    ["-m", "whitebench.doctor"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_help_is_given_without_torch(arguments: list[str], command: Callable[..., CompletedProcess[str]]) -> None:
    done = command("-X", "importtime", *arguments, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported
    assert "torch" not in imported
