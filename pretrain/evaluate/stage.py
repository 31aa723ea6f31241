"""Evaluation of a backbone; each kind is a stage with a record of its own.

Linear probe and k-NN evaluate it frozen, semi-supervised evaluation fine-tunes it on a part of the labels.

`plan` gives the id of an evaluation before its pretraining has run; `run` does it. Both take a `Target`, which comes
from a recipe (in a sweep) or from a checkpoint's metadata (on its own): both ways lead to the same record.
"""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.evaluate.protocols import KNN, Linear, Protocol, Semi, find_protocol
from pretrain.evaluate.target import Options, Target
from whitebench.errors import UserError
from whitebench.hashing import ADDED, run_id
from whitebench.records import Record, Run

if TYPE_CHECKING:
    from pretrain.data.betons.manifest import Manifest
    from pretrain.evaluate.encoder import Trained


def config(stage: str, target: Target, options: Options) -> dict[str, Any]:
    """The resolved config of an evaluation stage.

    Raises:
        UserError: the dataset lacks what the protocol needs; a sweep learns of it before the pretraining.
    """
    from pretrain.data.betons.manifest import read_manifest
    from pretrain.evaluate.subset import identity

    protocol = find_protocol(stage, options.protocol)
    if options.features == "transformed" and isinstance(protocol, Linear) and protocol.augment:
        raise UserError(
            f"features=transformed depend on the batch, and {protocol.name} trains on batches of its own: use a "
            "protocol of features that are computed once (linear features, or knn)"
        )
    manifest = read_manifest(target.dataset)
    _check_dataset(manifest, protocol)
    return {
        "parent": target.parent,
        "protocol": protocol,
        "dataset": target.dataset,
        "data_hash": manifest.content_hash,
        "crop": target.crop,
        "resize": target.resize,
        "seed": options.seed,
        "device": options.device,
        "threads": options.threads,
        **_joined_later(options),
        **({"subset": identity(options.list)} if isinstance(protocol, Semi) else {}),
    }


def _check_dataset(manifest: "Manifest", protocol: Protocol) -> None:
    for split in ("train", "val"):
        manifest.split(split)
    if not manifest.classes:
        raise UserError(f"dataset '{manifest.dataset}' has no labels; evaluate on another: --dataset NAME")
    train = manifest.split("train")
    count = train.count - train.unlabelled
    if isinstance(protocol, Linear) and protocol.augment and protocol.batch > count:
        raise UserError(
            f"protocol '{protocol.name}' trains on batches of {protocol.batch} images, but dataset "
            f"'{manifest.dataset}' has {count}; use a protocol for small sets, e.g. features"
        )


def _joined_later(options: Options) -> dict[str, Any]:
    """Options that are not at their defaults, of those that ids leave out there."""
    later = (f for f in fields(options) if ADDED in f.metadata)
    return {f.name: getattr(options, f.name) for f in later if getattr(options, f.name) != f.default}


def plan(stage: str, target: Target, options: Options) -> str:
    """The id that `run` will give this evaluation."""
    return run_id(target.label, config(stage, target, options))


def run(stage: str, ckpt: Path, target: Target, options: Options, cell: dict[str, Any] | None = None) -> Record:
    """Evaluates the backbone at `ckpt`; returns the record, at once where it is done already."""
    from pretrain.data.betons.manifest import read_manifest

    _check_loader(stage, options)
    resolved = config(stage, target, options)
    protocol = resolved["protocol"]
    cell = {**target.cell, "protocol": protocol.name, **(cell or {})}
    foreign = target.parent.startswith("sha256:")
    trained = _trained(ckpt, target, options)
    with Run(
        stage,
        target.label,
        resolved,
        cell=cell,
        parents=[] if foreign else [target.parent],
        hashes={"data": resolved["data_hash"]},
        data={"manifest": read_manifest(target.dataset).summary},
        gpus=int(options.device == "cuda"),
    ) as record:
        if not record.already_done:
            record.metrics.update(_deviations(protocol, resolved))
            _evaluate(ckpt, trained, protocol, target, options, record)
    return record.record


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
    candidates = [
        f"features: {features}, published backbone" if features else None,
        deviation(protocol, resolved["subset"]) if isinstance(protocol, Semi) else None,
    ]
    deviations = [text for text in candidates if text]
    return {"deviations": deviations} if deviations else {}


def _evaluate(
    ckpt: Path, trained: "Trained | None", protocol: Protocol, target: Target, options: Options, run: Run
) -> None:
    import torch

    from pretrain.checkpoint import read_backbone
    from pretrain.evaluate import knn, linear, semi
    from pretrain.evaluate.features import FrozenEncoder

    torch.set_num_threads(options.threads)
    backbone = read_backbone(ckpt)
    if isinstance(protocol, Semi):
        run.metrics.update(semi.evaluate(backbone, protocol, target, options, run))
        return
    frozen = FrozenEncoder(backbone, target, options, trained)
    if isinstance(protocol, KNN):
        run.metrics.update(knn.evaluate(frozen, protocol))
    else:
        run.metrics.update(linear.evaluate(frozen, protocol, run))
