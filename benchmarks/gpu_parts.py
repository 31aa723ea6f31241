"""The parts of `gpu.py` that are functions; each runs in a process of its own."""

import argparse
import os
from typing import Any

from whitebench.errors import UserError


def limit_memory(options: argparse.Namespace) -> None:
    if options.memory_gb is None or options.device != "cuda":
        return
    import torch

    total = torch.cuda.get_device_properties(0).total_memory / 1e9
    torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory_gb / total))


def part_check(options: argparse.Namespace, arguments: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.gpu_checks import CHECKS

    return CHECKS[arguments["name"]](options.device, options.tiny)


def part_datasets(options: argparse.Namespace, arguments: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.gpu_speed import dataset

    small, large, side = (64, 32, 64) if options.tiny else (10_000, 1_000, 400)
    dataset("gpu-32", None, small, 32)
    dataset("gpu-cifar10", options.cifar10, small, 32)
    dataset("gpu-224", options.images, large, side)
    dataset("gpu-224-raw", options.images, large, side, raw=True)
    sources = {"cifar10": options.cifar10, "images": options.images}
    return {"passed": True, **{name: str(path or "random") for name, path in sources.items()}}


def part_step(options: argparse.Namespace, arguments: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.gpu_speed import fitting_batch, measure
    from pretrain.data.betons.libjpeg import has_ffcv
    from pretrain.recipe import load

    if arguments["loader"] == "ffcv" and not has_ffcv():
        return {"passed": True, "skipped": "ffcv is not installed"}
    words = [f"data.dataset={arguments['dataset']}", f"data.loader={arguments['loader']}", f"device={options.device}"]
    words += ["world_size=1", f"machine.workers={min(16, os.cpu_count() or 1)}"]
    words += ["precision=bf16"] if options.device == "cuda" else ["precision=fp32"]
    batch = 16 if options.tiny else arguments["batch"]
    if options.tiny:
        words += ["data.views.0.size=32", "network.backbone=resnet18"]
    if options.device == "cuda":
        import torch

        memory = options.memory_gb or torch.cuda.get_device_properties(0).total_memory / 1e9
        batch = fitting_batch(load(arguments["recipe"], words), batch, 0.9 * memory)
    words.append(f"batch={batch}")
    steps = 2 if options.tiny else 30
    return measure(arguments["recipe"], words, arguments["source"], arguments["form"], steps, options.tiny)


def part_waits(options: argparse.Namespace, arguments: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.gpu_speed import synchronisations

    words = [f"data.dataset={arguments['dataset']}", "data.loader=device", f"device={options.device}", "batch=256"]
    words += ["precision=bf16"] if options.device == "cuda" else ["precision=fp32"]
    if options.tiny:
        words += ["batch=64" if "cwrgp" in arguments["recipe"] else "batch=16", "network.stem=imagenet"]
    return synchronisations(arguments["recipe"], words, steps=1 if options.tiny else 10)


def part_evaluate(options: argparse.Namespace, arguments: dict[str, Any]) -> dict[str, Any]:
    from pretrain.evaluate.stage import run
    from pretrain.evaluate.target import Options, Target
    from pretrain.recipe import load
    from pretrain.run_identity import pretrain_id, resolved
    from whitebench.config import validated
    from whitebench.files import BACKBONE
    from whitebench.records import stage_folder

    recipe, stage = resolved(load(arguments["words"][0], arguments["words"][1:])), arguments["stage"]
    id = pretrain_id(recipe)
    backbone = stage_folder("pretrain", id) / BACKBONE
    if not backbone.is_file():
        raise UserError(f"{id}: not trained to its end")
    raw = {"protocol": getattr(recipe.evaluation, stage), "loader": "folder", "device": options.device}
    record = run(stage, backbone, Target.of_recipe(recipe, id), validated(Options, raw, where=stage), {})
    assert record is not None, "this process is the main one"
    return {"passed": True, "id": record.id, **{key: record.metrics.get(key) for key in ("top1", "top5")}}


PARTS = {
    "check": part_check,
    "datasets": part_datasets,
    "step": part_step,
    "waits": part_waits,
    "evaluate": part_evaluate,
}
