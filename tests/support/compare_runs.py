"""Whether two runs of a sweep came to the same: metrics and backbones to the bit, tables (cost aside) to the byte."""

import csv
from pathlib import Path
from typing import Any

from results.aggregate import aggregate
from results.leaderboards.experiments import EVAL_COST, PRETRAIN_COST
from slurm.graph import Graph
from whitebench.records import Record, read_record

TIMING = {"images_per_s", "data_wait"}
COST = {*PRETRAIN_COST, *EVAL_COST}


def differences(graph: Graph, reference: Path, work: Path) -> list[str]:
    """A line for each way in which the runs of `graph` differ from those of the same ids below `reference`.

    The tables of both are built by the same code, into `work/tables-of-*`.
    """
    found = []
    for job in graph.work:
        ours, theirs = read_record(job.folder), read_record(reference / job.key)
        if ours is None or theirs is None or ours.status != "done" or theirs.status != "done":
            found.append(f"{job.key}: not done in both")
        elif _results(ours) != _results(theirs):
            found.append(f"{job.key}: {_results(ours)} is not {_results(theirs)}")
    return found + _tables(graph.leaderboard.folder.parents[1], reference, work)


def _results(record: Record) -> dict[str, Any]:
    backbone = record.artifacts.get("backbone", {}).get("sha256")
    return {key: value for key, value in record.metrics.items() if key not in TIMING} | {"backbone": backbone}


def _tables(runs: Path, reference: Path, work: Path) -> list[str]:
    folders = {"ours": runs, "the reference": reference}
    boards = {}
    for name, folder in folders.items():
        out = work / f"tables-of-{name.split()[-1]}"
        aggregate([folder], out)
        boards[name] = {path.name: without_cost(path.read_text()) for path in sorted(out.glob("leaderboard_*.csv"))}
    ours, theirs = boards.values()
    names = sorted(ours.keys() | theirs.keys())
    return [f"{name}: differs from the reference's" for name in names if ours.get(name) != theirs.get(name)]


def without_cost(table: str) -> list[list[str]]:
    """The cells of a CSV but for the columns of cost, as they stand in the file."""
    rows = list(csv.reader(table.splitlines()))
    kept = [i for i, name in enumerate(rows[0]) if name not in COST]
    return [[row[i] for i in kept] for row in rows]
