"""Locks whose dead holders keep nothing, on file systems that share flock, know none, or keep it to each machine."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from whitebench import locks as module
from whitebench.locks import LEASE_S, Held, Lock, is_taken, owner_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


@pytest.fixture(params=["flock", "no flock"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With "no flock", as some network file systems are."""

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    if request.param == "no flock":
        monkeypatch.setattr(fcntl, "flock", refuse)
    return str(request.param)


def leave_owner(path: Path, host: str, age: float, pid: int = 1) -> None:
    path.touch()
    owner_file(path).write_text(json.dumps({"host": host, "pid": pid, "token": "other"}))
    then = owner_file(path).stat().st_mtime - age
    os.utime(owner_file(path), (then, then))


def test_it_is_held_until_it_is_released(path: Path, file_system: str) -> None:
    first, second = Lock(path), Lock(path)
    assert not is_taken(path)
    first.acquire()
    assert is_taken(path)
    with pytest.raises(Held, match=f"process {os.getpid()} on "):
        second.acquire()
    first.release()
    assert not is_taken(path)
    second.acquire()
    second.release()
    assert not owner_file(path).exists()


def test_a_killed_holder_of_this_machine_keeps_nothing(path: Path) -> None:
    code = (
        "import sys, pathlib, time\nfrom whitebench import locks\n"
        "locks.BEAT_S = 0.1; locks.Lock(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", f"{code}; print(flush=True); time.sleep(60)", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(Held, match=f"process {holder.pid}"):
            Lock(path).acquire()
        holder.send_signal(signal.SIGKILL)
    assert owner_file(path).exists()
    assert not is_taken(path)
    taken = Lock(path)
    taken.acquire()
    taken.release()


def test_a_holder_on_another_machine_keeps_it_as_long_as_it_shows_life(path: Path, file_system: str) -> None:
    leave_owner(path, "elsewhere", age=LEASE_S - 20)
    assert is_taken(path)
    with pytest.raises(Held, match="process 1 on elsewhere"):
        Lock(path).acquire()
    leave_owner(path, "elsewhere", age=LEASE_S + 20)
    assert not is_taken(path)
    taken = Lock(path)
    taken.acquire()
    assert json.loads(owner_file(path).read_text())["pid"] == os.getpid()
    taken.release()


def _race(path: Path, together: Any, won: Any) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    module.fcntl.flock = refuse  # type: ignore[attr-defined]
    together.wait()
    try:
        Lock(path).acquire()
        with won.get_lock():
            won.value += 1
    except Held:
        pass
    together.wait()  # the winner lives until all have tried


def test_of_many_that_find_a_dead_holder_one_takes_its_place(path: Path) -> None:
    leave_owner(path, "elsewhere", age=LEASE_S + 20)
    context = multiprocessing.get_context("fork")
    together, won = context.Barrier(12), context.Value("i", 0)
    racers = [context.Process(target=_race, args=(path, together, won)) for _ in range(12)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert won.value == 1


def test_a_holder_whose_place_was_taken_while_it_slept_ends_at_once(path: Path) -> None:
    imports = "import sys, pathlib, time\nfrom whitebench import locks\n"
    code = f"{imports}locks.BEAT_S = 0.1; locks.Lock(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}.acquire(); print(flush=True); time.sleep(60)", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        leave_owner(path, "elsewhere", age=0)
        assert holder.wait(30) == 1
        assert b"another process has taken over" in holder.communicate()[1]
