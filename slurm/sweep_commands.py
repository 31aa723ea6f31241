"""What one does with a launched sweep: look at it, read its logs, cancel it, set a cell's runs aside to have them anew.

Light: neither torch nor pydantic, so that it answers at once.
"""

import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from slurm.clusters import enter_environment, slurm_answers
from slurm.graph import Graph, Job
from slurm.job_state import JobState, log_of
from slurm.status import current_states, load_graph, status_json, status_text
from slurm.submissions import LEDGER, queued_jobs, sweeps_folder
from slurm.sweep import DEFAULT, read_sweep, sweep_path
from whitebench.errors import UserError, nearest
from whitebench.locks import is_taken, read_owner

EVERY_S = 5.0
LINES = 20


def launched(sweep: str | None, cluster: str | None, changes: list[str]) -> Graph:
    """The graph of the last launch of a sweep, found by the sweep's name and where its cluster keeps runs."""
    raw = read_sweep(sweep_path(sweep or DEFAULT))
    raw.update(dict(text.split("=", 1) for text in changes if text.startswith(("name=", "cluster="))))
    enter_environment(cluster or str(raw.get("cluster", "auto")))
    return load_graph(str(raw["name"]))


def show_status(graph: Graph, as_json: bool) -> int:
    states = current_states(graph)
    print(status_json(graph, states) if as_json else status_text(graph, states))
    return 0


def watch_status(graph: Graph) -> int:
    """The status anew every few seconds, in place on a terminal, until nothing of the sweep is on its way."""
    while True:
        states = current_states(graph)
        print(("\x1b[H\x1b[2J" if sys.stdout.isatty() else "") + status_text(graph, states), flush=True)
        if not any(found.active for found in states.values()):
            return 0
        time.sleep(EVERY_S)


def show_logs(graph: Graph, cell: str) -> int:
    """The end of the latest log of each of the cell's jobs that has one."""
    shown = False
    for job in jobs_of(graph, cell):
        log = log_of(job.folder)
        if log is None or not Path(log).exists():
            continue
        shown = True
        print(f"== {job.column} {job.cell}: {log}")
        with open(log, errors="replace") as file:
            print("".join(deque(file, LINES)), end="")
    if not shown:
        raise UserError(f"'{cell}': no job of it has begun yet, so there are no logs")
    return 0


def cancel_jobs(graph: Graph, cell: str | None) -> int:
    """Ends what is queued or runs of the sweep, or of one cell. What has been reached is kept."""
    from slurm.queue_cleanup import cancel

    queued = queued_jobs() if (sweeps_folder() / LEDGER).exists() and slurm_answers() else {}
    keys = {job.key for job in jobs_of(graph, cell)} if cell else graph.jobs.keys()
    ids = [queued[key].id for key in keys if key in queued]
    if ids:
        cancel(ids)
        print(f"{len(ids)} jobs cancelled; launching again goes on from where they were")
        return 0
    return _stop_launcher(graph, cell)


def _stop_launcher(graph: Graph, cell: str | None) -> int:
    """As Ctrl-C at the launcher of this machine would."""
    lock = graph.leaderboard.folder / ".lock"
    if not is_taken(lock):
        print("nothing of it is queued or running")
        return 0
    if cell:
        raise UserError("on this machine a sweep is cancelled as a whole: --cancel without --cell")
    owner = read_owner(lock)
    if owner is None:
        return 0
    if owner.host != socket.gethostname():
        raise UserError(f"its launcher runs on {owner.host}: --cancel it there")
    os.kill(owner.pid, signal.SIGINT)
    print(f"the launcher (process {owner.pid}) was asked to stop; its jobs save their place first")
    return 0


def set_aside(graph: Graph, cell: str, states: Mapping[str, JobState]) -> None:
    """Moves the cell's runs, and those that build on them, to `sweeps/<name>/replaced/`: they are to be had anew.

    Raises:
        UserError: one of them is queued or running.
    """
    chosen = {job.key for job in jobs_of(graph, cell)}
    for job in graph.work:  # needs come before what needs them
        if chosen.intersection(job.needs):
            chosen.add(job.key)
    busy = [key for key in chosen if states[key].active]
    if busy:
        raise UserError(f"--rerun {cell}: {busy[0]} is {states[busy[0]].state}; --cancel --cell '{cell}' it first")
    place = graph.leaderboard.folder / "replaced" / time.strftime("%Y%m%d-%H%M%S")
    for key in sorted(chosen):
        if graph[key].folder.exists():
            (place / key).parent.mkdir(parents=True, exist_ok=True)
            graph[key].folder.rename(place / key)
    print(f"{len(chosen)} runs are to be had anew; what there was of them is in {place}")


def jobs_of(graph: Graph, cell: str) -> list[Job]:
    """The jobs meant by `cell`: words of a cell's name as --status shows it, with `:stage` at the end for one stage.

    Raises:
        UserError: none has these words; the nearest are given.
    """
    text, _, column = cell.rpartition(":") if cell.rpartition(":")[2] in graph.columns() else (cell, "", "")
    words = set(text.split())
    found = [job for job in graph.work if words <= set(job.cell.split()) and column in ("", job.column)]
    if not found:
        raise UserError(f"no cell '{cell}' in the sweep '{graph.name}'{nearest(text, graph.cells())}")
    return found
