"""What a sweep or a preset may ask of SLURM for a job: number ranges, typed GPUs, and further options of sbatch."""

import math
import re
from collections.abc import Mapping
from typing import Any

from whitebench.errors import UserError

RANGES: dict[str, tuple[float, float]] = {
    "nodes": (1, 100_000),
    "cpus": (1, 4096),
    "memory_gb": (0.001, 1_000_000),
    "memory_per_gpu_gb": (0.001, 1_000_000),
    "hours": (1 / 3600, 24 * 366),
    "signal_delay_s": (0, 65_535),
    "throttle": (1, 1_000_000),
    "slots": (1, 4096),
    "max_jobs": (2, 10_000_000),
}
"""Least and greatest value of each number; NaN and infinity are in none of these ranges."""
MOST_GPUS = 4096
LIGHT_MEMORY_GB = 8.0
"""At most, of stages that hold some copies of one network: a preset's memory for all stages is not for them."""
PER_PROCESS = "per-process"
"""In place of a number: as many GPUs as the recipe has processes."""
GPUS = re.compile(rf"(?:([A-Za-z][\w.-]*):)?(\d+|{PER_PROCESS})", re.ASCII)
RESERVED = {
    "array": "the launcher makes the arrays",
    "dependency": "the launcher sets what a job waits for (stages.<stage>.needs)",
    "output": "logs are in the sweep's folder (--logs)",
    "error": "logs are in the sweep's folder (--logs)",
    "open-mode": "logs are appended to, so that they survive requeueing",
    "job-name": "jobs are named <sweep>:<stage>",
    "signal": "set signal_delay_s",
    "requeue": "the launcher decides what is queued again",
    "no-requeue": "the launcher decides what is queued again",
    "kill-on-invalid-dep": "the launcher sets it",
    "time": "set hours",
    "nodes": "set nodes in the sweep's stage",
    "ntasks": "the recipe's world_size says how many processes there are",
    "ntasks-per-node": "the recipe's world_size says how many processes there are",
    "cpus-per-task": "set cpus",
    "gpus": "set gpus, e.g. gpus: a100:1",
    "gpus-per-node": "set gpus, e.g. gpus: a100:1",
    "gpus-per-task": "set gpus, e.g. gpus: a100:1",
    "gpus-per-socket": "set gpus, e.g. gpus: a100:1",
    "partition": "set partition",
    "account": "set account",
    "qos": "set qos",
    "constraint": "set constraint",
    "parsable": "the launcher reads sbatch's answer",
    "quiet": "the launcher reads sbatch's answer",
    "wait": "use --wait",
    "test-only": "use --dry-run",
    "wrap": "the launcher writes the batch script",
    "chdir": "jobs run in the folder of the launch",
    "uid": "jobs run as the user who launches",
    "clusters": "one cluster per preset; set SLURM_CONF",
}
"""Options of sbatch that would break what the launcher does, or have a key of their own here."""


def check_request(request: Any, where: str) -> None:
    """Checks the numbers, the GPUs and the options of sbatch of a preset, a preset's stage, or a sweep's stage.

    Args:
        where: what a key follows in a message, e.g. `mine.yaml: stages.knn.`.

    Raises:
        UserError: one line for the first fault.
    """
    for key, (least, greatest) in RANGES.items():
        check_number(getattr(request, key, None), least, greatest, f"{where}{key}")
    parse_gpus(getattr(request, "gpus", None), f"{where}gpus")
    check_sbatch(request.sbatch, f"{where}sbatch")


def refuse_booleans(raw: Mapping[str, Any], where: str) -> None:
    """YAML reads `yes` and `on` as true, which would pass for the number 1."""
    for key in (*RANGES, "gpus"):
        if isinstance(raw.get(key), bool):
            raise UserError(f"{where}{key}: must be a number, not {str(raw[key]).lower()}")


def check_number(value: float | None, least: float, greatest: float, where: str) -> None:
    if value is None:
        return
    if not math.isfinite(value) or not least <= value <= greatest:
        bound = "more than 0" if least <= 0.001 and value <= 0 else f"from {least:g} to {greatest:g}"
        raise UserError(f"{where}: must be {bound}, not {value}")


def parse_gpus(value: int | str | None, where: str) -> tuple[int, str]:
    """Number and type of GPUs per node: 4 -> (4, ""), "a100:4" -> (4, "a100"); 1 stands for `PER_PROCESS`.

    Raises:
        UserError: it reads like neither.
    """
    match = GPUS.fullmatch(str(0 if value is None else value))
    if match and match[2] == PER_PROCESS:
        return 1, match[1] or ""
    if not match or int(match[2]) > MOST_GPUS or isinstance(value, bool):
        raise UserError(f"{where}: must be a number of GPUs per node, or type:number as in a100:4, not {value!r}")
    return int(match[2]), (match[1] or "") if int(match[2]) else ""


def is_per_process(value: int | str | None) -> bool:
    """Whether GPUs are asked for by the recipe's number of processes."""
    return str(value).rpartition(":")[2] == PER_PROCESS


def option_name(key: str) -> str:
    """As sbatch's manual writes it: `mail_type`, `--mail-type` -> `mail-type`."""
    return str(key).strip().lstrip("-").replace("_", "-")


def check_sbatch(options: Mapping[str, Any], where: str) -> None:
    """Refuses options that the launcher sets itself (abbreviated or not) and values that are not a single word."""
    for key, value in options.items():
        name = option_name(key)
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name, re.ASCII):
            raise UserError(f"{where}.{key}: must be a long option of sbatch, without dashes before it")
        reserved = next((option for option in RESERVED if len(name) > 2 and option.startswith(name)), None)
        if reserved:
            raise UserError(f"{where}.{key}: not to be set here: {RESERVED[reserved]}")
        if isinstance(value, dict | list) or "\n" in str(value):
            raise UserError(f"{where}.{key}: must be a single value, not {value!r}")
        if name == "gres" and re.search(r"(^|,)(gres[:/])?gpu\b", str(value)):
            raise UserError(f"{where}.{key}: not to be set here: {RESERVED['gpus']}")


def merged_options(*levels: Mapping[str, Any]) -> dict[str, Any]:
    """Options of sbatch by their full names, later levels first; null or false takes an option out."""
    options = {option_name(key): value for level in levels for key, value in level.items()}
    return {key: value for key, value in options.items() if value is not None and value is not False and value != ""}
