"""The report's charts over all runs: learning curves, spectra, classification against detection, cost."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import pandas as pd

from results.leaderboards.console import TITLES
from results.leaderboards.leaderboard import Tables
from results.leaderboards.warnings import BOUNDS
from results.page.charts import Mark, Series, lines, scatter
from results.page.parts import Palette, card
from results.page.run_details import Detail

CURVES = {
    "loss": "loss (of its own scale for each method)",
    "online_knn_top1": "online k-NN top-1, %",
    "spread": "spread of embeddings (0: collapsed)",
    "images_per_s": "images/s",
    "lr": "learning rate",
}
PARTS = ("backbone", "embedding", "transformed")
SPECTRA = 12
"""Pretrainings of which spectra are drawn: the first of each recipe before the second of any."""

EIGENVALUES = 120
"""Points of a drawn spectrum, at most."""


def curves(details: Sequence[Detail], palette: Palette) -> str:
    """One chart a quantity for all runs; of the loss also one a recipe, because its scale is the method's own."""
    shown = [detail for detail in details if detail.curve]
    named = {key: [detail for detail in shown if any(key in line for line in detail.curve)] for key in CURVES}
    named = {key: found for key, found in named.items() if found}
    if not named:
        return ""
    options = "".join(f'<option value="{key}">{escape(CURVES[key])}</option>' for key in named)
    charts = "".join(
        f'<div data-of="curve" data-is="{key}">{lines(_series(found, key, palette), "epoch", CURVES[key])}</div>'
        for key, found in named.items()
    )
    picker = f'<label>All runs: <select data-choose="curve">{options}</select></label>'
    single = "".join(
        card(f"{recipe}: loss", lines(_series(found, "loss", palette), "epoch", "loss"))
        for recipe, found in _by_recipe(named.get("loss", [])).items()
    )
    return f'<div class="grid2"><div class="card">{picker}{charts}</div>{single}</div>'


def _series(details: Sequence[Detail], key: str, palette: Palette) -> list[Series]:
    return [
        Series(
            f"{detail.record.cell.get('recipe')} seed {detail.record.config.get('seed')}",
            palette[str(detail.record.cell.get("method"))],
            [(_place(line), float(line[key])) for line in detail.curve if isinstance(line.get(key), int | float)],
        )
        for detail in details
    ]


def _place(line: dict[str, Any]) -> float:
    return float(line.get("epoch", line.get("step", math.nan)))


def _by_recipe(details: Sequence[Detail]) -> dict[str, list[Detail]]:
    found: dict[str, list[Detail]] = {}
    for detail in details:
        found.setdefault(str(detail.record.cell.get("recipe")), []).append(detail)
    return found


def spectra(details: Sequence[Detail]) -> str:
    """Of each pretraining: eigenvalues of its outputs by look, and effective ranks over epochs."""
    seen = [detail for detail in details if detail.looks]
    families = list(_by_recipe(seen).values())
    rounds = [detail for place in range(len(seen)) for found in families for detail in found[place : place + 1]]
    cards = "".join(_spectrum(detail) for detail in rounds[:SPECTRA])
    more = f"<p class=hint>{len(rounds) - SPECTRA} more have spectra.</p>" if len(rounds) > SPECTRA else ""
    hint = (
        '<p class="hint">Eigenvalues of the covariance over fixed training images, by the largest, on a logarithmic '
        "scale; a line a look, the later the stronger. A spectrum that falls off a cliff has collapsed dimensions. "
        "Effective rank: exponential of the entropy of the eigenvalues.</p>"
    )
    return f"{hint}{cards}{more}" if cards else ""


def _spectrum(detail: Detail) -> str:
    drawn = {part: eigenvalues(detail.looks, part, PARTS.index(part)) for part in PARTS}
    charts = [f"<div><h3>{part}</h3>{chart}</div>" for part, chart in drawn.items() if chart]
    ranks = [
        Series(
            part, colour, [(look["epoch"], look[part]["effective_rank"]) for look in detail.looks if _has(look, part)]
        )
        for colour, part in enumerate(PARTS)
    ]
    named = [(colour, part) for colour, part in enumerate(PARTS) if ranks[colour].points]
    keys = "".join(f'<span><i class="k{colour}"></i>{part}</span>' for colour, part in named)
    charts.append(f"<div><h3>effective rank</h3>{lines(ranks, 'epoch', '', from_zero=True)}</div>")
    title = f"{detail.record.cell.get('recipe')}, seed {detail.record.config.get('seed')}"
    return card(title, f'<div class="grid4">{"".join(charts)}</div><div class="legend">{keys}</div>')


def _has(look: dict[str, Any], part: str, key: str = "effective_rank") -> bool:
    return isinstance(look.get(part), dict) and look[part].get(key) is not None and "epoch" in look


def eigenvalues(looks: Sequence[dict[str, Any]], part: str, colour: int) -> str:
    """The spectra of one part, by look."""
    shown = [
        look for look in looks if _has(look, part, "eigenvalues") and max(look[part]["eigenvalues"], default=0) > 0
    ]
    series = []
    for place, look in enumerate(shown):
        values = look[part]["eigenvalues"]
        points = [(number + 1.0, max(values[number] / max(values), 1e-9)) for number in _spaced(len(values))]
        strength = 0.18 + 0.82 * (place + 1) / len(shown)
        series.append(Series(f"epoch {look['epoch']}", colour, points, strength))
    return lines(series, "eigenvalue", "share of the largest", log_y=True)


