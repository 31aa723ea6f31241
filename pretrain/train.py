"""The one training loop: from a recipe to a backbone.

Bit-exact resumption depends on three rules. Views are functions of (seed, epoch, image, view). Whatever else a step
draws comes from generators that are reseeded from (seed, step, rank). All else is in the checkpoint.
"""

import inspect
import json
import math
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import divergence, resume
from pretrain.architectures import timm_architecture
from pretrain.checkpoint import METADATA, complete_backbone, write_backbone
from pretrain.data.batch import Batch
from pretrain.data.betons.manifest import Manifest, read_manifest
from pretrain.data.loaders.build import make_loader
from pretrain.data.loaders.preflight import run_preflight
from pretrain.data.normalise import Normalise
from pretrain.diagnostics.spectrum_probe import SpectrumProbe, append_spectra, summary
from pretrain.distributed import World, convert_sync_bn
from pretrain.evaluate.kept import kept_epochs, kept_name
from pretrain.evaluate.online import embed_training_set, online_knn, read_val
from pretrain.losses.deferred import report_failed_checks
from pretrain.method import Method, find_method
from pretrain.networks import build_encoder
from pretrain.processes import check_processes, record_processes, unfinished_with_other_world_size
from pretrain.progress import EpochMeter, StopRequest
from pretrain.recipe import Recipe
from pretrain.repeatable import derive_seed, make_repeatable
from pretrain.run_identity import pretrain_config, resolved
from pretrain.training_step import TrainingStep
from whitebench.errors import UserError
from whitebench.files import BACKBONE
from whitebench.hashing import file_hash, run_id
from whitebench.records import Record, Run, stage_folder

COLLAPSED = 0.1
"""A run is called collapsed if `similarity.spread` (1: uniform on the sphere, 0: all embeddings equal) is below this,
or if the embedding's effective rank is below 2: all images are close to a line."""


def train(recipe: Recipe, cell: dict[str, Any] | None = None) -> Record | None:
    """Runs the recipe in its folder, from where it stopped before; returns at once if it is already done.

    Args:
        cell: joins what the record says of the cell, e.g. {"sweep": "sample", "overrides": {"schedule.epochs": 2}}.
    Returns:
        The record, on rank 0; the weights are in its folder as `backbone.safetensors`.
    Raises:
        UserError: settings or data that cannot work, or a loss that is not finite.
        Interrupted: a signal asked to stop, and the state is saved.
    """
    recipe, manifest = resolved(recipe), read_manifest(recipe.data.dataset)
    make_repeatable(recipe.threads)
    check_processes(recipe, find_method(recipe.method_name))
    with World.join(recipe.processes, recipe.device) as world:
        trainer = Trainer(recipe, manifest, world)
        with _open_run(recipe, manifest, cell or {}) if world.is_main else nullcontext() as run:
            if not world.broadcast(run.already_done if run else False):
                trainer.fit(run)
        return run.record if run else None


