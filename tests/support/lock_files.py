"""Lock files as processes leave them."""

import os
import socket
from pathlib import Path

from whitebench.locks import Lock


def write_lock_of(path: Path, host: str, age: float = 0.0, pid: int = 1) -> None:
    """The lock file as a process on another host leaves it: a real one with the host's name exchanged."""
    path.unlink(missing_ok=True)
    lock = Lock(path)
    lock.acquire()
    content = path.read_bytes()
    lock.release()
    own = f"{os.getpid()}".encode()
    assert own in content
    lines = content.replace(own, f"{pid}".encode()).splitlines(keepends=True)
    path.write_bytes(b"".join(_with_host(line, host) for line in lines))
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))


def _with_host(line: bytes, host: str) -> bytes:
    return line.replace(socket.gethostname().encode(), host.encode())
