"""The epoch that a result reports: the last one, because the best one is chosen on the images that evaluate it.

Some publications report the best epoch. For comparison with those alone, it is recorded next to the last.
"""

from pathlib import Path
from typing import Any

from whitebench.records import read_metrics


def best_epoch(folder: Path) -> dict[str, Any]:
    """{"top1_best", "best_epoch"} of a run that is evaluated every epoch: the first of the best, counted from 1."""
    evaluated = [line for line in read_metrics(folder) if "top1" in line]
    best = max(evaluated, key=lambda line: (line["top1"], -line["epoch"]))
    return {"top1_best": best["top1"], "best_epoch": best["epoch"]}
