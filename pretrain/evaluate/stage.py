"""Evaluation of a backbone; each kind is a stage with a record of its own.

Linear probe and k-NN evaluate it frozen; semi-supervised evaluation and fine-tuning train it further. All run on one
process or on several, with the same result.

`plan` gives the id of an evaluation before its pretraining has run; `run` does it. Both take a `Target`, which comes
from a recipe (in a sweep) or from a checkpoint's metadata (on its own): both ways lead to the same record.
"""

from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.evaluate.protocol_kinds import (
    KNN,
    SVM,
    FewShot,
    Finetune,
    Linear,
    LinearGrid,
    Protocol,
    Retrieval,
    Robust,
    Semi,
)
from pretrain.evaluate.protocols import find_protocol
from pretrain.evaluate.target import Options, Target
from whitebench.errors import UserError
from whitebench.hashing import ADDED, run_id
from whitebench.records import Record, Run, stage_folder

if TYPE_CHECKING:
    from pretrain.distributed import World
    from pretrain.evaluate.encoder import Trained


def config(stage: str, target: Target, options: Options) -> dict[str, Any]:
    """The resolved config of an evaluation stage.

    Raises:
        UserError: the dataset lacks what the protocol needs; a sweep learns of it before the pretraining.
    """
    from pretrain.evaluate.evaluation_data import evaluation_data
    from pretrain.evaluate.subset import identity

    protocol = find_protocol(stage, options.protocol)
    if options.features == "transformed" and isinstance(protocol, Linear) and protocol.augment:
        raise UserError(
            f"features=transformed depend on the batch, and {protocol.name} trains on batches of its own: use a "
            "protocol of features that are computed once (linear features, or knn)"
        )
    if options.features != "backbone" and isinstance(protocol, LinearGrid):
        raise UserError(f"features={options.features}: {protocol.name} compares the backbone's own blocks")
    data = evaluation_data(stage, protocol, target, options)
    return {
        "parent": target.parent,
        "protocol": protocol,
        "dataset": data.name,
        "data_hash": data.content_hash,
        "crop": target.crop,
        "resize": target.resize,
        "seed": options.seed,
        "device": options.device,
        "threads": options.threads,
        **_joined_later(options),
        **({"epoch": target.epoch} if target.epoch is not None else {}),
        **({"encoder": target.encoder} if target.encoder is not None else {}),
        **({"subset": identity(options.list)} if _has_subset(protocol) else {}),
        **(_probe(target, options) if isinstance(protocol, Robust) else {}),
    }


def _probe(target: Target, options: Options) -> dict[str, Any]:
    """What `robust` evaluates: the dataset and the run of its probe."""
    return {"trained_on": target.dataset, "probe_run": probe_id(target, options)}


def probe_id(target: Target, options: Options) -> str:
    """The id of the linear evaluation whose probe `robust` takes."""
    return plan("linear", target, probe_options(options))


def probe_options(options: Options) -> Options:
    """Those of the linear evaluation whose probe `robust` takes."""
    return replace(options, protocol=options.probe or "features", probe=None, shift=None)


def _has_subset(protocol: Protocol) -> bool:
    """Whether only a part of the labels is used."""
    return isinstance(protocol, Semi) or (isinstance(protocol, Finetune) and protocol.percent < 100)


def _joined_later(options: Options) -> dict[str, Any]:
    """Options that are not at their defaults, of those that ids leave out there."""
    later = (f for f in fields(options) if ADDED in f.metadata)
    return {f.name: getattr(options, f.name) for f in later if getattr(options, f.name) != f.default}


def plan(stage: str, target: Target, options: Options) -> str:
    """The id that `run` will give this evaluation."""
    return run_id(target.label, config(stage, target, options))


