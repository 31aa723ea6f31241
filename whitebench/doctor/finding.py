"""A finding of the doctor: one line with its state and what to do about it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout."""
OK, LIMITED, MISSING = "ok", "limited", "missing"


@dataclass(frozen=True)
class Finding:
    """One line: `state` is ok; limited, where the built-in sweep works without; or missing, where it does not."""

    name: str
    state: str
    what: str
    remedy: str = ""


def output_of(*command: str) -> str:
    """What the command prints; '' where it fails, hangs or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def first_words(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def list_of(items: list[str], most: int = 4) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
