"""The stages `convert` (Detectron2's names, verified) and `detect` (fine-tuned and evaluated), with a record each."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer.records import (
    CONVERT,
    Options,
    convert_config,
    detection_run,
    parent_ids,
    pretraining_cell,
    record_folder,
    run_label,
)
from whitebench.hashing import run_id
from whitebench.records import Record, Run

if TYPE_CHECKING:
    from pretrain.checkpoint import Backbone
    from transfer.convert import Converted, Proof


def convert_stage(
    ckpt: Path,
    encoder: str | None = None,
    unsafe_pickle: bool = False,
    cell: dict[str, Any] | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> Record:
    """Converts a checkpoint, proves it in Detectron2's own ResNet and writes `d2.pkl`; at once where that is done.

    Waits where another process converts the same checkpoint, as that of another protocol's detector does.

    Args:
        out: folder for records, instead of $WHITEBENCH_RUNS.
    Raises:
        UserError: see `pretrain.checkpoint.read_backbone` and `transfer.convert`.
    """
    from pretrain.checkpoint import read_backbone
    from transfer import convert

    backbone = read_backbone(ckpt, encoder, unsafe_pickle)
    backbone = replace(backbone, arch=convert.torchvision_arch(backbone.arch))
    content = convert.converted(backbone, ckpt.name)
    say(f"{ckpt}: {backbone.arch}, {backbone.origin}")
    config, label = convert_config(content.parent, encoder), run_label(content.parent)
    with Run(
        CONVERT,
        label,
        config,
        cell={**pretraining_cell(content.metadata), **(cell or {})},
        parents=parent_ids(content.parent),
        folder=record_folder(out, CONVERT, run_id(label, config)),
        waiting=say,
    ) as run:
        if not run.already_done:
            proof, metrics = _prove(backbone, content)
            path = run.folder / convert.D2_FILE
            convert.write_d2(path, content)
            run.metrics.update(proof.metrics, arch=content.arch, changes=content.changes, **metrics)
            run.artifact("detectron2", path)
        _say_proof(run.record, say)
    return run.record


def _prove(backbone: "Backbone", content: "Converted") -> "tuple[Proof, dict[str, Any]]":
    """The proof of the tensors, and what the comparison of maps gave, for the record."""
    from transfer.convert import load_proven
    from transfer.detectron import detectron2_resnet
    from transfer.feature_maps import compare_maps, reference_name
    from transfer.vit_maps import prove_vit
    from transfer.vit_structure import is_vit

    if is_vit(content.arch):
        return prove_vit(backbone, content)
    network = detectron2_resnet(content.arch)
    proof = load_proven(network, content)
    maps = compare_maps(backbone, network, content)
    return proof, {"maps": maps, "maps_reference": reference_name(backbone)}


def _say_proof(record: Record, say: Callable[[str], None]) -> None:
    """Of a conversion, done now or before."""
    metrics = record.metrics
    count = f"{metrics['tensors']} of {metrics['tensors_expected']} tensors"
    if "vitdet" in metrics:
        _say_vit_proof(metrics, count, say)
        return
    say(f"{count} in Detectron2's ResNet, all equal and finite, none left over")
    if "maps" in metrics:  # conversions of earlier versions were proven by their tensors alone
        text = _maps_text(metrics)
        reference = metrics.get("maps_reference", "torchvision's ResNet")
        say(
            f"feature maps of two photos, Detectron2's ResNet less {reference} with these tensors, in parts of their "
            f"largest value: {text}"
        )


def _say_vit_proof(metrics: dict[str, Any], count: str, say: Callable[[str], None]) -> None:
    for change in metrics["changes"]:
        say(change)
    say(f"{count} in timm's transformer as a frozen backbone, all equal and finite, none left over")
    if metrics["vitdet"] == "yes":
        say(
            f"{metrics['vitdet_tensors']} of them in Detectron2's ViT, which has neither class token nor "
            "final norm, as in ViTDet; without the class token the maps of the last block differ by up to "
            f"{metrics['class_token_effect']:.1g} of their largest value"
        )
    else:
        say(f"Detectron2's ViT cannot hold them: {metrics['vitdet']}")
    say(
        f"maps of two photos less those of {metrics['maps_reference']} with the same tokens, in parts of their largest "
        f"value: {_maps_text(metrics)}"
    )


def _maps_text(metrics: dict[str, Any]) -> str:
    return ", ".join(
        f"{stage} {'all zero' if value is None else format(value, '.1g')}" for stage, value in metrics["maps"].items()
    )


def detect_stage(
    converted: Path,
    options: Options,
    cell: dict[str, Any] | None = None,
    encoder: str | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> Record:
    """Fine-tunes and evaluates; continues where it was stopped, and returns at once where it is done.

    Args:
        converted: the folder of a conversion (or its d2.pkl).
    Raises:
        UserError: data or settings that cannot work. Interrupted: asked to stop; the state is saved.
    """
    from transfer.convert import D2_FILE, read_d2
    from transfer.detect import detect, detect_in_processes
    from transfer.protocol import check_fit, check_transformer, load_protocol

    d2_file = converted / D2_FILE if converted.is_dir() else converted
    content = read_d2(d2_file)
    protocol = load_protocol(options.protocol)
    check_fit(protocol, content.arch)
    check_transformer(protocol, content)
    run = detection_run(content, options, cell, encoder, out)
    if options.processes > 1:
        return detect_in_processes(run, d2_file, options, cell, encoder, out)
    with run:
        if not run.already_done:
            detect(run.folder, run, content, options, say)
    return run.record
