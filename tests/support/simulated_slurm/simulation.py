"""A sweep on a simulated cluster, from the launch to the last job: what becomes of it, and what it costs."""

import os
import random
import resource
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from submitit.core.utils import DelayedSubmission

from slurm import launch_lock, queue_cleanup, sbatch, slurm_command, submit, waves, worker
from slurm.graph import Graph, load_graph
from slurm.stages import LEADERBOARD
from slurm.status import Status
from slurm.submissions import note_job
from slurm.worker import Worker
from tests.support.launching import ROOT
from tests.support.simulated_slurm.commands import Commands
from tests.support.simulated_slurm.controller import Controller, Settings, SimulatedJob
from tests.support.simulated_slurm.scripts import SubmitterKilled, run_script
from tests.support.simulated_slurm.server import commands_on_path
from tests.support.simulated_slurm.stage import COMPLETED
from whitebench import records
from whitebench.environment import environment
from whitebench.records import read_record

NAME = "simulated"
WORK = "tests.support.simulated_slurm.stage:work"
STAGES = ("pretrain", "linear")
CLOCKED = (launch_lock, queue_cleanup, sbatch, waves, worker)
"""Modules that wait: their waiting lets simulated time pass."""


@dataclass
class Cost:
    """Of a command of the launcher."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    output: str


class Simulation:
    """Use within `simulated`."""

    def __init__(self, work: Path, cells: int, settings: Settings, seed: int) -> None:
        self.work, self.cells, self.settings = work, cells, settings
        self.controller = Controller(settings, random.Random(seed))
        self.controller.on_start = self._plan_end
        self.controller.key_of = _key_of
        self.commands = Commands(self.controller)
        self.memory_mb: list[float] = []
        """Of this process, after each submission of waiting jobs."""
        self._due: deque[tuple[SimulatedJob, int, bool]] = deque()

    @property
    def sweep(self) -> Path:
        return self.work / f"{NAME}.yaml"

    def launcher(self, *arguments: str) -> Cost:
        """Runs the launcher's command as a user does."""
        command = [sys.executable, "-m", "slurm.launch_sweep", str(self.sweep), *arguments]
        began = time.perf_counter()
        with open(self.work / "launcher.log", "w+") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            log.seek(0)
            output = log.read()
        cost = Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{output}")
        return cost

    def run(self, until: float = 1000.0) -> None:
        """Lets time pass until the queue is empty, or until this hour of the simulation."""
        with open(self.work / "jobs.log", "a") as log, redirect_stdout(log):
            while self._due or (self.controller.queued() and self.controller.now < 3600.0 * until):
                if self._due:
                    self._run(*self._due.popleft())
                else:
                    self.controller.advance_to_next()

    def graph(self) -> Graph:
        return load_graph(NAME)

    def lost(self) -> list[str]:
        """Keys of the jobs whose runs are not done."""
        found = ((job.key, read_record(job.folder)) for job in self.graph().work)
        return [key for key, record in found if record is None or record.status != "done"]

    def tables(self) -> str:
        """State of the tables: done, where their job has come to its end."""
        return str(Status(self.graph(), {}).leaderboard["state"])

    def run_twice(self) -> list[str]:
        """Keys of runs that were carried out to their end more than once."""
        return [key for key, count in COMPLETED.items() if count > 1]

    def _plan_end(self, job: SimulatedJob) -> None:
        """When and how this start of a job ends: undisturbed, or by preemption."""
        controller, start = self.controller, job.starts
        rate = self.settings.preemptions / 3600.0
        preempted = controller.random.expovariate(rate) if rate else float("inf")
        if preempted >= job.remaining_s or job.name.endswith(LEADERBOARD):
            controller.at(controller.now + job.remaining_s, lambda: self._due.append((job, start, False)))
        elif controller.random.random() < 0.5:  # with a warning, after which the job queues itself again
            controller.at(controller.now + preempted, lambda: self._due.append((job, start, True)))
        else:  # PreemptMode=REQUEUE, which does not ask
            controller.at(controller.now + preempted, lambda: self._requeue(job, start))

    def _requeue(self, job: SimulatedJob, start: int) -> None:
        if job.state == "RUNNING" and job.starts == start:
            self.controller.counts["requeues by preemption"] += 1
            self.controller.requeue(job)

    def _run(self, job: SimulatedJob, start: int, stop: bool) -> None:
        """What the job's script does at the end of this start, unless that has ended already."""
        if job.state != "RUNNING" or job.starts != start:
            return
        calls = self.controller.counts["submissions"]
        try:
            code = run_script(job, stop)
        except SubmitterKilled:
            self.controller.counts["submitters killed"] += 1
            self.controller.requeue(job)
            return
        if self.controller.counts["submissions"] > calls:
            self.controller.counts["waves"] += 1
            self.memory_mb.append(memory_mb())
        if job.state == "RUNNING" and job.starts == start:
            self.controller.finish(job, "FAILED" if code else "COMPLETED", code)


