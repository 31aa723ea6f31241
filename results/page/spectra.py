"""Spectra of pretrainings: eigenvalues of their outputs by epoch, and effective ranks over epochs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from results.page.charts import HOVER, LAST, Axis, Chart, Spec, line_chart, spectrum_chart
from results.page.curves import EPOCH, run_words, thinned
from results.page.run_details import Detail
from results.page.run_files import number

FRAME, RANKS = "spectra", "ranks"
PARTS = ("backbone", "embedding", "transformed")
RUNS, EPOCHS, POINTS, HOVER_POINTS = 12, 10, 60, 12
"""Pretrainings of which spectra are drawn; epochs and eigenvalues of each at most."""

FLOOR = 1e-9
"""Smaller shares of the largest eigenvalue are drawn there: they are noise of single precision."""


@dataclass(frozen=True)
class Spectrum:
    """The charts of one pretraining."""

    title: str
    words: str
    charts: list[Chart]


def chosen(details: Sequence[Detail]) -> list[Detail]:
    """RUNS pretrainings with spectra: the first of each recipe before the second of any."""
    families: dict[str, list[Detail]] = {}
    for detail in details:
        if detail.spectra:
            families.setdefault(detail.recipe, []).append(detail)
    longest = max(map(len, families.values()), default=0)
    order = [family[i] for i in range(longest) for family in families.values() if i < len(family)]
    return order[:RUNS]


def frames(details: Sequence[Detail]) -> dict[str, pd.DataFrame]:
    spectra, ranks = [], []
    for detail in details:
        key = {"run": detail.record.id, "words": run_words(detail)}
        probes = thinned(detail.spectra, EPOCHS)
        for i, probe in enumerate(probes):
            epoch = number(probe.get("epoch"))
            for part in PARTS if epoch is not None else ():
                measured = probe.get(part)
                values = measured if isinstance(measured, dict) else {}
                spectra += [{**key, "part": part, "epoch": epoch, **row} for row in _eigenvalues(values)]
                rank = number(values.get("effective_rank"))
                if rank is not None:
                    last = i == len(probes) - 1
                    ranks.append({**key, "part": part, "epoch": epoch, "rank": rank, LAST: last, HOVER: True})
    columns = ["run", "words", "part", "epoch"]
    return {
        FRAME: pd.DataFrame(spectra, columns=[*columns, "position", "share", HOVER]).astype({HOVER: bool}),
        RANKS: pd.DataFrame(ranks, columns=[*columns, "rank", LAST, HOVER]).astype({LAST: bool, HOVER: bool}),
    }


def _eigenvalues(values: dict[str, Any]) -> list[dict[str, Any]]:
    """About POINTS of a spectrum, each as its share of the largest; none where that is not positive."""
    raw = values.get("eigenvalues")
    numbers = [number(value) for value in raw] if isinstance(raw, list) else []
    largest = max((value for value in numbers if value is not None), default=0.0)
    if largest <= 0:
        return []
    positions = _spaced(len(numbers))
    every = max(1, len(positions) // HOVER_POINTS)
    pairs = [(i, position, numbers[position]) for i, position in enumerate(positions)]
    return [
        {"position": position + 1, "share": max(value / largest, FLOOR), HOVER: i % every == 0}
        for i, position, value in pairs
        if value is not None
    ]


def _spaced(count: int) -> list[int]:
    """About POINTS of `count` positions, the first and the last among them."""
    step = max(1.0, (count - 1) / (POINTS - 1))
    return sorted({round(k * step) for k in range(min(count, POINTS)) if round(k * step) < count})


def spectrum_charts(details: Sequence[Detail], data: dict[str, pd.DataFrame]) -> list[Spectrum]:
    present = set(zip(data[FRAME].run, data[FRAME].part, strict=True))
    ranked = set(data[RANKS].run)
    return [
        Spectrum(detail.title, run_words(detail), charts)
        for detail in details
        if (charts := _charts(detail.record.id, present, ranked))
    ]


def _charts(run: str, present: set[tuple[str, str]], ranked: set[str]) -> list[Chart]:
    parts = [(colour, part) for colour, part in enumerate(PARTS) if (run, part) in present]
    charts = [Chart(part, FRAME, _spectrum(colour), {"run": run, "part": part}) for colour, part in parts]
    return charts + ([Chart("effective rank", RANKS, RANK_SPEC, {"run": run})] if run in ranked else [])


def _spectrum(colour: int) -> Spec:
    return spectrum_chart(Axis("position", "eigenvalue"), Axis("share", "share of the largest", log=True), colour)


RANK_SPEC = {**line_chart(EPOCH, Axis("rank", "", zero=True), "part", False, PARTS), "height": 180}
