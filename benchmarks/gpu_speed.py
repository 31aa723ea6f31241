"""Step 3 of `gpu.py`: the training step of a recipe on the device, in one setting; run in a process of its own.

What is measured: images/s, the share of the card's peak, waiting for data, memory, and how often the host waits for the
device. A setting is an input (synthetic, or a loader's) and a form (eager, compiled, CUDA graphs).
"""

import warnings
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.data.betons.manifest import read_manifest
from pretrain.distributed import World
from pretrain.recipe import Recipe, load
from pretrain.repeatable import make_repeatable
from pretrain.run_identity import resolved
from pretrain.speed import training_speed
from pretrain.train import Trainer
from slurm.cost.constants import Card, constants
from slurm.cost.estimate import estimate
from slurm.cost.hardware import Hardware
from slurm.cost.work import work_of
from whitebench.errors import UserError

FORMS = ("eager", "compiled", "graphs")
SYNTHETIC = "synthetic"


def write_random_images(archive: Path, count: int, side: int) -> None:
    """A tar of two classes, train and val: smooth patterns, which JPEG stores about as it does photos."""
    import io
    import tarfile

    from PIL import Image

    generator = np.random.default_rng(0)
    kind = "png" if side <= 64 else "jpeg"
    with tarfile.open(archive, "w") as tar:
        for split, images in (("train", count), ("val", max(4, count // 8))):
            for number in range(images):
                coarse = generator.integers(0, 256, (max(2, side // 8), max(2, side // 8), 3), dtype=np.uint8)
                content = io.BytesIO()
                Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(content, kind, quality=90)
                member = tarfile.TarInfo(f"{split}/class{number % 2}/{number:05}.{kind}")
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)


def dataset(name: str, source: Path | None, count: int, side: int, raw: bool = False) -> None:
    """Writes the dataset `name` from images, or from random ones where `source` is None; once."""
    import os
    import tempfile

    from pretrain.data.betons.images import WriteSettings
    from pretrain.data.betons.write import write_dataset

    root = Path(os.environ["WHITEBENCH_DATA"])
    if (root / name / "manifest.json").exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            source = Path(folder) / "random.tar"  # of an archive, loader=folder reads the beton, not files
            write_random_images(source, count, side)
        write_dataset(source, root / name, workers=4, skip_bad=True, settings=WriteSettings(raw=raw))


def measure(recipe_name: str, overrides: list[str], source: str, form: str, steps: int, tiny: bool) -> dict[str, Any]:
    """Images per second and what held them back, in this process.

    Args:
        source: "synthetic", or a placement of colour ("loader", "accelerator") for the recipe's own loader.
    """
    recipe = load(recipe_name, overrides)
    if source != SYNTHETIC:
        recipe = replace(recipe, data=replace(recipe.data, placement=source))  # type: ignore[arg-type]
    if form != "eager":
        _compile_backbones(form)
    speed = training_speed(recipe, steps, warm_up=2 if tiny else 8, synthetic=source == SYNTHETIC)
    alone = replace(recipe, world_size=1, batch=recipe.batch // recipe.world_size)
    result: dict[str, Any] = {**asdict(speed), "batch": alone.batch, "form": form, "source": source, "passed": True}
    work = work_of(alone, alone.batch)
    result["tflops"] = work.flops * speed.images_per_s / 1e12
    card = device_card()
    if card is not None:
        result["share_of_peak"] = result["tflops"] / card.half_tflops
        planned = estimate(replace(alone, data=replace(alone.data, loader="device")), Hardware(card), 1_000_000)
        result["planned_images_per_s"] = planned.images_per_s.as_list()
        result["planned_memory_gb"] = planned.memory_gb.as_list()
    return result


def device_card() -> Card | None:
    """The card of this machine, where the throughput model knows it."""
    if not torch.cuda.is_available():
        return None
    try:
        return constants().card(torch.cuda.get_device_name())
    except UserError:
        return None


def _compile_backbones(form: str) -> None:
    """From now on trainers compile their backbone, with CUDA graphs where `form` is graphs."""
    build = Trainer._build

    def compiled(self: Trainer) -> Any:
        method = build(self)
        mode = "reduce-overhead" if form == "graphs" else None
        method.encoder.backbone.compile(mode=mode)
        return method

    Trainer._build = compiled  # type: ignore[method-assign]


def synchronisations(recipe_name: str, overrides: list[str], steps: int) -> dict[str, Any]:
    """How often, and where, the host waits for the device in a training step after the first few; none on a CPU."""
    recipe = resolved(replace(load(recipe_name, overrides), world_size=1))
    make_repeatable(recipe.threads)
    places: dict[str, int] = {}
    with World.join(1, recipe.device) as world:
        trainer = Trainer(recipe, read_manifest(recipe.data.dataset), world)
        trainer.method.prepare_epoch(0, trainer.embed)
        trainer.method.train()
        batches: Any = trainer.loader.epoch(0)
        with closing(batches):
            for number, raw in enumerate(batches):
                if number == steps + 2:
                    break
                if number < 2 or recipe.device != "cuda":
                    trainer.step(raw, number)
                    continue
                _count_waits(lambda raw=raw, number=number: trainer.step(raw, number), places)
    return {"passed": True, "per_step": sum(places.values()) / steps, "places": places, "device": recipe.device}


def _count_waits(step: Any, waits: dict[str, int]) -> None:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            source_line = f"{Path(warning.filename).name}:{warning.lineno}"
            waits[source_line] = waits.get(source_line, 0) + 1


def fitting_batch(recipe: Recipe, batch: int, memory_gb: float) -> int:
    """The largest of batch, batch / 2, ... that the throughput model sees fit into the memory."""
    from slurm.cost.step import memory_gb as needed_gb

    while batch > 8 and needed_gb(recipe, work_of(recipe, batch), batch).value > memory_gb:
        batch //= 2
    return batch
