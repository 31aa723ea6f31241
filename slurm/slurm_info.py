"""What a SLURM cluster says of itself."""

import re
import subprocess

from whitebench.errors import UserError


def max_array_size() -> int:
    """Tasks that one array may have; 1 where arrays are switched off."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    if not found:
        raise UserError("SLURM does not tell its MaxArraySize (scontrol show config)")
    return max(1, int(found[1]))


def time_limits() -> dict[str | None, int]:
    """Partition to the minutes that it allows a job, where it sets a limit; None stands for the default partition."""
    limits: dict[str | None, int] = {}
    for line in _ask("sinfo", "-h", "-o", "%P|%l").splitlines():
        name, _, text = line.strip().partition("|")
        minutes = parse_minutes(text)
        if minutes is not None:
            limits[name.rstrip("*")] = minutes
            if name.endswith("*"):
                limits[None] = minutes
    return limits


def parse_minutes(text: str) -> int | None:
    """Whole minutes of a time as SLURM writes it; None for `infinite` and the like."""
    seconds = parse_seconds(text)
    return None if seconds is None else seconds // 60


def parse_seconds(text: str) -> int | None:
    """SLURM's `days-hours:minutes:seconds`, shortened from the left; None for `infinite` and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _ask(*command: str) -> str:
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"SLURM does not answer: {error}") from error
    if told.returncode:
        raise UserError(f"SLURM does not answer: {told.stderr.strip()}")
    return told.stdout
