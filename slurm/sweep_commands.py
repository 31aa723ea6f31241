"""What one does with a launched sweep: show its status and logs, cancel it, set a cell's runs aside to run it again.

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

from slurm.clusters import enter_environment
from slurm.graph import Graph, Job, load_graph
from slurm.job_queue import queued_jobs
from slurm.job_state import JobState, log_of, read_states
from slurm.launch_lock import launch_lock
from slurm.slurm_command import is_installed
from slurm.status import orphans_of, read_status, status_json, status_or_reason, status_text
from slurm.submissions import note_cancelled, read_ledger, sweeps_folder
from slurm.sweep import DEFAULT, read_sweep, sweep_path
from slurm.waiting import forget_waiting, read_waiting
from whitebench.errors import UserError, nearest
from whitebench.locks import is_taken, read_owner

EVERY_S = 5.0
LINES = 20


def launched(sweep: str | None, cluster: str | None, changes: list[str]) -> Graph:
    """The graph of the last launch of a sweep, by the sweep's name and where its cluster keeps runs."""
    raw = read_sweep(sweep_path(sweep or DEFAULT))
    raw.update(dict(text.split("=", 1) for text in changes if text.startswith(("name=", "cluster="))))
    enter_environment(cluster or str(raw.get("cluster", "auto")))
    return load_graph(str(raw["name"]))


def show_status(graph: Graph, as_json: bool) -> int:
    status = read_status(graph)
    print(status_json(status) if as_json else status_text(status))
    return 0


def watch_status(graph: Graph) -> int:
    """The status every few seconds, in place on a terminal, until nothing of the sweep is queued or running.

    An answer of SLURM or of the file system that does not come is reported, and asked for again.
    """
    while True:
        clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
        status = status_or_reason(graph)
        if isinstance(status, str):
            print(f"{time.strftime('%H:%M:%S')}  {status}; asking again", flush=True)
        else:
            print(clear + status_text(status), flush=True)
            waiting = read_waiting(graph.leaderboard.folder)
            active = any(state.active for state in status.states.values())
            if not active and not waiting and status.leaderboard["state"] not in ("queued", "running"):
                return 0
        time.sleep(EVERY_S)


def show_logs(graph: Graph, cell: str) -> int:
    """The end of the latest log of each of the cell's jobs that has one."""
    states = read_states(graph, {}, read_ledger())
    has_logs = False
    for job in jobs_of(graph, cell):
        log = log_of(job.folder) or states[job.key].log
        if log is None or not Path(log).exists():
            continue
        has_logs = True
        print(f"== {job.column} {job.cell}: {log}")
        with open(log, errors="replace") as file:
            print("".join(deque(file, LINES)), end="")
    if not has_logs:
        raise UserError(f"'{cell}': no job of it has begun yet, so it has no logs")
    return 0


def cancel_jobs(graph: Graph, cell: str | None) -> int:
    """Ends what is queued or running of the sweep, or of one cell. What has been reached is kept.

    Raises:
        SlurmUnavailable: SLURM does not answer; nothing was cancelled then.
    """
    keys = {job.key for job in jobs_of(graph, cell)} if cell else set(graph.jobs)
    with launch_lock(sweeps_folder() / ".lock", wait=True, what="another launcher is submitting"):
        ids = _cancel_queued(graph, keys, whole=cell is None)
    if ids:
        print(f"{ids} jobs cancelled; launching again goes on from where they were")
        return 0
    return _stop_launcher(graph, cell)


def _cancel_queued(graph: Graph, keys: set[str], whole: bool) -> int:
    """Cancels what the queue holds of `keys`, of a whole sweep also jobs of launches with other settings; how many."""
    from slurm.queue_cleanup import cancel

    ledger = read_ledger()
    waiting = set(read_waiting(graph.leaderboard.folder).get("keys") or []) & keys
    if not ledger.arrays or not is_installed():
        if ledger.arrays and not whole:
            raise UserError("SLURM is not installed here: --cancel where the sweep was launched")
        return 0
    queued = queued_jobs(ledger)
    orphans = orphans_of(graph, queued, ledger) if whole else {}
    chosen = {key: job for key, job in queued.items() if key in keys or key in orphans}
    if waiting:  # before jobs end, each of which would queue some of them
        forget_waiting(graph, waiting)
    note_cancelled(chosen)
    cancel([job for entry in chosen.values() for job in entry.ids])
    return len([job for entry in chosen.values() for job in entry.ids]) + len(waiting)


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
    print(f"the launcher (process {owner.pid}) was asked to stop; its jobs save their state first")
    return 0


def set_aside(graph: Graph, cell: str, states: Mapping[str, JobState]) -> None:
    """Moves the cell's runs, and those that build on them, to `sweeps/<name>/replaced/`, so that they run again.

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
    target = graph.leaderboard.folder / "replaced" / time.strftime("%Y%m%d-%H%M%S")
    for key in sorted(chosen):
        if graph[key].folder.exists():
            (target / key).parent.mkdir(parents=True, exist_ok=True)
            graph[key].folder.rename(target / key)
    print(f"{len(chosen)} runs were reset; their old folders are in {target}")


def jobs_of(graph: Graph, cell: str) -> list[Job]:
    """The jobs meant by `cell`: words of a cell's name as --status shows it, with `:stage` at the end for one stage.

    Raises:
        UserError: none has these words; the nearest are given.
    """
    columns = {*graph.columns(), *(job.stage_in_sweep for job in graph.work)}
    text, _, column = cell.rpartition(":") if cell.rpartition(":")[2] in columns else (cell, "", "")
    if not column:
        head, _, tail = cell.rpartition(":")
        stage = head.rpartition(":")[2]
        if f"{stage}:{tail}" in columns:  # a stage with a seed of its own, as in detect:1
            text, column = head.rpartition(":")[0], f"{stage}:{tail}"
    words = set(text.split())
    jobs = [job for job in graph.work if words <= _words(job) and column in ("", job.column, job.stage_in_sweep)]
    if not jobs:
        raise UserError(f"no cell '{cell}' in the sweep '{graph.name}'{nearest(text, graph.cells())}")
    return jobs


def _words(job: Job) -> set[str]:
    """The words of a cell's name, also without the recipe's folder, which --status leaves out on narrow terminals."""
    words = job.cell.split()
    return {*words, *(word.rpartition("/")[2] for word in words[:1])}
