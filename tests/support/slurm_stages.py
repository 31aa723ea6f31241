"""Stages for the tests of scheduling: they keep their progress on disk, and train nothing."""

import json
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from whitebench.records import Run


def count(run: Run, parents: dict[str, Path], options: dict[str, Any]) -> None:
    """Counts to `to`, one step every `every` seconds, going on from the count in its folder; logs its starts.

    With `hold`, a run that started below this count stays at it until it is stopped, or until the file `until` exists:
    a test may then take as long as it likes.
    """
    place = run.folder / "count"
    at = first = int(place.read_text()) if place.exists() else 0
    _log({"stage": run.record.stage, "id": run.id, "from": at, "start": time.time(), "pid": os.getpid()})
    while at < options.get("to", 1):
        while first < at == options.get("hold") and not Path(options.get("until", "/nowhere")).exists():
            time.sleep(0.05)
        time.sleep(options.get("every", 0.0))
        at += 1
        fresh = place.with_suffix(".tmp")
        fresh.write_text(str(at))
        fresh.rename(place)
        run.log(step=at, epoch=at, epochs=options.get("to", 1))
    run.metrics["top1"] = float(at)
    run.metrics["saw"] = {stage: (folder / "count").read_text() for stage, folder in parents.items()}
    run.metrics["threads"] = os.environ.get("OMP_NUM_THREADS")
    _log({"stage": run.record.stage, "id": run.id, "end": time.time()})


def fail(run: Run, parents: dict[str, Path], options: dict[str, Any]) -> None:
    """Fails for the recipes named in `recipes`, and for all where none is, until the file `unless` exists."""
    _log({"stage": run.record.stage, "id": run.id, "start": time.time()})
    recipe = run.record.cell["recipe"]
    if recipe in options.get("recipes", [recipe]) and not Path(options.get("unless", "/nowhere")).exists():
        raise ValueError("deliberate")
    count(run, parents, {})


def die(run: Run, parents: dict[str, Path], options: dict[str, Any]) -> None:
    """Kills its own process the first time, as running out of memory would."""
    if not (run.folder / "count").exists():
        (run.folder / "count").write_text("0")
        os.kill(os.getpid(), 9)
    count(run, parents, options)


def perish(run: Run, parents: dict[str, Path], options: dict[str, Any]) -> None:
    """The first run takes the first of `ways` to end its process, the second the second, and so on; the others count.

    Runs agree on their numbers by files in the folder of runs.
    """
    number = 0
    while not _claim(Path(os.environ["WHITEBENCH_RUNS"]) / f"way-{number}"):
        number += 1
    way = options["ways"][number] if number < len(options["ways"]) else "count"
    if way == "count":
        count(run, parents, {})
    elif way == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        bytearray(2**33)
    elif way == "exit":
        os._exit(3)
    else:
        os.kill(os.getpid(), getattr(signal, way))


def _claim(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def state(run: Run, parents: dict[str, Path], options: dict[str, Any]) -> None:
    """Writes down what the process has of its own, and leaves traces in it that no other job may see."""
    content = {
        "environment": dict(os.environ),
        "process": os.getpid(),
        "parent": os.getppid(),
        "argv": sys.argv,
        "stdin": os.readlink("/proc/self/fd/0"),
        "affinity": sorted(os.sched_getaffinity(0)),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "handlers": {name: str(signal.getsignal(name)) for name in (signal.SIGCHLD, signal.SIGUSR1)},
        "threads": threading.active_count(),
        "trace": getattr(os, "trace_of_a_job", None),
        "draw": random.random(),
        "torch": torch_threads() if "torch" in sys.modules else None,
        "descriptors": len(os.listdir("/proc/self/fd")),
    }
    (run.folder / "state.json").write_text(json.dumps(content))
    os.environ["TRACE_OF_A_JOB"] = "yes"
    os.trace_of_a_job = "yes"  # type: ignore[attr-defined]
    print(f"the log of {run.id}", flush=True)
    time.sleep(options.get("seconds", 0.0))


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def deaf(run: Run, parents: dict[str, Path], options: dict[str, Any]) -> None:
    """Ignores the warning in its first job, and is killed at the time limit."""
    if not (run.folder / "count").exists():
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
    count(run, parents, options)


def hoard(run: Run, parents: dict[str, Path], options: dict[str, Any]) -> None:
    """Writes `megabytes` to disk."""
    (run.folder / "hoard").write_bytes(bytes(options["megabytes"] * 2**20))
    count(run, parents, options)


def forget(run: Run, parents: dict[str, Path], options: dict[str, Any]) -> None:
    """Takes longer than its time limit, and keeps nothing when it is stopped."""
    _log({"stage": run.record.stage, "id": run.id, "start": time.time()})
    time.sleep(600)


def environment(run: Run, parents: dict[str, Path], options: dict[str, Any]) -> None:
    """Writes down its environment."""
    (run.folder / "environment.json").write_text(json.dumps(dict(os.environ)))


def stubborn(run: Run, parents: dict[str, Path], options: dict[str, Any]) -> None:
    """Ignores requests to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _log({"stage": run.record.stage, "id": run.id, "start": time.time(), "pid": os.getpid()})
    time.sleep(120)


def _log(line: dict[str, Any]) -> None:
    with open(Path(os.environ["WHITEBENCH_RUNS"]) / "log.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
