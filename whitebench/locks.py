"""A lock that a dead holder does not keep, also where the kernel's own locks are not shared between machines.

`flock` comes first: the kernel frees it when its holder dies, NFS 4 when the lease of the holder's machine ends. Some
network file systems have no flock, or keep it to each machine. So the holder also says in a file beside the lock who it
is, and touches that file while it lives. Whoever finds it untouched for LEASE_S takes its place. Ages are told by the
file system's clock, since those of machines differ.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

BEAT_S, LEASE_S = 15.0, 90.0
UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What flock says where the file system knows no locks."""


class Held(Exception):
    """By another process; the text says which, as far as it is known."""


class Lock:
    """On `path`, a file that is made where it is missing. Held by one process of one machine at a time."""

    def __init__(self, path: Path) -> None:
        self.path, self.owner = path, owner_file(path)
        self._token = secrets.token_hex(8)
        self._file: IO[str] | None = None
        self._over = threading.Event()

    def acquire(self) -> None:
        """At once, or not at all.

        Raises:
            Held: another process has it.
        """
        self._file = open(self.path, "a")  # noqa: SIM115  # it is held open as long as the lock
        try:
            shared = self._flock_patiently(self._file)
            before = read_owner(self.path)
            if before and _lives(self.path, before, flocked=shared):
                raise Held(f"process {before.get('pid')} on {before.get('host')}")
            self._take_place_of(before)
        except BaseException:
            self._file.close()
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def _flock_patiently(self, file: IO[str]) -> bool:
        """Somebody may be asking just now whether it is taken, which takes it for a moment."""
        for _ in range(3):
            with suppress(Held):
                return _flock(file, fcntl.LOCK_EX)
            time.sleep(0.1)
        return _flock(file, fcntl.LOCK_EX)

    def release(self) -> None:
        self._over.set()
        if (read_owner(self.path) or {}).get("token") == self._token:
            self.owner.unlink(missing_ok=True)
        if self._file:
            self._file.close()

    def _take_place_of(self, before: dict[str, Any] | None) -> None:
        """Of several processes that find the same dead holder, one succeeds."""
        if before is not None:
            aside = self.owner.with_name(f"{self.owner.name}.{self._token}")
            try:
                os.rename(self.owner, aside)
            except FileNotFoundError as error:
                raise Held("a process that was faster") from error
            found = _read(aside)
            if found.get("token") != before.get("token"):  # not the dead one: somebody has taken its place already
                with suppress(OSError):
                    os.link(aside, self.owner)
                aside.unlink(missing_ok=True)
                raise Held(f"process {found.get('pid')} on {found.get('host')}")
            aside.unlink()
        try:
            with open(self.owner, "x") as file:
                file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": self._token}))
        except FileExistsError as error:
            raise Held("a process that was faster") from error

    def _beat(self) -> None:
        """A holder that was asleep for so long that another took its place must not write any more."""
        while not self._over.wait(BEAT_S):
            found = read_owner(self.path)
            if found is not None and found.get("token") not in (self._token, None) and not self._over.is_set():
                print(f"{self.path}: another process has taken over; this one ends", file=sys.stderr, flush=True)
                os._exit(1)
            with suppress(OSError):  # e.g. a server that is away for a moment
                os.utime(self.owner)


def owner_file(path: Path) -> Path:
    """Who holds the lock `path`; touched every BEAT_S seconds."""
    return path.with_name(f"{path.name}.owner")


def read_owner(path: Path) -> dict[str, Any] | None:
    """`host`, `pid` and `token` of the holder of the lock `path`; {} of one that is just about to say so."""
    return _read(owner_file(path)) if owner_file(path).exists() else None


def is_taken(path: Path) -> bool:
    """Whether some process holds the lock; it is not touched but for the moment of asking."""
    try:
        with open(path) as file:
            shared = _flock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except Held:
        return True
    owner = read_owner(path)
    return bool(owner and _lives(path, owner, flocked=shared))


def _flock(file: IO[str], kind: int) -> bool:
    """Whether the file system knows flock, and grants it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNKNOWN:
            return False
        owner = read_owner(Path(file.name)) or {}
        raise Held(f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'a machine unknown')}") from error
    return True


def _lives(path: Path, owner: dict[str, Any], flocked: bool) -> bool:
    """Whether a holder may be at work still. One of this machine would have kept us from flock, where there is one."""
    if owner.get("host") == socket.gethostname():
        return not flocked and Path(f"/proc/{owner.get('pid')}").exists()
    return _age(owner_file(path)) < LEASE_S


def _age(path: Path) -> float:
    """Seconds since the file was touched, by the file system's clock; 0 where it has gone just now."""
    clock = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    except PermissionError:  # a reader who may not write here
        return time.time() - path.stat().st_mtime
    finally:
        clock.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found
