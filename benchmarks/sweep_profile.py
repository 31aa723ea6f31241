"""Where the time of a sweep on this machine goes: CPU minutes by stage and part, slots that were idle, first result.

    python benchmarks/sweep_profile.py [SWEEP]      of a sweep in $WHITEBENCH_RUNS, done or under way; default: sample

Reads what the runs have recorded and measures nothing itself. CPU time is what the operating system counted; beside
other work it is larger than on an idle machine, but far less than the wall time is. Start-up is what a job's process
took until its record was opened: imports, where the job was not forked from a process that had done them.
"""

import argparse
import datetime
import itertools
import json
from dataclasses import dataclass

from slurm.attempts import read_attempts
from slurm.graph import PLAN, Graph, Job, load_graph
from whitebench.errors import run_command
from whitebench.records import RECORD, Record, read_record

STARTUP, PART = "cpu_s_startup", "cpu_s_"


@dataclass(frozen=True)
class Ended:
    """A job that is done, with the times (s since 1970) at which its process began its work and its record ended."""

    job: Job
    record: Record
    began: float
    ended: float


def done_jobs(graph: Graph) -> list[Ended]:
    """The jobs of a sweep that are done, in the order of their ends."""
    jobs = []
    for job in graph.work:
        record = read_record(job.folder)
        starts = [line["time"] for line in read_attempts(job.folder) if "pid" in line]
        if record is not None and record.status == "done" and starts:
            jobs.append(Ended(job, record, starts[-1], (job.folder / RECORD).stat().st_mtime))
    return sorted(jobs, key=lambda ended: ended.ended)


def parts(record: Record) -> dict[str, float]:
    """CPU seconds of a run by part: "startup", the measured ones, and "rest" (all, where none was measured)."""
    cost = {name: float(value or 0.0) for name, value in record.cost.items() if name.startswith(PART)}
    named = {name.removeprefix(PART): value for name, value in cost.items() if name != STARTUP}
    rest = float(record.cost.get("cpu_s") or 0.0) - sum(named.values())
    return {"startup": cost.get(STARTUP, 0.0), **named, "rest": rest}


def occupied(jobs: list[Ended]) -> tuple[int, float]:
    """The most jobs that ran at the same time, and the sum of their durations in seconds."""
    moments = sorted([(one.began, 1) for one in jobs] + [(one.ended, -1) for one in jobs])
    most = max(itertools.accumulate(step for _, step in moments))
    return most, sum(one.ended - one.began for one in jobs)


def table(jobs: list[Ended]) -> str:
    """A line per stage and part, CPU minutes in all and CPU seconds per job."""
    lines = [f"{'stage':12} {'part':12} {'jobs':>5} {'CPU min':>8} {'s per job':>10}"]
    total = 0.0
    for stage in dict.fromkeys(one.job.stage for one in sorted(jobs, key=lambda one: one.began)):
        records = [one.record for one in jobs if one.job.stage == stage]
        sums: dict[str, float] = {}
        for record in records:
            for name, seconds in parts(record).items():
                sums[name] = sums.get(name, 0.0) + seconds
        for name, seconds in sums.items():
            lines.append(f"{stage:12} {name:12} {len(records):5} {seconds / 60:8.2f} {seconds / len(records):10.1f}")
        total += sum(sums.values())
    return "\n".join([*lines, f"{'all':12} {'':12} {len(jobs):5} {total / 60:8.2f}"])


def timeline(graph: Graph, launched: str, jobs: list[Ended]) -> str:
    """When the first result came, and how much of the slots' time no job used."""
    start = datetime.datetime.fromisoformat(launched).timestamp()
    end = jobs[-1].ended
    first = next((one for one in jobs if "top1" in one.record.metrics), None)
    slots, busy = occupied(jobs)
    lines = [
        f"{len(jobs)} of {len(graph.work)} jobs, {(end - start) / 60:.1f} min from the launch to the last one's end"
    ]
    if first is not None:
        lines.append(f"first accuracy after {first.ended - start:.0f} s ({first.job.stage} of {first.job.cell})")
    lines.append(f"first job began after {min(one.began for one in jobs) - start:.0f} s (imports that jobs share)")
    idle = slots * (end - start) - busy
    lines.append(f"{slots} slots: {idle / 60:.1f} of {slots * (end - start) / 60:.1f} slot minutes idle")
    alone = sum(b.ended - a.ended for a, b in itertools.pairwise(jobs[-slots:]))
    return "\n".join([*lines, f"from the first slot without a further job to the end: {alone:.0f} s"])


def main() -> int:
    command = argparse.ArgumentParser(prog="python benchmarks/sweep_profile.py", description=__doc__.split("\n")[0])
    command.add_argument("sweep", nargs="?", default="sample", help="the sweep's name; default: %(default)s")
    name = command.parse_args().sweep
    graph = load_graph(name)
    launched = json.loads((graph.leaderboard.folder / PLAN).read_bytes())["launched"]
    jobs = done_jobs(graph)
    if not jobs:
        print(f"no job of the sweep '{name}' is done")
        return 1
    print(table(jobs), timeline(graph, launched, jobs), sep="\n\n")
    return 0


if __name__ == "__main__":
    run_command(main)