def run(
    stage: str,
    ckpt: Path,
    target: Target,
    options: Options,
    cell: dict[str, Any] | None = None,
    world: "World | None" = None,
) -> Record | None:
    """Evaluates the backbone at `ckpt`; at once where it is done already.

    Args:
        world: the processes that evaluate together, where they have met; None: they meet here.
    Returns:
        The record, on rank 0.
    """
    from pretrain.evaluate.ranks import started_world

    if world is None:
        with started_world(options.world_size, options.device) as joined:
            return run(stage, ckpt, target, options, cell, joined)
    _check_loader(stage, options)
    resolved = config(stage, target, options)
    trained = _trained(ckpt, target, options)
    if stage == "robust":
        run("linear", ckpt, target, probe_options(options), cell, world)
    with _open_run(stage, target, options, resolved, cell or {}) if world.is_main else nullcontext() as record:
        if not world.broadcast(record.already_done if record else False):
            metrics = _evaluate(ckpt, trained, resolved["protocol"], target, options, record)
            if record:
                record.metrics.update({**_deviations(resolved["protocol"], resolved), **metrics})
    return record.record if record else None


def _open_run(stage: str, target: Target, options: Options, resolved: dict[str, Any], cell: dict[str, Any]) -> Run:
    from pretrain.evaluate.evaluation_data import evaluation_data

    foreign = target.parent.startswith("sha256:")
    data = evaluation_data(stage, resolved["protocol"], target, options)
    epoch = {} if target.epoch is None else {"kept_epoch": target.epoch}
    return Run(
        stage,
        target.label,
        resolved,
        cell={**target.cell, "dataset": data.name, "protocol": resolved["protocol"].name, **epoch, **cell},
        parents=[] if foreign else [target.parent],
        hashes={"data": resolved["data_hash"]},
        data={"manifest": data.summary},
        gpus=options.world_size if options.device == "cuda" else 0,
    )


def _check_loader(stage: str, options: Options) -> None:
    from pretrain.data.betons.libjpeg import has_ffcv

    if options.loader == "ffcv" and not has_ffcv():
        raise UserError(f"FFCV is not installed: use --loader folder (in a sweep, stages.{stage}.loader=folder)")


def _trained(ckpt: Path, target: Target, options: Options) -> "Trained | None":
    """The method whose outputs are evaluated; read before the record is opened: foreign checkpoints have none."""
    if options.features == "backbone":
        return None
    from pretrain.evaluate.encoder import load_trained

    return load_trained(ckpt, target.parent, options.features)


def _deviations(protocol: Protocol, resolved: dict[str, Any]) -> dict[str, list[str]]:
    """What differs from the protocol's source."""
    from pretrain.evaluate.subset import deviation

    features = resolved.get("features")
    subset = resolved.get("subset")
    candidates = [
        f"features: {features}, published backbone" if features else None,
        deviation(protocol, subset) if isinstance(protocol, Semi | Finetune) and subset else None,
        *(f"not applied: {part}" for part in getattr(protocol, "omitted", ())),
    ]
    deviations = [text for text in candidates if text]
    return {"deviations": deviations} if deviations else {}


def _evaluate(
    ckpt: Path, trained: "Trained | None", protocol: Protocol, target: Target, options: Options, run: Run | None
) -> dict[str, Any]:
    """The metrics; complete on rank 0, where `run` is the open record."""
    import torch

    from pretrain.checkpoint import read_backbone
    from pretrain.evaluate import fewshot, finetune, grid, knn, linear, retrieval, robust, semi, voc07
    from pretrain.evaluate.features import FrozenEncoder

    torch.set_num_threads(options.threads)
    backbone = read_backbone(ckpt, target.encoder, target.unsafe_pickle)
    if isinstance(protocol, Semi):
        return semi.evaluate(backbone, protocol, target, options, run)
    if isinstance(protocol, Finetune):
        return finetune.evaluate(backbone, protocol, target, options, run)
    frozen = FrozenEncoder(backbone, target, options, trained)
    if isinstance(protocol, KNN):
        return {**knn.evaluate(frozen, protocol)}
    if isinstance(protocol, LinearGrid):
        return grid.evaluate(frozen, protocol, run)
    if isinstance(protocol, FewShot):
        return fewshot.evaluate(frozen, fewshot.chosen(protocol, options.shots))
    if isinstance(protocol, SVM):
        return voc07.evaluate(frozen, protocol)
    if isinstance(protocol, Retrieval):
        return {**retrieval.evaluate(frozen, protocol)}
    if isinstance(protocol, Robust):
        shifted = robust.read_set(options.shift or "", frozen.manifest.classes)
        probe = linear.load_probe(stage_folder("linear", probe_id(target, options)))
        return robust.evaluate(frozen, shifted, *probe)
    return linear.evaluate(frozen, protocol, run)
