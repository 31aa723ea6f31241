"""From records to flat facts: what a row of `runs.csv` says about an evaluation and the pretraining it rests on.

A field that a record lacks, or that has an impossible type, stays empty: tables show it as not known.
"""

import json
import math
import re
from functools import lru_cache
from sys import intern
from typing import Any

from results.leaderboards.equal_code import newest_equals
from whitebench.hashing import plain_hash
from whitebench.records import Record

PRETRAIN = "pretrain"
FEW_SHOT = ("shot1", "shot5", "shot10")
RETRIEVAL = ("mAP", "mAP_easy", "mAP_medium", "mAP_hard")
HEADLINES = {
    **dict.fromkeys(("linear", "knn", "semi", "finetune"), ("top1",)),
    "detect": ("box_AP", "mask_AP"),
    "fewshot": ("top1",),
    "voc07": ("mAP",),
    "retrieval": ("mAP",),
    "robust": ("top1",),
}
"""The stages that are evaluations, and what each is judged by; a leaderboard is sorted by the first."""

DRAWS = tuple(f"{name}_ci95" for name in FEW_SHOT)
"""Half the 95 % intervals over the draws of shots."""
AVERAGED = ("detect", "voc07", "retrieval")
"""Stages whose metrics are means of precisions, not shares of images that are right."""

STAGES = (PRETRAIN, "convert", *HEADLINES)
CLASSIFICATION = ("top1", "top5")
DETECTION = tuple(f"{kind}_AP{suffix}" for kind in ("box", "mask") for suffix in ("", "50", "75", "s", "m", "l"))
METRICS = {
    **dict.fromkeys(HEADLINES, CLASSIFICATION),
    "detect": DETECTION,
    "fewshot": ("top1", *FEW_SHOT),
    "voc07": ("mAP",),
    "retrieval": RETRIEVAL,
    "robust": (*CLASSIFICATION, "mCE"),
}
"""All of a stage's metrics, in per cent."""
UNBOUNDED = ("mCE",)
"""Relative to AlexNet's, so that a weak network has more than 100; not shares of images."""

COLUMNS = {
    # what was evaluated, how
    "stage": "string",
    "dataset": "string",
    "protocol": "string",
    "method": "string",
    "recipe": "string",
    "seed": "Int64",
    "eval_seed": "Int64",
    "status": "string",
    # what came out
    **dict.fromkeys((*CLASSIFICATION, *DETECTION), "float64"),
    **dict.fromkeys((*FEW_SHOT, *DRAWS, *RETRIEVAL, "mCE"), "float64"),
    "test_images": "Int64",
    # what decides whether two rows may be compared
    "pretrain_dataset": "string",
    "backbone": "string",
    "stem": "string",
    "epochs": "Int64",
    "batch": "Int64",
    "views": "string",
    "precision": "string",
    "world_size": "Int64",
    "threads": "Int64",
    "loader": "string",
    "contradicts": "boolean",
    "selection": "string",
    "deviations": "string",
    "config": "string",
    "eval_config": "string",
    # what a later change of makes a row doubtful
    "pretrain_code": "string",
    "code": "string",
    "data_hash": "string",
    "eval_data_hash": "string",
    "protocol_hash": "string",
    "pretrain_git": "string",
    "pretrain_dirty": "boolean",
    "git": "string",
    "dirty": "boolean",
    # the pretraining: whether it ended, what it cost
    "pretrain_status": "string",
    "collapsed": "boolean",
    "restarts": "Int64",
    "resumed_under_other_code": "boolean",
    "pretrain_device": "string",
    "pretrain_wall_s": "float64",
    "pretrain_gpu_s": "float64",
    "pretrain_cpu_s": "float64",
    "pretrain_energy_kwh": "float64",
    "device": "string",
    "eval_wall_s": "float64",
    "eval_gpu_s": "float64",
    "eval_cpu_s": "float64",
    "eval_energy_kwh": "float64",
    "eval_resumed_under_other_code": "boolean",
    # where it all is
    "sweep": "string",
    "started": "string",
    "ended": "string",
    "id": "string",
    "parent": "string",
}
"""Columns of `runs.csv`, in order, with their pandas types. Seconds, kWh and per cent."""

LAST = "last"
"""What every stage of this suite reports where its protocol does not choose: the state after the last epoch or step."""

RESUMED = ("detect", "linear", "semi", "finetune")
"""The evaluations that go on where they stopped; others start again, under one code."""

UNTRAINED = "random"
"""The method that does not train: whatever its recipe's schedule says, it has 0 epochs."""

TEST_SET = ("manifest", "splits", "val", "count")
"""Where a record's `data` says how many images a classifier was tested on."""

FROM_CELL = ("method", "recipe", "seed", "sweep")
Facts = dict[str, Any]


def pretrain_facts(record: Record) -> Facts:
    """What a pretraining's record says of all evaluations that rest on it."""
    config, cost = record.config, record.cost
    method = text(at(config, "method", "name")) or text(record.cell.get("method"))
    return {
        **_from_cell(record),
        "method": method,
        "seed": whole(config.get("seed")),
        "pretrain_dataset": text(at(config, "data", "dataset")),
        "backbone": text(at(config, "network", "backbone")),
        "stem": text(at(config, "network", "stem")),
        "epochs": 0 if method == UNTRAINED else whole(at(config, "schedule", "epochs")),
        "batch": whole(config.get("batch")),
        "views": views_text(at(config, "data", "views")),
        "precision": text(config.get("precision")),
        "world_size": whole(config.get("world_size")),
        "threads": whole(config.get("threads")),
        "loader": text(at(config, "data", "loader")),
        "config": setting_hash(config),
        "pretrain_code": code_digest(record),
        "data_hash": _short(record.hashes.get("data") or config.get("data_hash")),
        "pretrain_git": _short(record.environment.get("git")),
        "pretrain_dirty": flag(record.environment.get("dirty")),
        "pretrain_status": record.status,
        "collapsed": flag(record.metrics.get("collapsed")),
        "restarts": whole(cost.get("restarts")),
        "resumed_under_other_code": record.resumed_under_other_code,
        "pretrain_device": text(record.environment.get("device")),
        "pretrain_wall_s": real(cost.get("wall_s")),
        "pretrain_gpu_s": real(cost.get("gpu_s")),
        "pretrain_cpu_s": real(cost.get("cpu_s")),
        "pretrain_energy_kwh": real(cost.get("energy_kwh")),
    }


