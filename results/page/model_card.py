"""The model card of a pretraining: YAML front matter as model hubs read it, then what a user needs to know."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import yaml

from pretrain.architectures import resnet_width, timm_architecture
from results.leaderboards.console import TITLES
from results.leaderboards.leaderboard import Tables
from results.leaderboards.repeat_command import repeat
from results.leaderboards.run_table import HEADLINES, at, flat, views_text
from results.leaderboards.stale import changed_since
from whitebench.records import Record

TASKS = {
    "linear": "image-classification",
    "knn": "image-classification",
    **dict.fromkeys(("semi", "finetune", "fewshot", "voc07", "robust"), "image-classification"),
    "retrieval": "image-feature-extraction",
    "detect": "object-detection",
}
CONV, NO_POOLING = (
    "network.conv1 = torch.nn.Conv2d(3, 64, 3, padding={}, bias=False)\n",
    "network.maxpool = network.fc\n",
)
STEMS = {
    "imagenet": "",
    "cifar": CONV.format(1) + NO_POOLING,
    "cifar-pad2": CONV.format(2) + NO_POOLING,
    "small": CONV.format(1),
}
"""What turns torchvision's ResNet into the one that was trained."""


def model_card(record: Record, evaluations: Sequence[Record], tables: Tables) -> str:
    """Markdown. `tables` say of its experiment over all seeds, and what is doubtful about it."""
    name = f"{record.cell.get('recipe')}, seed {record.config.get('seed')}"
    parts = [
        f"# {name}",
        _what(record),
        "## Load it",
        f"```python\n{loading(record)}```",
        _input(record),
        "## Numbers",
        _numbers(evaluations, tables, record),
        "## How it was made",
        f"```bash\n{repeat(record)}\n```",
        _setting(record),
        "## What to doubt",
        _doubts(record, tables),
    ]
    return f"---\n{_front(record, evaluations)}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


TIMM_CODE = """\
import json, timm
from safetensors import safe_open
from safetensors.torch import load_file

with safe_open("backbone.safetensors", "pt") as file:
    stated = json.loads(file.metadata()["whitebench"])
name = stated["architecture"].removeprefix("timm:")
network = timm.create_model(name, num_classes=0, **stated["options"])
network.load_state_dict(load_file("backbone.safetensors"))
network.eval()
"""
"""Python that loads a backbone of timm, as its file states it."""


NARROW_CODE = """from pretrain.networks import build_backbone  # Whitebench: torchvision has no ResNet of this width
from safetensors.torch import load_file

network = build_backbone("{arch}", "{stem}")
network.load_state_dict(load_file("backbone.safetensors"))
network.eval()
"""
FULL_WIDTH = 64


def library(record: Record) -> str:
    """The package that builds the backbone."""
    return "timm" if timm_architecture(str(at(record.config, "network", "backbone"))) else "torchvision"


def loading(record: Record) -> str:
    """Python that loads the weights with torch, torchvision or timm, and safetensors alone."""
    arch, stem = at(record.config, "network", "backbone"), str(at(record.config, "network", "stem"))
    if library(record) == "timm":
        return TIMM_CODE
    if resnet_width(str(arch)) != FULL_WIDTH:
        return NARROW_CODE.format(arch=arch, stem=stem)
    return (
        "import torch, torchvision\n"
        "from safetensors.torch import load_file\n\n"
        f"network = torchvision.models.{arch}()\n"
        "network.fc = torch.nn.Identity()\n"
        f"{STEMS.get(stem, '')}"
        'network.load_state_dict(load_file("backbone.safetensors"))\n'
        "network.eval()\n"
    )


def _front(record: Record, evaluations: Sequence[Record]) -> str:
    method, arch = at(record.config, "method", "name"), at(record.config, "network", "backbone")
    results = [
        {
            "task": {"type": TASKS[evaluation.stage]},
            "dataset": {"name": _dataset(evaluation), "type": _dataset(evaluation)},
            "metrics": [
                {"type": metric, "name": f"{evaluation.stage}, {_protocol(evaluation)}", "value": value}
                for metric in HEADLINES[evaluation.stage]
                if (value := _rounded(evaluation.metrics.get(metric))) is not None
            ],
        }
        for evaluation in evaluations
    ]
    front = {
        "library_name": library(record),
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised", "whitebench", str(method), str(arch)],
        "datasets": [str(at(record.config, "data", "dataset"))],
        "model-index": [{"name": record.id, "results": results}],
    }
    text: str = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return text


