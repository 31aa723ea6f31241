"""A process of its own for what can loop for ever: it names each item before it reads it, and is ended by its parent.

C code (pycocotools, an XML parser, a file system that does not answer) ignores Ctrl-C and SIGTERM while it loops.
"""

import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from whitebench.errors import UserError

SECONDS = 60.0
"""For one item, and for reading the file (several times what COCO's take)."""
START_SECONDS = 300.0
"""Until the other process has imported what it needs, from a slow file system."""
READY = "ready"
"""The line of the other process after its imports."""
TRY = "try "
"""Begins each line of the other process that names an item."""
REPOSITORY = Path(__file__).parents[1]


class Fault(NamedTuple):
    item: str
    """The item that was being read; empty before the first."""
    message: str


def run_trial(module: str, path: Path, tool: str, seconds: float = SECONDS) -> Fault | None:
    """Runs `python -m module path`, whose items are read by `attempt`, and ends it when one takes too long.

    Args:
        tool: what reads the items, for the message.
        seconds: for one item.
    Returns:
        The first item that cannot be read; None if all can.
    """
    command = [sys.executable, "-m", module, str(path)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        last, in_time = _follow(process, seconds)
        code = process.wait()
    item, _, message = last.removeprefix(TRY).partition("\t") if last.startswith(TRY) else ("", "", last)
    if not in_time:
        return Fault(item, f"{tool} takes more than {seconds:g} s")
    if code < 0:
        return Fault(item, f"{tool} was ended by signal {-code}" + ("; out of memory?" if code == -9 else ""))
    return Fault(item, message or "unknown") if code else None


def announce_ready() -> None:
    print(READY, flush=True)


def attempt(item: Any, act: Callable[[], Any]) -> Any:
    """Prints the item, and returns what `act` does; ends the process if that fails, but passes a `UserError` on."""
    print(f"{TRY}{item}", flush=True)
    try:
        return act()
    except UserError:  # a message of ours, for the caller
        raise
    except Exception as error:  # pycocotools and Detectron2's parser can raise anything
        print(f"{TRY}{item}\t{type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
        sys.exit(1)


def _follow(process: "subprocess.Popen[bytes]", seconds: float) -> tuple[str, bool]:
    """The last line that the process printed, and whether it ended itself; it is ended when nothing came in time."""
    assert process.stdout is not None
    last, rest, limit = "", b"", max(seconds, START_SECONDS)
    deadline = time.monotonic() + limit
    while True:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            process.kill()
            return last, False
        chunk = process.stdout.read1(65536)  # type: ignore[attr-defined]
        if not chunk:
            return last, True
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        last = next((line.decode(errors="replace") for line in reversed(lines) if line), last)
        limit = seconds if READY.encode() in lines else limit  # before that, lines are warnings of imports
        deadline = time.monotonic() + limit
