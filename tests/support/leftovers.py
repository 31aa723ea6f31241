"""Processes that a test run started and did not end: found by a variable that all its children inherit."""

import os
import secrets
import signal
import time
from pathlib import Path

MARKER = "WHITEBENCH_TEST_RUN"
PATIENCE_S = 15.0


def mark_this_run() -> str:
    """Sets the variable for every process started from now on; its value."""
    os.environ[MARKER] = secrets.token_hex(8)
    return os.environ[MARKER]


def marked_processes(run: str, also: str | None = None) -> dict[int, str]:
    """Id and command of each process of the run, and of each with `also` in its command or its environment."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        process = int(folder.name)
        if process == os.getpid():
            continue
        try:
            environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended, or is another user's
        text = environment + b"\0" + command
        if command and (f"{MARKER}={run}\0".encode() in text or (also is not None and also.encode() in text)):
            found[process] = command.replace(b"\0", b" ").decode(errors="replace").strip()[:120]
    return found


def end_leftovers(run: str, patience: float = PATIENCE_S) -> dict[int, str]:
    """Waits for processes of the run that are just ending, then kills the others; those that had to be killed."""
    end = time.monotonic() + patience
    while marked_processes(run) and time.monotonic() < end:
        time.sleep(0.2)
    leftovers = marked_processes(run)
    for process in leftovers:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return leftovers
