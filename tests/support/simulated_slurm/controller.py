"""The queue of a simulated SLURM controller: arrays, dependencies, limits, preemption, failures of nodes."""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

ENDED = ("COMPLETED", "FAILED", "CANCELLED")
SCHEDULING_S = 30.0
"""Between two looks at the queue for jobs that can start."""
REMEMBERED_S = 300.0
"""MinJobAge: how long the controller knows a job that has ended."""
REQUEUE_S = 120.0
"""How long a job that was queued again waits at least."""
REPAIR_S = 3600.0
CHECKPOINT_S = 900.0


@dataclass(frozen=True)
class Settings:
    """Limits and faults of the cluster. Rates are per hour."""

    nodes: int = 1000
    """Each of which runs one job at a time."""
    array: int = 1001
    """MaxArraySize."""
    submit_limit: int = 2000
    """MaxSubmitJobs of the user."""
    run_limit: int = 900
    """MaxJobs of the user."""
    limits_known: bool = True
    """Whether sacctmgr reports the limits; otherwise only sbatch's refusal does."""
    preemptions: float = 0.05
    """Per running job."""
    node_failures: float = 0.001
    """Per node."""
    outages: float = 0.2
    """Of the controller."""
    outage_s: float = 300.0
    lost_answers: float = 0.01
    """Share of submissions that are accepted without an answer."""
    killed_submitters: float = 0.02
    """Share of submissions after which the process that submits is killed before it has read the answer."""
    latency_s: float = 0.5
    """Of a command, at most."""
    hours: tuple[float, float] = (0.5, 3.0)
    """Least and greatest time that a job runs."""


@dataclass
class SimulatedJob:
    id: str
    """Of an array's task `<array>_<index>`."""
    array: str
    index: int | None
    name: str
    comment: str
    script: Path
    dependency: str
    throttle: int
    state: str = "PENDING"
    begin: float = 0.0
    """It does not start earlier."""
    since: float = 0.0
    """When it started or ended."""
    node: int = -1
    starts: int = 0
    remaining_s: float = 0.0
    """What it would still run undisturbed."""
    exit_code: int = 0
    key: str = ""
    """Of the run that it is for."""


