"""The graph of jobs that a sweep becomes: pretrain -> {linear, knn}; pretrain -> convert -> detect x seeds; tables."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slurm.stages import LEADERBOARD, Task
from whitebench.errors import UserError
from whitebench.files import write_json
from whitebench.records import runs_root

PLAN = "plan.json"


@dataclass(frozen=True)
class Resources:
    """What one job asks for."""

    nodes: int = 1
    processes: int = 1
    """Per node."""
    threads: int = 1
    """Intra-op threads of a process (part of what determines the result)."""
    cpus: int = 1
    """Per process."""
    gpus: int = 0
    """Per node."""
    gpu_type: str = ""
    """As SLURM names it, e.g. a100; empty: any."""
    memory_gb: float | None = None
    """Per node."""
    hours: float | None = None
    sbatch: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further options of sbatch for this stage, in the sweep; None takes out one of the preset's."""

    @property
    def cores(self) -> int:
        """Per node."""
        return self.processes * self.cpus


@dataclass(frozen=True, slots=True)
class Job:
    """One node of the graph."""

    key: str
    """`<stage>/<id>`: also the path of its folder below the runs."""
    column: str
    """The stage as the sweep names it, with the stage's own seed where there are several: `detect:1`."""
    cell: str
    """The cell's name for people; empty for the leaderboard."""
    needs: tuple[str, ...]
    """Keys of the jobs that must be done before; the leaderboard only waits for them to end."""
    resources: Resources
    task: Task

    @property
    def stage(self) -> str:
        return self.task.stage

    @property
    def stage_in_sweep(self) -> str:
        """As the sweep names it: several of its stages may be one built-in stage with other options."""
        return self.column.partition(":")[0]

    @property
    def folder(self) -> Path:
        return self.task.folder


class Graph:
    """Jobs by key, each after all that it needs."""

    def __init__(self, name: str, jobs: Iterable[Job]) -> None:
        self.name = name
        self.jobs = {job.key: job for job in jobs}
        self.dependants: dict[str, list[str]] = {key: [] for key in self.jobs}
        for job in self.jobs.values():
            for need in job.needs:
                self.dependants[need].append(job.key)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs.values())

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, key: str) -> Job:
        return self.jobs[key]

    @property
    def work(self) -> list[Job]:
        """All but the leaderboard."""
        return [job for job in self if job.stage != LEADERBOARD]

    @property
    def leaderboard(self) -> Job:
        return next(job for job in self if job.stage == LEADERBOARD)

    def columns(self) -> list[str]:
        """In the order of need."""
        return list(dict.fromkeys(job.column for job in self.work))

    def cells(self) -> dict[str, list[Job]]:
        cells: dict[str, list[Job]] = {}
        for job in self.work:
            cells.setdefault(job.cell, []).append(job)
        return cells

    def hours_ahead(self) -> dict[str, float]:
        """Hours from the start of each job to the end of the longest chain that it begins (as far as limits tell)."""
        ahead: dict[str, float] = {}
        for job in reversed(self.work):
            after = [ahead[key] for key in self.dependants[job.key] if key in ahead]
            ahead[job.key] = (job.resources.hours or 1.0) + max(after, default=0.0)
        return ahead

    def save(self, cluster: str, launched: str) -> None:
        """Writes the plan among the runs, for `--status`, which must not import what planning needs."""
        plan = {"name": self.name, "cluster": cluster, "launched": launched, "jobs": [asdict(job) for job in self]}
        write_json(self.leaderboard.folder / PLAN, plan)


def load_graph(name: str, keys: Iterable[str] | None = None) -> Graph:
    """The graph of the last launch of a sweep.

    Args:
        keys: only these jobs, those that they need, and the leaderboard (after them); None: all.
    Raises:
        UserError: it was not launched yet, or its plan is damaged.
    """
    path = runs_root() / "sweeps" / name / PLAN
    try:
        plan = json.loads(path.read_bytes())
        return graph_from_plan(plan if keys is None else _part_of_plan(plan, keys))
    except FileNotFoundError as error:
        raise UserError(f"the sweep '{name}' was not launched yet (in {runs_root()})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable plan ({error}); launching again overwrites it") from error


def graph_from_plan(plan: dict[str, Any]) -> Graph:
    """What `Graph.save` wrote."""
    return Graph(plan["name"], (_job_from_plan(raw) for raw in plan["jobs"]))


def _part_of_plan(plan: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    *work, last = plan["jobs"]
    needs = {raw["key"]: raw["needs"] for raw in work}
    pending, chosen = [key for key in keys if key in needs], set[str]()
    while pending:
        key = pending.pop()
        if key not in chosen:
            chosen.add(key)
            pending += needs[key]
    jobs = [raw for raw in work if raw["key"] in chosen]
    return {**plan, "jobs": [*jobs, {**last, "needs": [raw["key"] for raw in jobs]}]}


def _job_from_plan(raw: dict[str, Any]) -> Job:
    resources, task = Resources(**raw["resources"]), Task(**raw["task"])
    return Job(raw["key"], raw["column"], raw["cell"], tuple(raw["needs"]), resources, task)
