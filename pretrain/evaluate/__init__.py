"""Evaluation of a frozen backbone: linear probe and k-NN, each a stage with a record of its own.

`plan` gives the id of an evaluation before its pretraining has run; `run` does it. Both take a `Target`, which comes
from a recipe (in a sweep) or from a checkpoint's metadata (standing alone): both ways lead to the same record.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pretrain.evaluate.protocols import KNN, Linear, find_protocol
from results.command import UserError
from results.content import run_id
from results.record import Record, Run

if TYPE_CHECKING:
    from pretrain.checkpoint import Backbone
    from pretrain.recipe import Recipe

STAGES = ("linear", "knn")


@dataclass(frozen=True)
class Target:
    """What is evaluated, on what."""

    parent: str
    """Id of the pretraining's record, or "sha256:..." of a foreign checkpoint."""
    label: str
    """For run ids, e.g. "intl-s0"."""
    dataset: str
    crop: int
    resize: int
    cell: dict[str, Any]

    @classmethod
    def of_recipe(cls, recipe: "Recipe", parent: str) -> "Target":
        cell = {
            "recipe": recipe.name,
            "method": recipe.method_name,
            "seed": recipe.seed,
            "dataset": recipe.data.dataset,
        }
        return cls(parent, recipe.label, recipe.data.dataset, recipe.evaluation_crop, recipe.evaluation_resize, cell)

    @classmethod
    def of_backbone(cls, backbone: "Backbone", dataset: str | None, crop: int | None, resize: int | None) -> "Target":
        """From the metadata that our own checkpoints carry; arguments go before it and are needed for foreign ones."""
        known = backbone.metadata
        dataset, crop = dataset or known.get("dataset"), crop or known.get("image_size")
        resize = resize or known.get("eval_resize")
        if dataset is None or crop is None or resize is None:
            raise UserError("the checkpoint does not say what it was trained on: give --dataset, --crop and --resize")
        parent = known.get("id") or f"sha256:{backbone.sha256}"
        recipe = known.get("recipe", "foreign")
        cell = {
            "recipe": recipe,
            "method": known.get("method", "foreign"),
            "seed": known.get("seed", 0),
            "dataset": dataset,
        }
        label = f"{recipe.rpartition('/')[2]}-s{cell['seed']}"
        return cls(parent, label, dataset, crop, resize, cell)


@dataclass(frozen=True)
class Options:
    """How an evaluation is done; all of it but `workers`, `loader` determines its result."""

    protocol: str
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    workers: int = 1
    loader: Literal["ffcv", "folder"] = "ffcv"


def config(stage: str, target: Target, options: Options) -> dict[str, Any]:
    """The resolved config of an evaluation stage."""
    from pretrain.data.manifest import read_manifest

    return {
        "parent": target.parent,
        "protocol": find_protocol(stage, options.protocol),
        "dataset": target.dataset,
        "data_hash": read_manifest(target.dataset).content_hash,
        "crop": target.crop,
        "resize": target.resize,
        "seed": options.seed,
        "device": options.device,
        "threads": options.threads,
    }


def plan(stage: str, target: Target, options: Options) -> str:
    """The id that `run` will give this evaluation."""
    return run_id(target.label, config(stage, target, options))


def run(stage: str, ckpt: Path, target: Target, options: Options, cell: dict[str, Any] | None = None) -> Record:
    """Evaluates the backbone at `ckpt`; returns the record, at once where it is done already."""
    from pretrain.checkpoint import read_backbone

    resolved = config(stage, target, options)
    protocol = resolved["protocol"]
    cell = {**target.cell, "protocol": protocol.name, **(cell or {})}
    foreign = target.parent.startswith("sha256:")
    with Run(
        stage,
        target.label,
        resolved,
        cell=cell,
        parents=[] if foreign else [target.parent],
        hashes={"data": resolved["data_hash"]},
        gpus=int(options.device == "cuda"),
    ) as record:
        if not record.already_done:
            _evaluate(read_backbone(ckpt), protocol, target, options, record)
    return record.record


def _evaluate(backbone: "Backbone", protocol: KNN | Linear, target: Target, options: Options, run: Run) -> None:
    import torch

    from pretrain.evaluate import knn, linear
    from pretrain.evaluate.features import FrozenBackbone

    torch.set_num_threads(options.threads)
    frozen = FrozenBackbone(backbone, target, options)
    if isinstance(protocol, KNN):
        run.metrics.update(knn.evaluate(frozen, protocol))
    else:
        run.metrics.update(linear.evaluate(frozen, protocol, run))
