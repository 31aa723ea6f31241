"""What the exit code of a job's processes says, as the shell and srun report it."""

import signal
from typing import NamedTuple

SIGNALLED = 128
"""Exit codes above it: death by the signal of that number."""


class ExitCode(NamedTuple):
    text: str
    by_chance: bool
    """Whether the same run may well get further the next time: killed from outside, or a fault of the node."""


EXPLAINED = {
    signal.SIGKILL: ExitCode("killed by SIGKILL: out of memory?", True),
    signal.SIGTERM: ExitCode("ended by SIGTERM", True),
    signal.SIGINT: ExitCode("ended by SIGINT", True),
    signal.SIGHUP: ExitCode("ended by SIGHUP", True),
    signal.SIGUSR1: ExitCode("ended by SIGUSR1", True),
    signal.SIGUSR2: ExitCode("ended by SIGUSR2 before it could save", True),
    signal.SIGSEGV: ExitCode("segmentation fault", True),
    signal.SIGBUS: ExitCode("bus error: no room in shared memory (/dev/shm), or a file that was truncated?", True),
    signal.SIGABRT: ExitCode("aborted by a library (SIGABRT)", True),
    signal.SIGFPE: ExitCode("arithmetic fault (SIGFPE)", False),
    signal.SIGILL: ExitCode("illegal instruction: compiled for another processor than this node's?", False),
    signal.SIGXCPU: ExitCode("CPU time limit reached (ulimit -t)", False),
    signal.SIGXFSZ: ExitCode("file size limit reached (ulimit -f)", False),
    signal.SIGPIPE: ExitCode("broken pipe (SIGPIPE)", False),
}
PLAIN = {
    126: "a command of the job is not executable",
    127: "a command of the job was not found on the node",
}


def explain(code: int) -> ExitCode:
    """What an exit code other than 0 means."""
    number = code - SIGNALLED
    if number in EXPLAINED:
        text, by_chance = EXPLAINED[signal.Signals(number)]
        return ExitCode(f"exit code {code}, {text}", by_chance)
    if 0 < number < signal.SIGRTMIN and number in set(signal.Signals):
        return ExitCode(f"exit code {code}, ended by {signal.Signals(number).name}", False)
    if code in PLAIN:
        return ExitCode(f"exit code {code}, {PLAIN[code]}", False)
    return ExitCode(f"exit code {code}", False)
