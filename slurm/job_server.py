"""The process from which local jobs are forked: it has imported what they need, so that none of them waits for it.

    python -u -m slurm.job_server SOCKET STAGE ...

It imports, reports that it is ready, and then forks a process for each request. A job is an ordinary process of its
own: environment, log, signals, memory and exit code are its own, and its death touches neither this process nor another
job. Nothing but imports has happened in it before. Only a process with one thread can be forked safely: with more,
this one reports that it is of no use.

A request is a line of JSON with the job's `folder` and `environment`. Answers are lines, too: `ready` once, `started`
with the process id for each request, and `ended` with the exit code (negative: the signal).
"""

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

SUBMITTED = "submitted.pkl"
"""The job in its folder, before its process id, which submitit has in the file's name, is known."""
TORCH = ("torch", "torchvision", "numba", "pretrain.train", "submitit", "psutil", "pydantic")
EVALUATION = (*TORCH, "pretrain.evaluate.stage", "pretrain.evaluate.features", "pretrain.checkpoint")
DETECTION = (*TORCH, "pretrain.checkpoint", "transfer.stages", "transfer.detect", "transfer.trainer", "detectron2.data")
DRAWING = ("detectron2.utils.visualizer", "matplotlib.figure", "matplotlib.backends.backend_agg")
PRELOAD: dict[str, tuple[str, ...]] = {
    "pretrain": TORCH,
    "linear": (*EVALUATION, "pretrain.evaluate.linear"),
    "knn": (*EVALUATION, "pretrain.evaluate.knn"),
    "convert": (*DETECTION, "transfer.feature_maps", "timm"),
    "detect": (*DETECTION, *DRAWING, "detectron2.evaluation", "pycocotools.cocoeval", "torch.utils.tensorboard"),
}
"""Modules by stage; EVALUATION of any other. Not FFCV, pandas and scikit-learn: importing them starts threads."""


class Server:
    """Forks jobs on request until the launcher closes the connection and all jobs have ended."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.unread = b""
        self.is_open = True
        self.jobs: set[int] = set()
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_write, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher decides: it closes the connection

    def serve(self) -> dict[str, Any] | None:
        """Returns None in this process, at the end; in the process of a job, its request."""
        while self.is_open or self.jobs:
            sources: list[Any] = [self.wake_read, *([self.connection] if self.is_open else [])]
            readable, _, _ = select.select(sources, [], [])
            if self.wake_read in readable:
                os.read(self.wake_read, 4096)
                self._report_ends()
            if self.connection in readable:
                for request in self._requests():
                    if self._fork():
                        return request
        return None

    def say(self, **values: Any) -> None:
        self.connection.sendall(json.dumps(values).encode() + b"\n")

    def _requests(self) -> list[dict[str, Any]]:
        content = self.connection.recv(1 << 20)
        self.is_open = bool(content)
        *lines, self.unread = (self.unread + content).split(b"\n")
        return [json.loads(line) for line in lines]

    def _fork(self) -> bool:
        """Whether this is the process of the job."""
        try:
            process = os.fork()
        except OSError as error:  # too many processes, or no memory
            self.say(refused=str(error))
            return False
        if process:
            self.jobs.add(process)
            self.say(started=process)
            return False
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self.connection.close()
        os.close(self.wake_read)
        os.close(self.wake_write)
        return True

    def _report_ends(self) -> None:
        for process in list(self.jobs):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                self.jobs.discard(process)
                self.say(ended=process, code=os.waitstatus_to_exitcode(status))


def preload(stages: list[str]) -> str | None:
    """Imports what the jobs of these stages need; returns why they cannot be forked from this process, if so."""
    from whitebench.code_hash import code_files

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in dict.fromkeys(module for stage in stages for module in PRELOAD.get(stage, EVALUATION)):
            with contextlib.suppress(Exception):  # the job that needs it says what is missing
                importlib.import_module(module)
    for stage in stages:
        code_files(stage)  # parses every file; jobs inherit the answers, which count while the files stay the same
    threads = len(os.listdir("/proc/self/task"))
    return None if threads == 1 else f"the imported modules have started {threads - 1} threads"


def become_job(folder: Path, environment: dict[str, str]) -> None:
    """Makes this process what `python -m submitit.core._submit FOLDER` is, short of running the job."""
    os.environ.clear()
    os.environ.update(environment, SUBMITIT_LOCAL_JOB_ID=str(os.getpid()))
    log = os.open(folder / f"{os.getpid()}_0_log.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    (folder / SUBMITTED).rename(folder / f"{os.getpid()}_submitted.pkl")
    sys.orig_argv = [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)]  # repeats the job
    sys.argv = ["submitit", str(folder)]
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def main(descriptor: int, stages: list[str]) -> None:
    with socket.socket(fileno=descriptor) as connection:
        server = Server(connection)
        unsuitable = preload(stages)
        server.say(ready=unsuitable is None, why=unsuitable)
        if unsuitable:
            return
        gc.collect()
        gc.freeze()  # otherwise the first collection of every job would copy all of the memory that it shares
        try:
            request = server.serve()
        except BrokenPipeError:  # the launcher was killed; jobs run on, as they would without this process
            return
    if request is not None:
        from submitit.core.submission import process_job

        become_job(Path(request["folder"]), request["environment"])
        process_job(request["folder"])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
