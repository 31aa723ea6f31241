"""One launcher at a time submits, or runs a sweep on this machine."""

import errno
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whitebench.errors import UserError
from whitebench.locks import Held, Lock

PATIENCE_S = 600.0
"""Submitting 10,000 cells takes less; a launcher that was stopped (Ctrl-Z) keeps its lock for ever."""
SILENCE_S = 1.0
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


class Busy(UserError):
    """Another launcher holds the lock."""


@contextmanager
def launch_lock(path: Path, wait: bool, what: str) -> Iterator[None]:
    """Held by one launcher at a time, until it ends or dies.

    Args:
        wait: for another holder, up to ten minutes, and say so.
        what: what the other is doing, e.g. "another launcher is submitting".
    Raises:
        Busy: another holds it, and we were not to wait, or have waited long enough.
        UserError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(path)
        _acquire(lock, PATIENCE_S if wait else 0.0, what)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(
            f"{path.parent}: this user may not write there; set WHITEBENCH_RUNS to a folder of yours"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: Lock, patience: float, what: str) -> None:
    begin, reported = time.monotonic(), False
    while True:
        try:
            lock.acquire()
            return
        except Held as holder:
            waited = time.monotonic() - begin
            if waited >= patience:
                end = "; it may be stopped (Ctrl-Z): end it, then launch again" if patience else ""
                raise Busy(f"{what} ({holder}){end or '; --status shows how far it is'}") from holder
            if not reported and waited >= SILENCE_S:
                reported = True
                print(f"{what} ({holder}): waiting for it", file=sys.stderr, flush=True)
            time.sleep(0.2)
