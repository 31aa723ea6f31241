"""Starts jobs on this machine: forked from a process that has done their imports, or by submitit, in one of their own.

Forked are jobs of one process with one thread and no GPU. A forked job runs the code that a process started now would
run: where a file of the project or a package has changed, the next job is forked from a new process.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil

from slurm.graph import Job
from slurm.job_server import SUBMITTED
from slurm.worker import Worker
from whitebench.code_hash import ROOT

NO_LIMIT_MIN = 60 * 24 * 365
READY_S, ANSWER_S = 300.0, 60.0
"""How long imports may take on a busy machine, and a fork."""
CODE_FOLDERS = ("pretrain", "results", "slurm", "transfer", "whitebench")


class RunningJob(Protocol):
    """A job that was started here."""

    log: Path

    def done(self) -> bool: ...

    def processes(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """The processes of its ranks, and all others that belong to it."""
        ...


class LocalJobs:
    """Starts jobs; `folder` is the launch's own, for their files and logs."""

    def __init__(self, folder: Path, stages: set[str], environment: dict[str, str]) -> None:
        """Begins to import what the jobs of `stages` need.

        Args:
            environment: of jobs of one thread, to which each adds its own.
        """
        self.folder, self.stages, self.environment = folder, sorted(stages), environment
        self.servers: list[JobServer] = []
        self.code = code_state()
        self._start_server()

    def _start_server(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"job-server-{len(self.servers)}.log"
        self.servers.append(JobServer(self.stages, self.environment, log))

    def is_loading(self) -> bool:
        """Whether the process to fork from still imports."""
        return self.servers[-1].is_loading()

    def start(self, job: Job, environment: dict[str, str], gpus: list[str]) -> RunningJob:
        folder = self.folder / job.key.replace("/", "-")
        single = job.resources.processes == job.resources.threads == 1 and not gpus
        process = self._fork(folder, job, environment) if single else None
        if process is not None:
            return process
        return SubmititJob(folder, job, environment, gpus)

    def _fork(self, folder: Path, job: Job, environment: dict[str, str]) -> "ForkedJob | None":
        """None where it cannot be forked."""
        if self.code != (now := code_state()):
            self.code = now
            self.servers[-1].retire()
            self._start_server()
        return self.servers[-1].fork(folder, Worker(job.task, environment), environment)

    def close(self) -> None:
        """To be called when all jobs have ended, or were killed."""
        for server in self.servers:
            server.kill()


class JobServer:
    """The launcher's end of a `slurm.job_server`."""

    def __init__(self, stages: list[str], environment: dict[str, str], log: Path) -> None:
        self.connection, server_end = socket.socketpair()
        with server_end, open(log, "ab") as output, children_without_signals():
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "slurm.job_server", str(server_end.fileno()), *stages],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[server_end.fileno()],
            )
        self.unread = b""
        self.ready: bool | None = None
        """Whether it can fork jobs; None: it still imports."""
        self.is_open = True
        self.started: list[int] = []
        self.ended: dict[int, int] = {}
        """Process id to exit code."""
        self.refused = False

    def is_loading(self) -> bool:
        self.listen()
        return self.ready is None and self.is_open

    def fork(self, folder: Path, worker: Worker, environment: dict[str, str]) -> "ForkedJob | None":
        """Starts a job; None where this server cannot."""
        from submitit.core.utils import DelayedSubmission

        self._wait_until(lambda: self.ready is not None, READY_S)
        if not (self.ready and self.is_open):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        delayed = DelayedSubmission(worker)
        delayed.set_timeout(NO_LIMIT_MIN, 0)
        delayed.dump(folder / SUBMITTED)
        variables = {**os.environ, **environment, **SUBMITIT_VARIABLES, "CUDA_VISIBLE_DEVICES": ""}
        try:
            self.connection.sendall(json.dumps({"folder": str(folder), "environment": variables}).encode() + b"\n")
        except OSError:  # it has just died
            self.is_open = False
            return None
        self.refused = False
        self._wait_until(lambda: bool(self.started) or self.refused, ANSWER_S)
        return ForkedJob(self, self.started.pop(), folder) if self.started else None

    def listen(self, seconds: float = 0.0) -> None:
        """Takes note of what it has reported, waiting at most this long for something."""
        while self.is_open and select.select([self.connection], [], [], seconds)[0]:
            try:
                content = self.connection.recv(1 << 16)
            except OSError:
                content = b""
            self.is_open, seconds = bool(content), 0.0
            *lines, self.unread = (self.unread + content).split(b"\n")
            for line in lines:
                self._note(json.loads(line))
        if not self.is_open:
            self.process.poll()

    def _note(self, answer: dict[str, Any]) -> None:
        if "ready" in answer:
            self.ready = answer["ready"]
        elif "started" in answer:
            self.started.append(answer["started"])
        elif "ended" in answer:
            self.ended[answer["ended"]] = answer["code"]
        else:
            self.refused = True

    def _wait_until(self, holds: Any, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not holds() and self.is_open and time.monotonic() < end:
            self.listen(1.0)

    def retire(self) -> None:
        """It starts no more jobs, and ends when its jobs have ended."""
        if self.is_open:
            self.connection.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.is_open = False


class ForkedJob:
    """A single process, a child of a job server."""

    def __init__(self, server: JobServer, process: int, folder: Path) -> None:
        self.server, self.number = server, process
        self.log = folder / f"{process}_0_log.out"
        try:
            self.process: psutil.Process | None = psutil.Process(process)
        except psutil.NoSuchProcess:
            self.process = None

    def done(self) -> bool:
        self.server.listen()
        if self.number in self.server.ended or self.process is None:
            return True
        return not self.server.is_open and not _runs(self.process)

    def processes(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        if self.process is None:
            return [], []
        return [self.process], self.process.children(recursive=True)


def _runs(process: psutil.Process) -> bool:
    """Whether a process still runs whose end nobody reports."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class SubmititJob:
    """submitit's controller, and below it one process per rank."""

    def __init__(self, folder: Path, job: Job, environment: dict[str, str], gpus: list[str]) -> None:
        import submitit

        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(
            timeout_min=NO_LIMIT_MIN,
            tasks_per_node=job.resources.processes,
            gpus_per_node=len(gpus),
            stderr_to_stdout=True,
        )
        if gpus:
            environment = {**environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        with _variables(environment), children_without_signals():
            self.job = executor.submit(Worker(job.task, environment))
        self.log = self.job.paths.stdout

    def done(self) -> bool:
        return bool(self.job.done())

    def processes(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        controller = psutil.Process(int(self.job.job_id))
        ranks = controller.children()
        return ranks, [
            controller,
            *(process for process in controller.children(recursive=True) if process not in ranks),
        ]


SUBMITIT_VARIABLES = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_NTASKS": "1",
    "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
    "SUBMITIT_LOCAL_NODEID": "0",
    "SUBMITIT_LOCAL_GLOBALID": "0",
    "SUBMITIT_LOCAL_LOCALID": "0",
}
"""As submitit's controller sets them for its only process."""


def code_state() -> tuple[Any, ...]:
    """Changes when a source file of the project does, or when packages are installed or removed."""
    files = sorted(path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py"))
    packages = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    return tuple(_file_state(path) for path in [*files, *sorted(packages)])


def _file_state(path: Path) -> tuple[Any, ...]:
    try:
        state = path.stat()
    except FileNotFoundError:  # it has just been removed
        return (str(path),)
    return str(path), state.st_mtime_ns, state.st_size


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for a process that is started meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def children_without_signals() -> Iterator[None]:
    """Processes started in this context ignore the terminal's Ctrl-C and hang-up: the launcher decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
