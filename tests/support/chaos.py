"""A sweep on a SLURM cluster of our own while its jobs are killed, cancelled and preempted at random.

python -m tests.support.chaos SWEEP --work DIR [--reference RUNS] [--every 20 60] [--seed 0] [--cpus 1] [key=value ...]

DIR gets the runs, the tables, the log of every launch and events.jsonl (what was done to which job, and when). With the
runs folder of an undisturbed run as reference, metrics, backbones and leaderboards (cost aside) are compared with its:
exit code 0 where all of them are equal. It takes as long as the sweep does, and some more.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from slurm.graph import Graph, load_graph
from slurm.job_queue import Queued, queued_jobs
from slurm.job_state import read_states
from tests.support.compare_runs import differences
from tests.support.launching import ROOT
from tests.support.own_cluster import own_cluster

ACTIONS = ("kill", "cancel", "preempt")
PRESET = "kind: slurm\nsignal_delay_s: 5\n"


class Chaos:
    """Disturbs the jobs of one sweep until all of them are done."""

    def __init__(self, sweep: str, overrides: list[str], work: Path, seed: int) -> None:
        self.work, self.random = work, random.Random(seed)
        self.command = [sys.executable, str(ROOT / "slurm" / "launch_sweep.py"), sweep, *overrides]
        self.command += ["--cluster", str(work / "cluster.yaml"), f"sweep.stages.leaderboard.out={work / 'tables'}"]
        self.done: Counter[str] = Counter()
        (work / "cluster.yaml").write_text(PRESET)

    def run(self, name: str, every: tuple[float, float], most: int) -> Graph:
        """Launches and disturbs, `most` times at the most; the graph, all of whose jobs are done."""
        self.launch()
        graph = load_graph(name)
        next_at = time.monotonic() + self.random.uniform(*every)
        while True:
            queued = queued_jobs()
            states = read_states(graph, queued)
            if all(found.state == "done" for found in states.values()) and graph.leaderboard.key not in queued:
                return graph
            if not any(key in queued for key in graph.jobs):
                self.launch()
            running = [(key, job) for key, job in queued.items() if job.state == "RUNNING" and key in states]
            if running and time.monotonic() >= next_at and self.done.total() < most:
                next_at = time.monotonic() + self.random.uniform(*every)
                self.disturb(graph, *self.random.choice(running))
            time.sleep(0.5)

    def launch(self) -> None:
        """By the user's command; only a launch that submits nothing may come out as not complete."""
        with open(self.work / "launches.log", "a") as log:
            self.note("launch", code=subprocess.run(self.command, stdout=log, stderr=log).returncode)

    def disturb(self, graph: Graph, key: str, job: Queued) -> None:
        action = self.random.choice(ACTIONS)
        happened = {"kill": self.kill, "cancel": self.cancel, "preempt": self.preempt}[action](graph, key, job)
        if happened:
            self.done[action] += 1
            self.note(action, job=job.id, key=key, cell=graph[key].cell)
        if action == "cancel":
            self.launch()

    def kill(self, graph: Graph, key: str, job: Queued) -> bool:
        """SIGKILL to the process that works on the run."""
        attempts = graph[key].folder / "attempts.jsonl"
        lines = [json.loads(line) for line in attempts.read_text().splitlines()] if attempts.exists() else []
        if not lines or lines[-1].get("job") != job.id or "pid" not in lines[-1]:
            return False  # it has hardly begun
        try:
            os.kill(lines[-1]["pid"], signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def cancel(self, graph: Graph, key: str, job: Queued) -> bool:
        return subprocess.run(["scancel", job.id]).returncode == 0

    def preempt(self, graph: Graph, key: str, job: Queued) -> bool:
        """A job of a higher partition takes the node."""
        asked = subprocess.run(["squeue", "-h", "-j", job.id, "-o", "%N"], capture_output=True, text=True)
        if not asked.stdout.strip():
            return False
        urgent = ["sbatch", "--partition=urgent", "--exclusive", f"--nodelist={asked.stdout.strip()}"]
        return (
            subprocess.run([*urgent, "--wrap=sleep 3", "--output=/dev/null"], stdout=subprocess.DEVNULL).returncode == 0
        )

    def note(self, action: str, **what: Any) -> None:
        line = {"time": round(time.time(), 1), "action": action, **what}
        with open(self.work / "events.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        print(*(f"{key}={value}" for key, value in line.items()), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", help="name or path")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--work", type=Path, required=True, help="a folder for all that this leaves")
    parser.add_argument("--reference", type=Path, help="runs folder of an undisturbed run")
    parser.add_argument("--every", type=float, nargs=2, default=(20.0, 60.0), help="seconds between disturbances")
    parser.add_argument("--most", type=int, default=1000, help="disturbances, at the most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpus", type=int, default=1, help="of each of the two nodes")
    options = parser.parse_intermixed_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["WHITEBENCH_RUNS"] = str(work / "runs")
    chaos = Chaos(options.sweep, options.overrides, work, options.seed)
    with own_cluster(options.cpus):
        graph = chaos.run(Path(options.sweep).stem, tuple(options.every), options.most)
    print(f"{len(graph.work)} jobs done; disturbances: {dict(chaos.done)}")
    if options.reference is None:
        return 0
    found = differences(graph, options.reference, work)
    print("\n".join(found) if found else "metrics, backbones and leaderboards are those of the reference")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
