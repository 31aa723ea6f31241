"""Runs jobs on this machine: as many jobs at the same time as cores, memory and GPUs allow, each in its own process.

How a process is started is in `slurm.local_jobs`; slots and dependencies are here. A stage that fails stops only what
depends on it. The first Ctrl-C asks the jobs to save and end, the second kills them.
"""

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from slurm.display import Display, Snapshot
from slurm.graph import Graph, Job
from slurm.host import Host
from slurm.job_state import JobState, headline
from slurm.local_jobs import LocalJobs, RunningJob
from slurm.worker import job_environment
from whitebench.errors import Interrupted
from whitebench.files import last_json_line
from whitebench.locks import is_taken
from whitebench.records import METRICS, RECORD, read_record
from whitebench.signals import handling

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.2
ASK_AGAIN_S = 3.0
LINGER_S = 30.0
"""A job whose record says that it ended may live this long (ranks that wait for a dead one) before it is killed."""
OTHERS_EVERY_S = 5.0
ROOM_FOR_A_RECORD = 2**16
"""Bytes; with less, a job that fails cannot say so."""


@dataclass
class Child:
    """A job that this launcher has started."""

    job: Job
    handle: RunningJob
    gpus: list[str]
    began: float = field(default_factory=time.monotonic)
    stop_requested_at: float = float("-inf")
    began_at: float = field(default_factory=time.time)

    def alive(self) -> bool:
        return not self.handle.done()

    def lingers(self) -> bool:
        """Whether its record said a while ago that it ended, but its processes live: ranks that wait for a dead one."""
        path = self.job.folder / RECORD
        if not path.exists() or not self.began_at < path.stat().st_mtime < time.time() - LINGER_S:
            return False
        record = read_record(self.job.folder)
        return record is not None and record.status != "running"

    def ask_to_stop(self) -> None:
        """SIGTERM to the ranks alone; repeated, since a rank that is just starting may ignore it."""
        if time.monotonic() - self.stop_requested_at >= ASK_AGAIN_S:
            self.stop_requested_at = time.monotonic()
            self._signal(signal.SIGTERM, ranks_only=True)

    def kill(self) -> None:
        self._signal(signal.SIGKILL, ranks_only=False)

    def _signal(self, number: signal.Signals, ranks_only: bool) -> None:
        import psutil

        try:
            ranks, others = self.handle.processes()
            for process in ranks if ranks_only else [*others, *ranks]:
                process.send_signal(number)
        except psutil.NoSuchProcess:
            return  # it has just ended by itself


