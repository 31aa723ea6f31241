"""Locks that a dead holder loses and a live one keeps, within one host and between hosts."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.lock_files import write_lock_of
from whitebench.locks import LEASE_S, Held, Lock, is_taken, read_owner

HOLD = (
    "import sys, pathlib, time; from whitebench import locks; {}"
    "lock = locks.Lock(pathlib.Path(sys.argv[1])); lock.acquire()"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def hold(path: Path, settings: str = "") -> "subprocess.Popen[bytes]":
    """A process that holds the lock until it is ended."""
    program = f"{HOLD.format(settings)}; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    return holder


def test_it_is_held_until_it_is_released(path: Path) -> None:
    first, second = Lock(path), Lock(path)
    assert not is_taken(path)
    first.acquire()
    assert is_taken(path)
    assert read_owner(path) == (socket.gethostname(), os.getpid())
    with pytest.raises(Held, match=f"process {os.getpid()} on "):
        second.acquire()
    first.release()
    assert not is_taken(path)
    second.acquire()
    second.release()
    assert not path.exists()


def test_asking_leaves_no_file_behind(path: Path) -> None:
    assert not is_taken(path)
    assert list(path.parent.iterdir()) == []


def test_a_killed_holder_of_this_host_loses_it_at_once(path: Path) -> None:
    with hold(path) as holder:
        with pytest.raises(Held, match=f"process {holder.pid}"):
            Lock(path).acquire()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert path.exists()
    assert not is_taken(path)
    lock = Lock(path)
    lock.acquire()
    lock.release()


def test_a_holder_on_another_host_keeps_it_while_it_touches_the_file(path: Path) -> None:
    write_lock_of(path, "elsewhere", age=LEASE_S - 20)
    assert is_taken(path)
    with pytest.raises(Held, match="process 1 on elsewhere"):
        Lock(path).acquire()
    write_lock_of(path, "elsewhere", age=LEASE_S + 20)
    assert not is_taken(path)


def test_a_holder_on_another_host_that_has_died_loses_it(path: Path) -> None:
    write_lock_of(path, "elsewhere", age=LEASE_S + 20)
    lock = Lock(path)
    lock.acquire()
    assert read_owner(path) == (socket.gethostname(), os.getpid())
    lock.release()


def test_a_file_without_a_holder_is_taken_over(path: Path) -> None:
    """An empty file: of an earlier version, or of a process that was killed while it wrote."""
    path.touch()
    os.utime(path, (0, 0))
    assert not is_taken(path)
    lock = Lock(path)
    lock.acquire()
    lock.release()


def _race(path: Path, together: Any, winners: Any) -> None:
    lock = Lock(path)  # a lock that is not referenced is released
    together.wait()
    try:
        lock.acquire()
        with winners.get_lock():
            winners.value += 1
    except Held:
        pass
    together.wait()  # the winner lives until all have tried


def test_of_many_that_wait_for_a_dead_holder_one_gets_it(path: Path) -> None:
    write_lock_of(path, "elsewhere", age=LEASE_S + 20)
    context = multiprocessing.get_context("fork")
    together, winners = context.Barrier(8), context.Value("i", 0)
    racers = [context.Process(target=_race, args=(path, together, winners)) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert winners.value == 1


def test_a_holder_that_lost_its_lock_while_it_slept_ends(path: Path) -> None:
    with hold(path, "locks.BEAT_S = 0.1; ") as holder:
        content = path.read_bytes()
        fresh = path.with_name("fresh")
        fresh.write_bytes(content.replace(f"{holder.pid}".encode(), b"1"))
        os.replace(fresh, path)
        assert holder.wait(30) == 1
        assert b"another process has taken over" in holder.communicate()[1]


def test_a_holder_whose_folder_is_moved_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with hold(folder / ".lock", "locks.BEAT_S = 0.1; ") as holder:
        folder.rename(tmp_path / "moved")
        time.sleep(1)
        assert holder.poll() is None
        assert is_taken(tmp_path / "moved" / ".lock")
        holder.kill()