def evaluation_facts(record: Record) -> Facts:
    """What an evaluation's record says by itself; `pretrain_facts` of its parent complete the row."""
    config = record.config
    return {
        **_from_cell(record),
        "stage": record.stage,
        "dataset": text(config.get("dataset")) or text(record.cell.get("dataset")),
        "protocol": text(at(config, "protocol", "name")) or text(record.cell.get("protocol")),
        "eval_seed": whole(config.get("seed")),
        "status": record.status,
        **{metric: real(record.metrics.get(metric)) for metric in METRICS[record.stage]},
        **({name: real(record.metrics.get(name)) for name in DRAWS} if record.stage == "fewshot" else {}),
        "test_images": None if record.stage in AVERAGED else whole(at(record.data, *TEST_SET)),
        "kept_epoch": whole(config.get("epoch")),
        "selection": text(at(config, "protocol", "selection")) or LAST,
        "deviations": _deviations(record),
        "eval_config": setting_hash(config),
        "eval_data_hash": _short(record.hashes.get("data") or config.get("data_hash")),
        "code": code_digest(record),
        "protocol_hash": _short(record.hashes.get("protocol")),
        "git": _short(record.environment.get("git")),
        "dirty": flag(record.environment.get("dirty")),
        "device": text(record.environment.get("device")),
        "eval_wall_s": real(record.cost.get("wall_s")),
        "eval_gpu_s": real(record.cost.get("gpu_s")),
        "eval_cpu_s": real(record.cost.get("cpu_s")),
        "eval_energy_kwh": real(record.cost.get("energy_kwh")),
        "eval_resumed_under_other_code": record.stage in RESUMED and record.resumed_under_other_code,
        "started": text(record.started),
        "ended": text(record.ended),
        "id": record.id,
        "parent": text(config.get("parent")) or next(iter(map(text, record.parents)), None),
    }


def setting(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what tells repetitions of one experiment apart: its seed, and the pretraining it is of."""
    return {key: value for key, value in config.items() if key not in ("seed", "parent")}


def setting_hash(config: dict[str, Any]) -> str:
    return intern(no_number(plain_hash(setting(config)), 8))


def no_number(digest: str, length: int) -> str:
    """The first `length` digits in a row of a hash (hex) that no reader of tables takes for a number, as 12345e67."""
    parts = (digest[start : start + length] for start in range(len(digest) - length))
    return next((part for part in parts if not NUMBER.fullmatch(part)), digest[:length])


NUMBER = re.compile(r"\d+(e\d+)?")


def code_digest(record: Record) -> str | None:
    """A short hash of the source files that the result depends on; None where the record names none.

    Equal where all that differs is listed in `equal_code`.
    """
    code = record.code
    sound = isinstance(code, dict) and code and all(isinstance(digest, str) for digest in code.values())
    return _code_hash(tuple(newest_equals(code).items())) if sound else None


@lru_cache
def _code_hash(files: tuple[tuple[str, str], ...]) -> str:
    """Cached: the records of a sweep hold the same files."""
    return no_number(plain_hash(dict(files)), 12)


def flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """{"a.b": "value"} of nested dicts; values other than strings as JSON."""
    if not isinstance(tree, dict):
        return {prefix: tree if isinstance(tree, str) else json.dumps(tree, separators=(",", ":"))}
    return {
        key: value for name in tree for key, value in flat(tree[name], f"{prefix}.{name}" if prefix else name).items()
    }


def views_text(views: Any) -> str | None:
    """'2x224+6x96' of a recipe's groups of views."""
    groups = views if isinstance(views, list) else []
    sizes = [(whole(at(group, "count")) or 1, whole(at(group, "size"))) for group in groups]
    return "+".join(f"{count}x{size}" for count, size in sizes) or None


def at(tree: Any, *path: str) -> Any:
    """tree["a"]["b"] for the path "a", "b"; None where there is nothing."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def text(value: Any) -> str | None:
    """On one line and without control characters, which a terminal would obey; None for no text.

    Equal texts are one object: 10,000 records hold each name thousands of times.
    """
    if not isinstance(value, str):
        return None
    line = value if value.isprintable() else "".join(c if c.isprintable() else " " for c in value)
    return intern(" ".join(line.split())) or None


def whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def real(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) < 1e300 and math.isfinite(value) else None


def flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _from_cell(record: Record) -> Facts:
    facts = {key: text(record.cell.get(key)) for key in FROM_CELL}
    return {**facts, "seed": whole(record.cell.get("seed"))}


def _deviations(record: Record) -> str | None:
    deviations = record.metrics.get("deviations") or record.config.get("deviations") or []
    return "; ".join(str(item) for item in deviations) or None if isinstance(deviations, list) else text(deviations)


def _short(digest: Any) -> str | None:
    return intern(digest.removeprefix("sha256:")[:12]) if isinstance(digest, str) else None
