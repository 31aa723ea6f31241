"""A leaderboard's rows: the runs of one dataset and protocol, grouped into experiments, summarised and ranked."""

import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from results.leaderboards.comparisons import STANDING, standing
from results.leaderboards.published import Published, describe, verdict
from results.leaderboards.recipe_papers import tolerance
from results.leaderboards.run_table import HEADLINES, METRICS, Facts
from results.leaderboards.significance import summarise
from results.leaderboards.stale import stale
from results.leaderboards.warnings import UNTRAINED, doubtful, flags

GROUP = ["method", "recipe", "config", "eval_config"]
"""What the seeds of one experiment have in common."""

SETTING = ["epochs", "batch", "views", "backbone", "stem", "precision", "pretrain_dataset", "selection"]
PRETRAIN_COST = ["pretrain_wall_s", "pretrain_gpu_h", "pretrain_cpu_h", "pretrain_energy_kwh"]
EVAL_COST = ["eval_wall_s", "eval_gpu_h", "eval_energy_kwh"]
"""Means per run: of one pretraining, and of one evaluation. To reach a result takes one of both."""

Row = dict[str, Any]


def columns(stage: str) -> list[str]:
    """Of a leaderboard, in order."""
    return [
        *("method", "recipe", "variant", "eval_variant", *SETTING, "deviations"),
        *("n_pretrain", "n_eval", "n_failed", "spread_of", *STANDING),
        *(f"{metric}_{what}" for metric in METRICS[stage] for what in ("mean", "sd", "ci95")),
        *PRETRAIN_COST,
        *EVAL_COST,
        *(f"{metric}_{what}" for metric in HEADLINES[stage] for what in ("published", "delta", "verdict")),
        *("comparable", "published_fields", "published_method", "published_source"),
        *("flags", "stale", "config", "eval_config"),
    ]


def ranked(
    runs: pd.DataFrame, settings: Mapping[str, str], failed: Mapping[str, int], published: Published
) -> pd.DataFrame:
    """The leaderboard of `runs`, which are of one dataset, stage and protocol; the best experiment first.

    `settings` holds the settings (JSON) behind the hashes of GROUP, `failed` counts failed pretrainings by config.
    """
    done, stage = runs[runs.status == "done"], str(runs.stage.iloc[0])
    headline = f"{HEADLINES[stage][0]}_mean"
    table = summarise(done, GROUP, "parent", METRICS[stage]).join(_common(done)).join(_costs(done)).reset_index()
    experiments = rows_of(table)
    recipes = [(row["method"], row["recipe"]) for row in experiments]
    table["variant"] = _variants([_flat(settings, row["config"]) for row in experiments], recipes)
    table["eval_variant"] = _variants(
        [_flat(settings, row["eval_config"]) for row in experiments], [stage] * len(table)
    )
    table["n_failed"] = _failures(experiments, runs, failed)
    nearest = [_published(row, settings, published, stage) for row in experiments]
    table = table.join(pd.DataFrame(nearest, index=table.index))
    bound = table[table.method == UNTRAINED].groupby(["backbone", "stem"])[headline].max().to_dict()
    doubts = doubtful(done, GROUP).reindex(pd.MultiIndex.from_frame(table[GROUP]))
    table["flags"] = [
        "; ".join([*flags(row, bound, headline), *found]) for row, found in zip(rows_of(table), doubts, strict=True)
    ]
    changed = stale(done, GROUP, settings)
    table["stale"] = list(changed.reindex(pd.MultiIndex.from_frame(table[GROUP])))
    order = [headline, *GROUP]
    best_first = [name != headline for name in order]
    table = table.sort_values(order, ascending=best_first, kind="stable", ignore_index=True)
    table = table.join(standing(done, table, GROUP, HEADLINES[stage][0]))
    return table[columns(stage)]


def rows_of(table: pd.DataFrame) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in GROUP)


def _common(runs: pd.DataFrame) -> pd.DataFrame:
    """What all runs of an experiment share, as its first run has it."""
    return runs.groupby(GROUP)[["dataset", "stage", "protocol", *SETTING, "deviations"]].first()


def _costs(runs: pd.DataFrame) -> pd.DataFrame:
    seconds = ("pretrain_gpu", "pretrain_cpu", "eval_gpu")
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


def _failures(experiments: list[Row], runs: pd.DataFrame, failed: Mapping[str, int]) -> list[int]:
    """Failed evaluations of each experiment, and failed pretrainings of its config."""
    evaluations = Counter(_key(row) for row in rows_of(runs.loc[runs.status == "failed", GROUP]))
    return [evaluations[_key(row)] + failed.get(row["config"], 0) for row in experiments]


def _published(row: Row, settings: Mapping[str, str], published: Published, stage: str) -> Row:
    """The published experiment nearest to that of `row`, as columns."""
    ours: Facts = {key: None if pd.isna(value) or value == "" else value for key, value in row.items()}
    config = _flat(settings, row["config"])
    method = {key.removeprefix("method."): value for key, value in config.items() if key.startswith("method.")}
    match = published.nearest(ours, method, HEADLINES[stage][0])
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
        cells[f"{metric}_verdict"] = verdict(delta, tolerance(row["recipe"], stage, metric))
    return cells