def _spaced(count: int) -> list[int]:
    """About EIGENVALUES of so many places, the first and the last among them."""
    step = max(1.0, (count - 1) / (EIGENVALUES - 1))
    return sorted({round(k * step) for k in range(min(count, EIGENVALUES)) if round(k * step) < count})


# --- classification against detection, and cost ---------------------------------------------------------------------


def transfer(tables: Tables, palette: Palette) -> str:
    """Each pretraining by its accuracy and its AP, with the correlation."""
    ends = [(board, (board.dataset, board.stage, board.protocol)) for board in tables.leaderboards]
    charts = [
        _against(tables, across, up, metric, palette)
        for board, up in ends
        if board.stage == "detect"
        for metric in board.headlines
        for other, across in ends
        if other.stage != "detect"
    ]
    return f'<div class="grid4">{"".join(charts)}</div>' if any(charts) else ""


Board = tuple[str, str, str]


def per_pretraining(tables: Tables, board: Board, metric: str) -> pd.Series:
    """The mean of each pretraining's evaluations on a leaderboard, by its id."""
    runs = tables.runs[tables.runs.status == "done"]
    for key, value in zip(("dataset", "stage", "protocol"), board, strict=True):
        runs = runs[runs[key] == value]
    return runs.groupby("parent")[metric].mean().dropna()


def correlation(x: Sequence[float], y: Sequence[float]) -> str:
    """Pearson's r with its 95 % interval, and Spearman's rho, or why there is none."""
    from scipy import stats

    if len(x) < 4 or len(set(x)) < 2 or len(set(y)) < 2:
        return f"n = {len(x)}: too few for a correlation"
    pearson, spearman = stats.pearsonr(x, y), stats.spearmanr(x, y)
    low, high = pearson.confidence_interval(0.95)
    pearsons = f"Pearson r = {pearson.statistic:.2f} [{low:.2f}, {high:.2f}]"
    return f"{pearsons}, Spearman ρ = {spearman.statistic:.2f}, n = {len(x)}"


def _against(tables: Tables, across: Board, up: Board, metric: str, palette: Palette) -> str:
    x, y = per_pretraining(tables, across, "top1"), per_pretraining(tables, up, metric)
    both = [str(parent) for parent in x.index if parent in y.index]
    if len(both) < 2:
        return ""
    method = tables.runs.drop_duplicates("parent").set_index("parent").method
    marks = [Mark(float(x[parent]), float(y[parent]), parent, palette[str(method[parent])]) for parent in both]
    chart = scatter(marks, f"{across[1]} {across[2]} on {across[0]}: top-1, %", f"{TITLES[metric]}, %")
    said = correlation([mark.x for mark in marks], [mark.y for mark in marks])
    rivals = [mark for parent, mark in zip(both, marks, strict=True) if method[parent] not in BOUNDS]
    if len(rivals) < len(marks):
        said += f"; without the bounds: {correlation([mark.x for mark in rivals], [mark.y for mark in rivals])}"
    title = f"{up[0]} {TITLES[metric]} against {across[0]} {across[1]}"
    return card(title, f'{chart}<p class="hint">{said}. A dot is a pretraining.</p>')


def cost(tables: Tables, palette: Palette) -> str:
    """Result against cost, with the front of those that nothing beats in both."""
    charts = [
        card(
            f"{board.dataset}: {board.stage} {board.protocol}, {TITLES[metric]}",
            scatter(marks, unit, f"{TITLES[metric]}, %", front=True),
        )
        for board in tables.leaderboards
        for metric in board.headlines
        for unit, hours in (("GPU hours", _gpu), ("CPU core hours", _cpu))
        if (marks := _cost_marks(board.table, metric, hours, palette))
    ]
    hint = (
        '<p class="hint">An experiment a dot: the mean result against the mean cost of one pretraining with one such '
        "evaluation. The broken line joins those that none beats in both.</p>"
    )
    return f'{hint}<div class="grid4">{"".join(charts)}</div>' if charts else ""


def _cost_marks(table: pd.DataFrame, metric: str, hours: Callable[[Any], float], palette: Palette) -> list[Mark]:
    marks = [
        Mark(hours(row), row[f"{metric}_mean"], f"{row['recipe']} {row['variant']}".strip(), palette[row["method"]])
        for row in table.to_dict("records")
    ]
    return [mark for mark in marks if math.isfinite(mark.x) and math.isfinite(mark.y)]


def _gpu(row: Any) -> float:
    """NaN where no GPU was used."""
    total = row["pretrain_gpu_h"] + (0 if pd.isna(row["eval_gpu_h"]) else row["eval_gpu_h"])
    return float(total) if total > 0 else math.nan


def _cpu(row: Any) -> float:
    return float(row["pretrain_cpu_h"] + (0 if pd.isna(row["eval_wall_s"]) else row["eval_wall_s"] / 3600))