class Trainer:
    """A method, its optimizer and its data, and the loop over them."""

    def __init__(self, recipe: Recipe, manifest: Manifest, world: World) -> None:
        self.recipe, self.world = recipe, world
        self.device = world.device
        self.local_batch = recipe.batch // world.world_size
        self.loader = make_loader(recipe, manifest, world.rank, world.world_size, str(world.device))
        self.steps_per_epoch = self.loader.batches_per_epoch
        self.manifest = manifest

        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        self.method = self._build()
        if recipe.compile:  # not the loss: under the compiler its random draws would be others
            self.method.encoder.backbone.compile()
        self.training_step = TrainingStep(self.method, recipe, self.device, self.steps_per_epoch)
        self.normalise = Normalise(manifest.mean, manifest.std).to(self.device)
        self._check()
        self.meter = EpochMeter()
        self.probe: SpectrumProbe | None = None

    def _build(self) -> Method[Any]:
        recipe = self.recipe
        method = find_method(recipe.method_name)(build_encoder(recipe.network, recipe.view_sizes), recipe.method)
        method.check(self.local_batch, len(recipe.view_sizes))
        train = self.manifest.split("train")
        if train.unlabelled and hasattr(recipe.method, "classes"):
            raise UserError(f"{recipe.method_name} trains on labels; {train.unlabelled:,} training images have none")
        method.check_dataset(train.count, len(self.manifest.classes))
        if recipe.network.sync_bn:
            convert_sync_bn(method, self.device)
        if recipe.channels_last:
            method.to(memory_format=torch.channels_last)
        return method.to(self.device)

    def _check(self) -> None:
        """Raises `UserError` for settings that would fail, or never take effect, later in the training."""
        recipe, total = self.recipe, self.recipe.schedule.epochs * self.steps_per_epoch
        if not self.method.trains:
            return
        if recipe.monitor.knn_every and "val" not in self.manifest.splits:
            raise UserError(
                f"monitor.knn_every={recipe.monitor.knn_every}: dataset '{recipe.data.dataset}' has no split 'val'; "
                "set monitor.knn_every=0"
            )
        images = recipe.batch if recipe.network.sync_bn else self.local_batch
        if images < 2:
            raise UserError("batch: batch norm needs at least 2 images per process (or over all, with network.sync_bn)")
        late = {"schedule.warmup_iterations": recipe.schedule.warmup_iterations}
        late |= {f"method.{key}": steps for key, steps in self.method.begins_after_steps(recipe.method).items()}
        for key, steps in late.items():
            if steps and steps >= total:
                raise UserError(
                    f"{key}: {steps} of {total} steps: the training ends before; set it to less than {total}"
                )

    def fit(self, run: Run | None) -> None:
        """Trains to the end. `run` keeps the record, on rank 0 only."""
        epochs = self.recipe.schedule.epochs if self.method.trains else 0
        if run and epochs:
            self._preflight(run)
            if self.recipe.monitor.knn_every:  # decodes what it will read: known now, not after the first epochs
                read_val(self.manifest, self.recipe, [0, self.manifest.split("val").count - 1])
            for encoder in self.method.encoders().values():  # what cannot be written is said before the training
                complete_backbone(encoder.backbone.state_dict(), self._metadata(run))
        position = self._resume(run)
        if run and epochs:
            record_processes(run, self.recipe, position)
        with StopRequest(acts=run is not None) as stop:
            for epoch in range(position // self.steps_per_epoch, epochs):
                first = position % self.steps_per_epoch
                if first == 0:
                    torch.manual_seed(derive_seed(self.recipe.seed, "epoch", epoch))
                    self.method.prepare_epoch(epoch, self.embed)
                self.method.train()
                for step, raw in self.meter.timed(
                    self.loader.epoch(epoch, first), epoch * self.steps_per_epoch + first
                ):
                    self.step(raw, step)
                    if run:
                        self.meter.losses.check(step + 1, self.recipe.precision)
                    if run and (step + 1) % self.steps_per_epoch:
                        self._save_if_due(run, step + 1, stop, self.recipe.machine.checkpoint_minutes)
                position = (epoch + 1) * self.steps_per_epoch
                if run:
                    self._end_epoch(run, epoch, epochs)
                    self._keep_if_due(run, epoch + 1, epochs)
                    self._save_if_due(run, position, stop, minutes=1.0)
        if run:
            self._finish(run)

    def _preflight(self, run: Run) -> None:
        """Prints how the data will be read and how fast, and keeps it in the record."""
        preflight = run_preflight(self.recipe, self.loader)
        run.record.data["reading"] = preflight.record
        print(preflight.text, file=sys.stderr, flush=True)

    def step(self, raw: Batch, step: int) -> None:
        """Step number `step` of the training, on the batch `raw`."""
        outcome = self.training_step(self._on_device(raw), step)
        self.meter.add(self.recipe.batch, {"loss": outcome.loss.detach(), **outcome.scalars})

    def embed(self, encoder: nn.Module) -> Tensor:
        """Outputs of `encoder` for all training images; see `methods.Embed`."""
        return embed_training_set(encoder, self.normalise, self.manifest, self.recipe)

    def _on_device(self, raw: Batch) -> Batch:
        views = [self.normalise(view.to(self.device, non_blocking=True)) for view in raw.views]
        index, label = (values.to(self.device, non_blocking=True) for values in (raw.index, raw.label))
        return Batch(views, index, label)

    def _end_epoch(self, run: Run, epoch: int, epochs: int) -> None:
        step = (epoch + 1) * self.steps_per_epoch
        values = self.meter.finish()
        report_failed_checks()
        if not math.isfinite(values["loss"]):
            fault = "the loss was not finite in any step of the epoch"
            raise UserError(divergence.message(fault, step, self.recipe.precision))
        monitor = self.recipe.monitor
        if monitor.knn_every and ((epoch + 1) % monitor.knn_every == 0 or epoch + 1 == epochs):
            with run.phase("monitor"):
                values["online_knn_top1"] = online_knn(
                    self.method.exported.backbone, self.normalise, self.manifest, self.recipe
                )
        remaining = (epochs - epoch - 1) * values["seconds"]
        lr = self.training_step.learning_rate(step - 1)
        run.log(step=step, epoch=epoch + 1, epochs=epochs, lr=lr, eta_s=round(remaining, 1), **values)
        run.metrics.update({key: value for key, value in values.items() if key != "seconds"})
        if self._probe_is_due(epoch, epochs):
            with run.phase("monitor"):
                self._probe_spectra(run, step, epoch + 1)
        if "spread" in values:
            run.metrics["collapsed"] = values["spread"] < COLLAPSED or run.metrics.get("effective_rank", 2.0) < 2

    def _probe_is_due(self, epoch: int, epochs: int) -> bool:
        every = self.recipe.monitor.spectra_every
        every = -(-epochs // 10) if every is None else every
        return bool(every) and ((epoch + 1) % every == 0 or epoch in (0, epochs - 1))

    def _probe_spectra(self, run: Run, step: int, epoch: int) -> None:
        """Appends the spectra of the outputs to the run's file; their summary joins the record's metrics."""
        if self.probe is None:
            self.probe = SpectrumProbe(self.recipe, self.manifest, self.normalise, self.device)
        spectra = self.probe.measure(self.method)
        append_spectra(run.folder, step, epoch, spectra)
        run.metrics.update(summary(spectra))

    def _resume(self, run: Run | None) -> int:
        """Loads what a stopped run left (every rank the same file); the number of steps that are done."""
        folder = Path(self.world.broadcast(str(run.folder) if run else ""))
        state = resume.load(folder)
        if state is None:
            return 0
        self.training_step.load_state_dict(state)
        self.meter.load_state_dict(state["meter"], self.device)
        if run:
            run.rewind(state["step"])
        return int(state["step"])

    def _save_if_due(self, run: Run, step: int, stop: StopRequest, minutes: float) -> None:
        if stop.requested or stop.checkpoint_due(minutes):
            self._save(run, step)
        if stop.requested:
            stop.leave(f"{run.id}: saved after step {step}; the same command continues from there")

    def _save(self, run: Run, step: int) -> None:
        state = {
            "step": step,
            **self.training_step.state_dict(),
            "meter": self.meter.state_dict(),
            **self._stated(run),
        }
        divergence.check_state(state, step, self.recipe.precision)
        resume.save(run.folder, state)
        run.save()

    def _keep_if_due(self, run: Run, epoch: int, epochs: int) -> None:
        """Leaves the backbone of this epoch, for evaluations during the training."""
        if epoch in kept_epochs(epochs, self.recipe.machine.keep_every):
            name, encoder = next(iter(self.method.encoders().items()))
            metadata = {**self._metadata(run), "encoder": name, "kept_epoch": epoch}
            write_backbone(run.folder / kept_name(epoch), encoder.backbone.state_dict(), metadata)

    def _finish(self, run: Run) -> None:
        """Leaves the backbones for others, and of the checkpoint the method's weights alone."""
        for number, (name, encoder) in enumerate(self.method.encoders().items()):
            path = run.folder / (BACKBONE if number == 0 else f"backbone-{name}.safetensors")
            write_backbone(path, encoder.backbone.state_dict(), {**self._metadata(run), "encoder": name})
            run.artifact(path.stem, path)
        resume.save(run.folder, {"method": self.method.state_dict(), **self._stated(run)})
        resume.forget_previous(run.folder)

    def _metadata(self, run: Run) -> dict[str, Any]:
        """What evaluation and transfer need to know. No time and no host: equal runs give equal bytes."""
        recipe = self.recipe
        return {
            **self._architecture(),
            "dataset": recipe.data.dataset,
            "mean": list(self.manifest.mean),
            "std": list(self.manifest.std),
            "image_size": recipe.evaluation_crop,
            "eval_resize": recipe.evaluation_resize,
            "method": recipe.method_name,
            "recipe": recipe.name,
            "seed": recipe.seed,
            "epochs": recipe.schedule.epochs if self.method.trains else 0,
            "id": run.id,
            **({"eval_dataset": recipe.evaluation.dataset} if recipe.evaluation.dataset else {}),
        }

    def _stated(self, run: Run) -> dict[str, str]:
        """In a checkpoint: what its tensors do not say of a network of timm."""
        metadata = self._metadata(run)
        return {METADATA: json.dumps(metadata, sort_keys=True)} if "options" in metadata else {}

    def _architecture(self) -> dict[str, Any]:
        """What rebuilds the backbone: torchvision's name and the stem, or timm's and its options."""
        network = self.recipe.network
        arch = timm_architecture(network.backbone)
        if arch is None:
            return {"arch": network.backbone, "stem": network.stem}
        return {"arch": arch, "architecture": arch, "options": self.method.encoder.options}


def _open_run(recipe: Recipe, manifest: Manifest, cell: dict[str, Any]) -> Run:
    overrides = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in cell.get("overrides", {}).items()
    ]
    config = pretrain_config(recipe, manifest)
    if not stage_folder("pretrain", run_id(recipe.label, config)).exists():
        hint = unfinished_with_other_world_size(recipe, config)
        if hint:
            print(hint, file=sys.stderr, flush=True)
    return Run(
        "pretrain",
        recipe.label,
        config,
        cell={
            "recipe": recipe.name,
            "method": recipe.method_name,
            "seed": recipe.seed,
            "dataset": recipe.data.dataset,
            **cell,
        },
        hashes={
            "method": file_hash(Path(inspect.getfile(find_method(recipe.method_name)))),
            "data": manifest.content_hash,
        },
        data={"manifest": manifest.summary},
        gpus=recipe.processes if recipe.device == "cuda" else 0,
        command=shlex.join(["python", "-m", "pretrain", recipe.argument, *overrides, f"seed={recipe.seed}"]),
    )