def _what(record: Record) -> str:
    config = record.config
    stem = f" (stem: {at(config, 'network', 'stem')})" if library(record) == "torchvision" else ""
    return (
        f"A {at(config, 'network', 'backbone')}{stem} pretrained by "
        f"`{at(config, 'method', 'name')}` on {at(config, 'data', 'dataset')}: "
        f"{at(config, 'schedule', 'epochs')} epochs, batch {config.get('batch')}, "
        f"views {views_text(at(config, 'data', 'views'))}. "
        f"Backbone alone, without projector or classifier; {library(record)}'s names. Made by Whitebench."
    )


def _input(record: Record) -> str:
    return (
        "Mean, standard deviation and sizes of its input are in the file's metadata, as JSON under the key "
        "`whitebench` (`mean`, `std`, `image_size`, `eval_resize`)."
    )


def _numbers(evaluations: Sequence[Record], tables: Tables, record: Record) -> str:
    """One row per evaluation of this very checkpoint, and a sentence on its experiment over seeds."""
    if not evaluations:
        return "None: this checkpoint has not been evaluated."
    lines = ["| evaluation | dataset | protocol | seed | result, % |", "|---|---|---|---|---|"]
    for evaluation in evaluations:
        values = [
            f"{TITLES[metric]} {evaluation.metrics[metric]:.2f}"
            for metric in HEADLINES[evaluation.stage]
            if _rounded(evaluation.metrics.get(metric)) is not None
        ]
        setting = [evaluation.stage, _dataset(evaluation), _protocol(evaluation), str(evaluation.config.get("seed"))]
        lines.append(f"| {' | '.join([*setting, ', '.join(values)])} |")
    results = [
        f"- {board.stage} on {board.dataset}, {TITLES[metric]}: {row[f'{metric}_mean']:.2f}{_spread(row, metric)}"
        for board, row in _experiment(tables, record)
        for metric in board.headlines
        if not pd.isna(row[f"{metric}_mean"])
    ]
    over = "One checkpoint is one draw. Over all pretrainings of this experiment that were at hand:"
    return "\n".join(lines) + f"\n\n{over}\n\n" + "\n".join(results)


def _spread(row: dict[str, Any], metric: str) -> str:
    n = row["n_pretrain"]
    return (
        " (n = 1: no spread)"
        if n < 2
        else f" ± {row[f'{metric}_sd']:.2f} (n = {n}, 95 % CI ± {row[f'{metric}_ci95']:.2f})"
    )


def _experiment(tables: Tables, record: Record) -> list[tuple[Any, dict[str, Any]]]:
    configs = set(tables.runs.config[tables.runs.parent == record.id])
    return [(board, row) for board in tables.leaderboards for row in board.rows if row["config"] in configs]


def _setting(record: Record) -> str:
    environment = record.environment
    lines = [f"{key}: {value}" for key, value in flat(record.config).items()]
    state = "with uncommitted changes" if environment.get("dirty") else "clean"
    wall = record.cost.get("wall_s")
    cost = f", {wall / 3600:.2f} hours" if isinstance(wall, int | float) else ""
    return (
        f"Commit `{environment.get('git')}` ({state}), torch {environment.get('torch')}, "
        f"Python {environment.get('python')}, on {environment.get('device')}{cost}.\n\n"
        f"<details><summary>All settings</summary>\n\n```\n" + "\n".join(lines) + "\n```\n\n</details>"
    )


def _doubts(record: Record, tables: Tables) -> str:
    flags: dict[str, None] = {}
    for _, row in _experiment(tables, record):
        flags |= dict.fromkeys(flag for flag in row["flags"].split("; ") if flag)
        flags |= {changed_since(row["stale"]): None} if row["stale"] else {}
    return "\n".join(f"- {flag}" for flag in flags) or "Nothing is flagged."


def _protocol(evaluation: Record) -> str:
    return str(at(evaluation.config, "protocol", "name"))


def _dataset(evaluation: Record) -> str:
    return str(evaluation.config.get("dataset") or evaluation.cell.get("dataset"))


def _rounded(value: Any) -> float | None:
    return round(float(value), 4) if isinstance(value, int | float) and not isinstance(value, bool) else None
