"""Which epoch a result is of. The headline is the last one: the best one was chosen on the images that judge it.

Some publications report the best epoch. For comparison with those alone, it is recorded beside the last.
"""

from pathlib import Path
from typing import Any

from whitebench.records import read_metrics


def best_epoch(folder: Path) -> dict[str, Any]:
    """{"top1_best", "best_epoch"} of a run that is judged every epoch: the first of the best, counted from 1."""
    judged = [line for line in read_metrics(folder) if "top1" in line]
    best = max(judged, key=lambda line: (line["top1"], -line["epoch"]))
    return {"top1_best": best["top1"], "best_epoch": best["epoch"]}
