"""Learning curves of pretrainings: one frame, and the charts that read it."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from results.page.charts import HOVER, LAST, Axis, Chart, line_chart
from results.page.run_details import Detail
from results.page.run_files import Lines, number

FRAME = "curves"
QUANTITIES = {
    "loss": "loss (each method has its own scale)",
    "online_knn_top1": "online k-NN top-1, %",
    "spread": "spread of embeddings (0: collapsed)",
    "images_per_s": "images per second",
    "lr": "learning rate",
}
POINTS, HOVER_POINTS = 150, 30
"""Of each curve at most: drawn, and with values on hover."""

EPOCH = Axis("epoch", "epoch")


def curve_frame(details: Sequence[Detail]) -> pd.DataFrame:
    """A row for each drawn point of each pretraining."""
    rows = [row for detail in details for row in _rows(detail)]
    frame = pd.DataFrame(rows, columns=["run", "method", "recipe", "words", "epoch", LAST, HOVER, *QUANTITIES])
    return frame.astype({"epoch": float, LAST: bool, HOVER: bool, **dict.fromkeys(QUANTITIES, float)})


def _rows(detail: Detail) -> list[dict[str, Any]]:
    lines = thinned([line for line in detail.curve if _epoch(line) is not None])
    every = max(1, len(lines) // HOVER_POINTS)
    words = run_words(detail)
    return [
        {
            "run": detail.title,
            "method": detail.method,
            "recipe": detail.recipe,
            "words": words,
            "epoch": _epoch(line),
            LAST: i == len(lines) - 1,
            HOVER: i % every == 0,
            **{key: number(line.get(key)) for key in QUANTITIES},
        }
        for i, line in enumerate(lines)
    ]


def _epoch(line: dict[str, Any]) -> float | None:
    epoch = number(line.get("epoch"))
    return number(line.get("step")) if epoch is None else epoch


def thinned(lines: Lines, most: int = POINTS) -> Lines:
    """At most about `most` of them, evenly, and the last."""
    step = max(1, -(-len(lines) // most))
    return [*lines[::step], *(lines[-1:] if lines and (len(lines) - 1) % step else [])]


def run_words(detail: Detail) -> str:
    """What the page's filter finds a run by."""
    from results.leaderboards.run_table import setting_hash

    record = detail.record
    config = setting_hash(record.config)
    return f"{detail.title} {detail.method} {record.id} {record.status} {record.stage} config:{config}"


def overview_charts(frame: pd.DataFrame) -> list[Chart]:
    """One chart for each quantity that any run has, all runs in it."""
    return [
        Chart(title, FRAME, line_chart(EPOCH, Axis(key, title, log=key == "lr"), "run"))
        for key, title in QUANTITIES.items()
        if frame[key].notna().any()
    ]


def loss_charts(frame: pd.DataFrame) -> list[Chart]:
    """The loss of each recipe, because each method has its own scale."""
    recipes = list(dict.fromkeys(frame.recipe[frame.loss.notna()]))
    spec = line_chart(EPOCH, Axis("loss", "loss"), "run")
    return [Chart(recipe, FRAME, spec, {"recipe": recipe}) for recipe in recipes]


def without_curves(details: Sequence[Detail]) -> list[tuple[str, list[str]]]:
    """(reason, titles) of the runs that have no curve."""
    reasons: dict[str, list[str]] = {}
    for detail in details:
        if not any(_epoch(line) is not None for line in detail.curve):
            reason = detail.why_no_curve or "its lines name neither an epoch nor a step"
            reasons.setdefault(reason, []).append(detail.title)
    return list(reasons.items())