@contextmanager
def simulated(
    work: Path, cells: int, settings: Settings, seed: int = 0, stages: Sequence[str] = STAGES
) -> Iterator[Simulation]:
    """A simulation in the folder `work`; meanwhile SLURM's commands of this process are the simulated ones."""
    simulation = Simulation(work, cells, settings, seed)
    controller = simulation.controller
    host = environment()

    def sleep(seconds: float) -> None:
        controller.advance(controller.now + seconds)

    def note_unless_killed(mark: str, job: str) -> None:
        if simulation.commands.kills_submitter:
            simulation.commands.kills_submitter = False
            raise SubmitterKilled
        note_job(mark, job)

    def answer(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """Saves a process for each question of this process; other processes, and sbatch, go by PATH."""
        code, output, errors = simulation.commands.run(command[0], list(command[1:]))
        return subprocess.CompletedProcess(command, code, output, errors)

    clock = {name: getattr(time, name) for name in dir(time) if not name.startswith("_")}
    clock |= {"sleep": sleep, "monotonic": lambda: controller.now}
    COMPLETED.clear()
    write_sweep(work, cells, stages)
    with commands_on_path(simulation.commands, work / "bin"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHITEBENCH_RUNS", str(work / "runs"))
        patch.setenv("WHITEBENCH_CLUSTERS", str(work))
        patch.setenv("PYTHONPATH", str(ROOT))
        for module in CLOCKED:
            patch.setattr(module, "time", SimpleNamespace(**clock))
        patch.setattr(slurm_command, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": answer}))
        patch.setattr(submit, "note_job", note_unless_killed)
        patch.setattr(records, "environment", lambda: host)  # asks git and the processor, the same each time
        patch.setattr(records, "cpu_seconds", lambda: 0.0)
        yield simulation


def write_sweep(work: Path, cells: int, names: Sequence[str]) -> None:
    stages: dict[str, Any] = {stage: {"function": WORK} for stage in names}
    stages[LEADERBOARD] = {"out": str(work / "tables")}
    content = {"name": NAME, "recipes": ["sample/intl"], "seeds": list(range(cells)), "stages": stages}
    (work / f"{NAME}.yaml").write_text(yaml.safe_dump(content))
    (work / "site.yaml").write_text("kind: slurm\nhours: 24\n")


def memory_mb() -> float:
    """Of this process now, not at its peak."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _key_of(job: SimulatedJob) -> str:
    """By what the job would load; nothing for the tables, which may be made twice."""
    worker = cast(Worker, DelayedSubmission.load(job.script.parent / f"{job.index or 0}.pkl").function)
    return "" if worker.task.stage == LEADERBOARD else f"{worker.task.stage}/{worker.task.id}"


def report(simulation: Simulation) -> str:
    """What happened, as a person reads it."""
    controller, settings, memory = simulation.controller, simulation.settings, simulation.memory_mb
    counts = "\n".join(f"  {count:7} {what}" for what, count in sorted(controller.counts.items()))
    outages = f"{settings.outages:g} outages of {settings.outage_s:g} s of the controller"
    lines = [
        f"{settings.nodes} nodes, MaxArraySize {settings.array}, MaxSubmitJobs {settings.submit_limit}, MaxJobs "
        f"{settings.run_limit}; per hour {settings.preemptions:.1%} of jobs preempted, {settings.node_failures:.1%} of "
        f"nodes fail, {outages}",
        f"{simulation.cells} cells, {len(simulation.graph().work)} jobs, {controller.now / 3600:.1f} simulated hours",
        counts,
        f"  {controller.most_queued:7} jobs in the queue at most",
        f"  {controller.most_running:7} jobs running at most",
        f"lost {len(simulation.lost())}, submitted twice {len(controller.submitted_twice)}, "
        f"run twice {len(simulation.run_twice())}, tables {simulation.tables()}",
    ]
    if memory:
        parts = (memory[0], memory[len(memory) // 2], memory[-1])
        lines.append("MB after the first, the middle and the last wave: " + ", ".join(f"{part:.0f}" for part in parts))
    return "\n".join(lines)
