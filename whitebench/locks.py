"""Locks on run folders that a dead holder loses, also on network file systems shared by several hosts.

The lock is a file that names its holder (host, process) and that the holder touches every `BEAT_S` seconds. A holder
that died on this host loses it at once; one on another host, when its file was not touched for `LEASE_S` seconds.
"""

import os
import secrets
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import SoftFileLease, Timeout

BEAT_S, LEASE_S = 15.0, 90.0
ATTEMPTS, PAUSE_S = 40, 0.05
"""To take over a dead holder's lock, which other processes may try at the same time."""
POLL_S = 1.0
"""Between two looks at a lock that is waited for."""
INCOMPLETE_S = 5.0
"""A lock file without a readable holder is being written if it is younger; otherwise a crash left it."""


class Held(Exception):
    """Another process holds the lock; the text names it as far as it is known."""


class Owner(NamedTuple):
    host: str
    pid: int


class Lock:
    """A lock on the file `path`, held by one process of one host at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lease = _lease(path)

    def acquire(self) -> None:
        """Takes the lock now or not at all.

        Raises:
            Held: another process has it.
        """
        for _ in range(ATTEMPTS):
            try:
                self._lease.acquire(timeout=0)
                return
            except Timeout as timeout:
                if is_taken(self.path):
                    raise Held(describe_owner(self.path)) from timeout
                self._remove_dead()
                time.sleep(PAUSE_S)  # others may be at it
        raise Held(describe_owner(self.path))

    def wait(self) -> None:
        """Takes the lock as soon as no other process has it."""
        while True:
            with suppress(Held):
                return self.acquire()
            time.sleep(POLL_S)

    def _remove_dead(self) -> None:
        """Removes a dead holder's file; of several processes that try, one at a time.

        The lease itself exchanges two files for this, which NFS refuses, and waits for a whole lease first.
        """
        gate = self.path.with_name(f"{self.path.name}.takeover")
        try:
            gate.mkdir()
        except FileExistsError:
            if (_age(gate) or 0.0) > LEASE_S:  # its process was killed in between
                with suppress(OSError):
                    gate.rmdir()
            return
        try:
            if not is_taken(self.path):
                self.path.unlink(missing_ok=True)
        finally:
            gate.rmdir()

    def release(self) -> None:
        self._lease.release()


def read_owner(path: Path) -> Owner | None:
    """The process that the lock file names, alive or not; None without a file or a readable name."""
    record = _lease(path).owner
    return Owner(record.hostname.partition("?")[0], record.pid) if record else None


def describe_owner(path: Path) -> str:
    owner = read_owner(path)
    return f"process {owner.pid} on {owner.host}" if owner else "a process that has just started"


def is_taken(path: Path) -> bool:
    """Whether a process that may be alive holds the lock; the lock itself is not touched."""
    import psutil  # status asks for few locks; --help for none

    age = _age(path)
    if age is None:
        return False
    owner = read_owner(path)
    if owner is None:
        return age < INCOMPLETE_S
    return age < LEASE_S and (owner.host != socket.gethostname() or psutil.pid_exists(owner.pid))


def last_beat(path: Path) -> float | None:
    """When the holder last touched the lock file, in seconds since the epoch; None without a file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(
        path,
        lease_duration=LEASE_S,
        heartbeat_interval=BEAT_S,
        on_compromise=_end_process,
        thread_local=False,
    )


def _end_process(loss: object) -> None:
    """Ends a holder whose lock another process may take: two writers would mix their results."""
    path, reason = getattr(loss, "lock_file", "lock"), getattr(loss, "reason", "lost")
    message = "another process has taken over" if reason == "owner-changed" else f"the lock was lost ({reason})"
    print(f"{path}: {message}; this process ends", file=sys.stderr, flush=True)
    os._exit(1)


def _age(path: Path) -> float | None:
    """Seconds since the file was touched, by the file system's clock as hosts' clocks differ; None without one."""
    beat = last_beat(path)
    if beat is None:
        return None
    clock = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        clock.touch()
        return clock.stat().st_mtime - beat
    except OSError:  # a folder that this user may only read
        return time.time() - beat
    finally:
        clock.unlink(missing_ok=True)
