"""A leaderboard's rows: the runs of one dataset and protocol, grouped into experiments, summarised and ranked."""

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from results.leaderboards.comparisons import ABOVE_RANDOM, STANDING, above_random, standing
from results.leaderboards.intervals import inferred_images, summarise
from results.leaderboards.published import Published, describe, verdict
from results.leaderboards.recipe_papers import tolerance
from results.leaderboards.run_table import AVERAGED, HEADLINES, METRICS, UNTRAINED, Facts
from results.leaderboards.stale import stale
from results.leaderboards.warnings import doubtful, flags

GROUP = ["method", "recipe", "config", "eval_config"]
"""What the seeds of one experiment have in common."""

SETTING = ["epochs", "batch", "views", "backbone", "stem", "precision", "pretrain_dataset", "selection"]
PRETRAIN_COST = ["pretrain_wall_s", "pretrain_gpu_h", "pretrain_cpu_h", "pretrain_energy_kwh"]
EVAL_COST = ["eval_wall_s", "eval_gpu_h", "eval_cpu_h", "eval_energy_kwh"]
"""Means per run: of one pretraining, and of one evaluation. To reach a result takes one of both."""

FAILED_COST = [f"failed_{stage}_{what}_h" for stage in ("pretrain", "eval") for what in ("gpu", "cpu")]
"""Sums over an experiment's failed pretrainings, and failed evaluations, which cost time and gave no result."""

NO_COST = (0, 0.0, 0.0)

SUMMARY = ("mean", "sd", "ci95", "test_ci95", "low", "high")
"""Of each metric: see `intervals.summarise`."""

COUNTS = ["n_failed", "n_no_value", "n_collapsed"]
"""Runs that failed, evaluations that are done but have no value, pretrainings that collapsed (and count as results)."""

Row = dict[str, Any]


def columns(stage: str) -> list[str]:
    """Of a leaderboard, in order."""
    return [
        *("method", "recipe", "variant", "eval_variant", *SETTING, "deviations"),
        *("n_pretrain", "n_eval", "seeds", *COUNTS, "spread_of", "test_images", *STANDING, *ABOVE_RANDOM),
        *(f"{metric}_{what}" for metric in METRICS[stage] for what in SUMMARY),
        *PRETRAIN_COST,
        *EVAL_COST,
        *FAILED_COST,
        *(f"{metric}_{what}" for metric in HEADLINES[stage] for what in ("published", "delta", "verdict")),
        *("comparable", "published_fields", "published_method", "published_source"),
        *("flags", "stale", "config", "eval_config"),
    ]


def test_set_size(runs: pd.DataFrame) -> int | None:
    """The number of test images behind the accuracies of a leaderboard's `runs`, as records or the values say.

    None where neither does, and for detection, whose AP is not a count of images.
    """
    stage = str(runs.stage.iloc[0])
    if stage in AVERAGED:
        return None
    recorded = runs.test_images.dropna()
    return int(recorded.min()) if len(recorded) else inferred_images(runs[HEADLINES[stage][0]].to_numpy(float))


def resolution_of(runs: pd.DataFrame) -> float:
    """The difference (points) that one test image makes on a leaderboard; 0 where that is not known."""
    images = test_set_size(runs)
    return 100 / images if images else 0.0


def ranked(
    runs: pd.DataFrame, settings: Mapping[str, str], failed: Sequence[Facts], published: Published
) -> pd.DataFrame:
    """The leaderboard of `runs`, which are of one dataset, stage and protocol; the best experiment first.

    `settings` holds the settings (JSON) behind the hashes of GROUP, `failed` the facts of failed pretrainings.
    """
    done, stage = runs[runs.status == "done"], str(runs.stage.iloc[0])
    headline = f"{HEADLINES[stage][0]}_mean"
    images = test_set_size(done)
    summary = summarise(done, GROUP, "parent", METRICS[stage], images)
    table = summary.join(_common(done)).join(_costs(done)).join(_counts(done)).reset_index()
    table["test_images"] = pd.array([images] * len(table), dtype="Int64")
    experiments = rows_of(table)
    recipes = [(row["method"], row["recipe"]) for row in experiments]
    table["variant"] = _variants([_flat(settings, row["config"]) for row in experiments], recipes)
    table["eval_variant"] = _variants(
        [_flat(settings, row["eval_config"]) for row in experiments], [stage] * len(table)
    )
    table = table.join(_failures(experiments, runs, failed))
    nearest = [_published(row, settings, published, stage) for row in experiments]
    table = table.join(pd.DataFrame(nearest, index=table.index))
    bound = table[table.method == UNTRAINED].groupby(["backbone", "stem"])[headline].max().to_dict()
    doubts = doubtful(done, GROUP).reindex(pd.MultiIndex.from_frame(table[GROUP]))
    table["flags"] = [
        "; ".join([*flags(row, bound, headline), *reasons]) for row, reasons in zip(rows_of(table), doubts, strict=True)
    ]
    changed = stale(done, GROUP, settings)
    table["stale"] = list(changed.reindex(pd.MultiIndex.from_frame(table[GROUP])))
    order = [headline, *GROUP]
    best_first = [name != headline for name in order]
    table = table.sort_values(order, ascending=best_first, kind="stable", ignore_index=True)
    for compared in (standing, above_random):
        table = table.join(compared(done, table, GROUP, HEADLINES[stage][0], resolution_of(done)))
    return table[columns(stage)]


