"""The command that repeats a run, as its record gives it; also where it was a job of a sweep that ran it."""

import shlex
from pathlib import Path
from typing import Any

from results.leaderboards.run_table import HEADLINES, at
from whitebench.records import Record

EVALUATIONS = tuple(stage for stage in HEADLINES if stage != "detect")
JOB = "submitit.core._submit"
"""In the command of a process that a scheduler started: not repeatable, as its pickle is deleted after the sweep."""


def repeat(record: Record) -> str:
    """E.g. `python -m pretrain.evaluate linear --ckpt runs/pretrain/<id> --protocol features --seed 0`."""
    if JOB not in record.command:
        return record.command
    if record.stage in EVALUATIONS:
        return _command_line(_evaluation(record.stage, record.config))
    if record.stage in ("detect", "convert"):
        only = ["--convert-only"] if record.stage == "convert" else []
        return _command_line(["python", "transfer/coco_det.py", *_detection(record), *only])
    return record.command


def _evaluation(stage: str, config: dict[str, Any]) -> list[str]:
    size = config.get("world_size", 1)
    start = ["torchrun", "--nproc-per-node", str(size)] if size != 1 else ["python"]
    plain = {**config, "epochs": config.get("epoch")}
    if stage == "robust":
        plain |= {"dataset": config.get("trained_on"), "shifts": config.get("shift")}
    if isinstance(config.get("shots"), list):
        plain["shots"] = ",".join(map(str, config["shots"]))
    names = ("epochs", "dataset", "crop", "resize", "seed", "device", "threads", "features", "shots", "probe", "shifts")
    protocol = str(at(config, "protocol", "name"))
    return [
        *start,
        "-m",
        "pretrain.evaluate",
        stage,
        *_checkpoint(config),
        "--protocol",
        protocol,
        *_options(plain, names),
    ]


def _detection(record: Record) -> list[str]:
    config = record.config
    if record.stage == "convert":
        return [*_checkpoint(config), *_options(config, ("encoder",))]
    options = _options(config, ("encoder", "seed", "device", "threads"))
    if record.metrics.get("deviations"):
        options += _options(config, ("iterations", "image_size", "batch", "lr"))
    dataset = ["--coco", str(record.cell.get("dataset") or "coco")]
    return [*_checkpoint(config), "--protocol", str(at(config, "protocol", "name")), *dataset, *options]


def _checkpoint(config: dict[str, Any]) -> list[str]:
    parent = str(config.get("parent"))
    return ["--ckpt", str(Path("runs", "pretrain", parent)) if ":" not in parent else parent]


def _options(config: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """Those that the config has."""
    options = [(name, config[name]) for name in names if config.get(name) is not None]
    return [word for name, value in options for word in (f"--{name.replace('_', '-')}", str(value))]


def _command_line(words: list[str]) -> str:
    return shlex.join(words)