class LocalScheduler:
    """Runs all jobs of a graph, or until it is asked to stop."""

    def __init__(
        self,
        graph: Graph,
        states: dict[str, JobState],
        todo: set[str],
        host: Host,
        folder: Path,
        display: Display,
    ) -> None:
        self.graph, self.host, self.folder, self.display = graph, host, folder, display
        self.state: dict[str, str] = {key: "todo" if key in todo else state.state for key, state in states.items()}
        self.children: dict[str, Child] = {}
        stages = {graph[key].stage for key in todo if not graph[key].task.function}
        self.jobs = LocalJobs(folder, stages, job_environment(threads=1))
        self.stops = 0
        self._announced = False
        self._order = _order(graph)
        self._next_check = 0.0

    def run(self) -> dict[str, str]:
        """Key to "done", "failed", "blocked", "interrupted" or "new" for every job.

        Raises:
            Interrupted: it was asked to stop; all jobs have saved their state, or were killed at the second request.
        """
        with self._stoppable():
            while self._turn():
                time.sleep(POLL_S)
        if self.stops:
            raise Interrupted("all jobs have stopped; the same command continues")
        return self.state

    def _turn(self) -> bool:
        """One round; False when there is nothing left to wait for."""
        for child in list(self.children.values()):
            self._check_child(child)
        self._check_other_launchers()
        if not self.stops:
            self._start_what_fits()
        elif not self._announced:
            self._announced = True
            self.display.say(f"stopping: {len(self.children)} jobs save their state (again: kills them)")
        self.display.refresh(self._snapshot())
        waits = self.jobs.is_loading() and "todo" in self.state.values()
        return bool(self.children) or (not self.stops and (waits or "running" in self.state.values()))

    def _start_what_fits(self) -> None:
        if self.jobs.is_loading():
            return
        for key in self._order:
            job = self.graph[key]
            if self.state[key] != "todo":
                continue
            kept = job.task.kept_backbone
            early = kept is not None and kept.exists()  # it need not wait for the end of the pretraining
            needs = set() if early else {self.state[need] for need in job.needs}
            if needs & {"failed", "blocked", "interrupted", "new"}:
                self.state[key] = "blocked"
            elif needs <= {"done"} and self.host.fits(job, idle=not self.children):
                self._start(job)

    def _start(self, job: Job) -> None:
        gpus = self.host.take(job)
        handle = self.jobs.start(job, job_environment(job.resources.threads), gpus)
        self.children[job.key] = Child(job, handle, gpus)
        self.state[job.key] = "running"

    def _check_child(self, child: Child) -> None:
        if not child.alive():
            self._collect(child)
        elif self.stops > 1 or child.lingers():
            child.kill()
        elif self.stops:
            child.ask_to_stop()

    def _collect(self, child: Child) -> None:
        """Reads a child's outcome from its record."""
        job = child.job
        del self.children[job.key]
        self.host.release(job, child.gpus)
        record = read_record(job.folder)
        status = record.status if record else "running"
        self.state[job.key] = "interrupted" if status == "running" else status
        log = str(child.handle.log)
        if status == "done" and record is not None:
            self.display.finished(job, headline(record), time.monotonic() - child.began)
        elif status == "failed" and record is not None:
            self.display.failed(job, record.error or "", log)
        elif not self.stops:
            self.display.failed(job, f"{_why_silent(job.folder)}; launching again goes on", log)

    def _check_other_launchers(self) -> None:
        """Updates the state of jobs that a process of another launcher is running."""
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + OTHERS_EVERY_S
        for key, state in self.state.items():
            if state != "running" or key in self.children:
                continue
            job, record = self.graph[key], read_record(self.graph[key].folder)
            if record is not None and record.status == "done":
                self.state[key] = "done"
                self.display.finished(job, headline(record), float(record.cost.get("wall_s") or 0.0))
            elif record is None or not is_taken(job.folder / ".lock"):
                self.state[key] = "todo"

    def _snapshot(self) -> Snapshot:
        running = [
            (child.job, last_json_line(child.job.folder / METRICS), time.monotonic() - child.began)
            for child in self.children.values()
        ]
        counted = list(self.state.values())
        return Snapshot(
            running, {state: counted.count(state) for state in set(counted)}, len(counted), bool(self.stops)
        )

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self.stops += 1

        with handling(stop, STOP_SIGNALS):
            try:
                yield
            finally:
                for child in self.children.values():
                    child.kill()
                self.jobs.close()


def _why_silent(folder: Path) -> str:
    """Why a process has ended without an entry in its record."""
    if shutil.disk_usage(folder).free < ROOM_FOR_A_RECORD:
        return f"no space left on the disk of {folder}"
    return "its process died (killed, or out of memory)"


def _order(graph: Graph) -> list[str]:
    """A seed's cells before the next seed's, so that a whole leaderboard is complete early.

    Of a seed, cells that have begun are finished first, short jobs before long ones; new cells start with the longest
    chain, so that what is left at the end is short.
    """
    ahead = graph.hours_ahead()
    position = {job.key: i for i, job in enumerate(graph.work)}
    seeds = list(dict.fromkeys(job.task.cell.get("seed") for job in graph.work))

    def rank(job: Job) -> tuple[int, bool, float, int]:
        length = (job.resources.hours or 1.0) if job.needs else -ahead[job.key]
        return seeds.index(job.task.cell.get("seed")), not job.needs, length, position[job.key]

    return [job.key for job in sorted(graph.work, key=rank)]