@dataclass
class Controller:
    settings: Settings
    random: random.Random
    now: float = 0.0
    jobs: dict[str, SimulatedJob] = field(default_factory=dict)
    """All that the controller remembers, in the order of submission."""
    counts: Counter[str] = field(default_factory=Counter)
    """What has happened: submissions, requeues, refusals, ..."""
    on_start: Callable[[SimulatedJob], None] = lambda job: None
    """Called when a job starts, to say when and how this start of it ends."""
    key_of: Callable[[SimulatedJob], str] = lambda job: job.id
    """The run that a job is for."""
    submitted_twice: list[str] = field(default_factory=list)
    """Runs for which a job was submitted while there was one in the queue."""
    most_queued: int = 0
    most_running: int = 0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0
    _next_job: int = 1
    _live: Counter[str] = field(default_factory=Counter)
    """Arrays and jobs to their jobs in the queue, at the last look."""
    _down: set[int] = field(default_factory=set)
    _outage_until: float = 0.0

    def __post_init__(self) -> None:
        self._every(SCHEDULING_S, self._schedule)
        self._by_chance(self.settings.node_failures * self.settings.nodes, self._fail_node)
        self._by_chance(self.settings.outages, self._begin_outage)

    @property
    def answers(self) -> bool:
        return self.now >= self._outage_until

    def at(self, time: float, event: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, event))

    def advance(self, to: float) -> None:
        """Lets all happen that happens until `to`."""
        while self._events and self._events[0][0] <= to:
            time, _, event = heapq.heappop(self._events)
            self.now = max(self.now, time)
            event()
        self.now = max(self.now, to)

    def advance_to_next(self) -> None:
        self.advance(self._events[0][0])

    def queued(self) -> list[SimulatedJob]:
        return [job for job in self.jobs.values() if job.state not in ENDED]

    def running(self) -> list[SimulatedJob]:
        return [job for job in self.jobs.values() if job.state == "RUNNING"]

    def submit(self, indices: Iterable[int | None], **values: object) -> str:
        """Queues a job (indices: [None]) or an array; its id."""
        number = str(self._next_job)
        self._next_job += 1
        present = {job.key for job in self.queued()}
        for index in indices:
            job_id = number if index is None else f"{number}_{index}"
            job = SimulatedJob(id=job_id, array=number, index=index, **values)  # type: ignore[arg-type]
            job.remaining_s = 3600.0 * self.random.uniform(*self.settings.hours)
            job.key = self.key_of(job)
            if job.key in present:
                self.submitted_twice.append(job.key)
            self.jobs[job_id] = job
        self.most_queued = max(self.most_queued, len(self.queued()))
        return number

    def finish(self, job: SimulatedJob, state: str, exit_code: int = 0) -> None:
        job.state, job.exit_code, job.since, job.node = state, exit_code, self.now, -1
        self.at(self.now + REMEMBERED_S, lambda: self._forget(job))

    def requeue(self, job: SimulatedJob) -> None:
        """What it did since its last checkpoint is lost."""
        job.remaining_s -= max(0.0, self.now - job.since - self.random.uniform(0.0, CHECKPOINT_S))
        job.state, job.begin, job.node = "PENDING", self.now + REQUEUE_S, -1

    def reason(self, job: SimulatedJob) -> str:
        if job.state != "PENDING":
            return "None"
        if job.begin > self.now:
            return "BeginTime"
        return "Dependency" if self._unmet(job) else "Resources"

    def _unmet(self, job: SimulatedJob) -> str:
        """Of what it waits for: empty where all has come to pass, "failed" where it never will, else "waits"."""
        waits = ""
        for part in filter(None, job.dependency.split(",")):
            kind, _, ids = part.partition(":")
            for needed in ids.split(":"):
                state = self._outcome(kind, needed, job)
                if state == "failed":
                    return state
                waits = waits or state
        return waits

    def _outcome(self, kind: str, needed: str, job: SimulatedJob) -> str:
        """Of what the controller has forgotten, the dependency is dropped."""
        if kind == "afterany":
            return "waits" if self._live[needed] else ""
        entry = self.jobs.get(f"{needed}_{job.index}" if kind == "aftercorr" else needed)
        if entry is None or entry.state == "COMPLETED":
            return ""
        return "failed" if entry.state in ENDED else "waits"

    def _schedule(self) -> None:
        """Starts what can start, in the order of submission."""
        queued = self.queued()
        self._live = Counter(array for job in queued for array in {job.array, job.id})
        running = Counter(job.array for job in queued if job.state == "RUNNING")
        free = [node for node in range(self.settings.nodes) if node not in self._down]
        busy = {job.node for job in queued if job.state == "RUNNING"}
        free = [node for node in free if node not in busy][: max(0, self.settings.run_limit - len(busy))]
        for job in queued:
            if job.state != "PENDING" or job.begin > self.now:
                continue
            unmet = self._unmet(job)
            if unmet == "failed":  # as with --kill-on-invalid-dep=yes
                self.finish(job, "CANCELLED")
            elif not unmet and free and running[job.array] < job.throttle:
                running[job.array] += 1
                job.state, job.since, job.node = "RUNNING", self.now, free.pop()
                job.starts += 1
                self.on_start(job)
        self.most_running = max(self.most_running, running.total())

    def _fail_node(self) -> None:
        """Its job goes back into the queue, as SLURM does with --requeue; nothing of it could say anything."""
        node = self.random.randrange(self.settings.nodes)
        self._down.add(node)
        self.at(self.now + REPAIR_S, lambda: self._down.discard(node))
        self.counts["failures of nodes"] += 1
        for job in self.running():
            if job.node == node:
                self.counts["requeues after failures of nodes"] += 1
                self.requeue(job)

    def _begin_outage(self) -> None:
        self.counts["outages of the controller"] += 1
        self._outage_until = self.now + self.settings.outage_s

    def _forget(self, job: SimulatedJob) -> None:
        if job.state in ENDED:
            self.jobs.pop(job.id, None)

    def _every(self, seconds: float, event: Callable[[], None]) -> None:
        def again() -> None:
            event()
            self.at(self.now + seconds, again)

        self.at(self.now + seconds, again)

    def _by_chance(self, per_hour: float, event: Callable[[], None]) -> None:
        if per_hour <= 0:
            return

        def again() -> None:
            event()
            self.at(self.now + 3600.0 * self.random.expovariate(per_hour), again)

        self.at(self.now + 3600.0 * self.random.expovariate(per_hour), again)
