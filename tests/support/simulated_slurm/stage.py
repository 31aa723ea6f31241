"""The stage of every job of a simulated sweep: it trains nothing, and counts how often each run was completed."""

from collections import Counter
from pathlib import Path
from typing import Any

from whitebench.errors import Interrupted
from whitebench.records import Run, read_record

COMPLETED: Counter[str] = Counter()
"""Key of a run to how often it was carried out to its end in this process."""


class Asked:
    """What happens to the job that is at work."""

    to_stop = False
    """Its time is up, or it is preempted: it saves its state and gives way."""


def work(run: Run, parents: dict[str, Path], options: dict[str, Any]) -> None:
    for folder in parents.values():
        record = read_record(folder)
        if record is None or record.status != "done":
            raise ValueError(f"{folder} is needed, and not done")
    if Asked.to_stop:
        run.log(step=1 + int(run.record.cost["restarts"]))
        raise Interrupted("asked to stop")
    COMPLETED[f"{run.record.stage}/{run.id}"] += 1
    run.metrics["top1"] = 50.0