def rows_of(table: pd.DataFrame) -> list[Row]:
    """As `to_dict("records")`, several times as fast."""
    columns = [
        list(map(_plain, table[name])) if table[name].dtype == object else table[name].tolist() for name in table
    ]
    names = list(map(str, table))
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in GROUP)


def _common(runs: pd.DataFrame) -> pd.DataFrame:
    """What all runs of an experiment share, as its first run has it."""
    return runs.groupby(GROUP)[["dataset", "stage", "protocol", *SETTING, "deviations"]].first()


def _costs(runs: pd.DataFrame) -> pd.DataFrame:
    seconds = ("pretrain_gpu", "pretrain_cpu", "eval_gpu", "eval_cpu")
    hours = runs.assign(**{f"{name}_h": runs[f"{name}_s"] / 3600 for name in seconds})
    once = hours.drop_duplicates([*GROUP, "parent"]).groupby(GROUP)[PRETRAIN_COST].mean()
    return once.join(hours.groupby(GROUP)[EVAL_COST].mean())


def _variants(settings: list[dict[str, str]], families: Sequence[Hashable]) -> list[str]:
    """For each of `settings`, where it differs from others of its family, e.g. 'schedule.epochs=2'."""
    variants = [""] * len(settings)
    for family in sorted(set(families), key=str):
        members = [i for i, other in enumerate(families) if other == family and settings[i]]
        keys = sorted(set().union(*(settings[i] for i in members)))
        differing = [key for key in keys if len({settings[i].get(key) for i in members}) > 1]
        for i in members:
            variants[i] = " ".join(f"{key}={settings[i].get(key, 'null')}" for key in differing)
    return variants


def _flat(settings: Mapping[str, str], digest: str) -> dict[str, str]:
    flat: dict[str, str] = json.loads(settings.get(digest, "{}"))
    return flat


def _counts(done: pd.DataFrame) -> pd.DataFrame:
    """Of each experiment: evaluations without a value, collapsed and all pretrainings, and the pretrainings' seeds."""
    metric = HEADLINES[str(done.stage.iloc[0])][0]
    no_value = done[metric].isna().groupby([done[key] for key in GROUP]).sum().rename("n_no_value")
    pretrainings = done.drop_duplicates([*GROUP, "parent"])
    collapsed = pretrainings.collapsed.fillna(False).astype(bool)
    groups = [pretrainings[key] for key in GROUP]
    seeds = pretrainings.seed.groupby(groups).agg(lambda values: " ".join(map(str, sorted(values.dropna()))))
    trained = collapsed.groupby(groups)
    return pd.DataFrame(
        {"n_no_value": no_value, "n_collapsed": trained.sum(), "n_trained": trained.size(), "seeds": seeds}
    )


def _failures(experiments: list[Row], runs: pd.DataFrame, failed: Sequence[Facts]) -> pd.DataFrame:
    """Of each experiment: how many of its evaluations and of its config's pretrainings failed, and FAILED_COST."""
    evaluations = _totals(
        (_key(row), row["eval_gpu_s"], row["eval_cpu_s"]) for row in rows_of(runs[runs.status == "failed"])
    )
    pretrainings = _totals((facts["config"], facts["pretrain_gpu_s"], facts["pretrain_cpu_s"]) for facts in failed)
    cells = []
    for row in experiments:
        first, second = (pretrainings.get(row["config"], NO_COST), evaluations.get(_key(row), NO_COST))
        cells.append([first[0] + second[0], *first[1:], *second[1:]])
    return pd.DataFrame(cells, columns=["n_failed", *FAILED_COST]).astype({"n_failed": "Int64"})


def _totals(costs: Iterable[tuple[Hashable, Any, Any]]) -> dict[Hashable, tuple[int, float, float]]:
    """Of (key, GPU seconds, CPU seconds), by key: their number and sums in hours; what is not known counts as 0."""
    totals: dict[Hashable, tuple[int, float, float]] = {}
    for key, *seconds in costs:
        number, gpu, cpu = totals.get(key, NO_COST)
        hours = [0.0 if value is None or pd.isna(value) else value / 3600 for value in seconds]
        totals[key] = (number + 1, gpu + hours[0], cpu + hours[1])
    return totals


def _published(row: Row, settings: Mapping[str, str], published: Published, stage: str) -> Row:
    """The published experiment nearest to that of `row`, as columns."""
    measured: Facts = {key: None if pd.isna(value) or value == "" else value for key, value in row.items()}
    config = _flat(settings, row["config"])
    method = {key.removeprefix("method."): value for key, value in config.items() if key.startswith("method.")}
    match = published.nearest(measured, method, HEADLINES[stage][0])
    cells: Row = {
        "comparable": match.comparable if match else "",
        "published_fields": describe(match.fields) if match else "",
        "published_method": match.method if match else "",
        "published_source": match.source if match else "",
    }
    for metric in HEADLINES[stage]:
        value = match.values.get(metric, math.nan) if match else math.nan
        cells[f"{metric}_published"] = value
        delta = row[f"{metric}_mean"] - value if cells["comparable"] == "yes" else math.nan
        cells[f"{metric}_delta"] = delta
        bound = tolerance(row["recipe"], stage, metric)
        cells[f"{metric}_verdict"] = verdict(delta, row[f"{metric}_ci95"], row["n_pretrain"], bound)
    return cells
