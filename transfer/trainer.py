"""Fine-tunes and evaluates: Detectron2's model, optimizer, schedule, mapper and evaluator in a plain loop.

A stopped run continues from its checkpoint and ends with the same model as one that never stopped (on a CPU). Of
several processes, each has its part of every batch; the first one writes the record.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pretrain import resume
from pretrain.progress import StopRequest
from pretrain.repeatable import derive_seed, make_repeatable
from transfer.batches import training_batches
from transfer.convert import Converted, load_proven
from transfer.detection_set import DetectionSet, register, subset_of
from transfer.detectron import quiet
from transfer.estimate import Estimate, measure
from transfer.evaluation import Evaluation, evaluate
from transfer.optimizers import build_optimizer
from transfer.progress import Progress
from whitebench.errors import Interrupted, UserError
from whitebench.records import Run
from whitebench.sinks import TensorBoard

if TYPE_CHECKING:
    from detectron2.config import CfgNode

CHECKPOINT_MINUTES = 10.0
PICTURES = 8
ESTIMATE_FROM = 20
"""Iterations: with fewer, an estimate costs as much as training."""


class FineTuning:
    """A Detectron2 model that starts from a converted backbone.

    Args:
        folder: of the run.
        optimizer: see `transfer.protocol.Protocol`.
        subset: only this many images to train with, and to evaluate with.
        say: takes lines of progress.
    """

    def __init__(
        self,
        cfg: "CfgNode",
        content: Converted,
        data: DetectionSet,
        folder: Path,
        *,
        optimizer: str = "sgd",
        threads: int = 1,
        workers: int = 0,
        subset: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        from detectron2.modeling import build_model
        from detectron2.solver import build_lr_scheduler
        from detectron2.utils import comm

        make_repeatable(threads)
        if cfg.MODEL.DEVICE != "cpu":  # torchvision's deterministic RoIAlign is slow there and needs huge memory
            torch.use_deterministic_algorithms(False)
        torch.manual_seed(derive_seed(cfg.SEED, "heads"))
        self.data, self.folder, self.workers, self.say = data, folder, workers, say
        self.rank, self.processes = comm.get_rank(), comm.get_world_size()
        self.trained = False
        with quiet("detectron2", "fvcore"):
            self.train_sets, self.val_set = register(data, folder)
            self.cfg = cfg = _with_data(cfg, self.train_sets)
            self.model = build_model(cfg)
            self.proof = load_proven(self.model, content)
            self.optimizer = build_optimizer(optimizer, cfg, self.model)
            self.scheduler = build_lr_scheduler(cfg, self.optimizer)
            self.scaler = torch.amp.GradScaler("cuda", enabled=cfg.SOLVER.AMP.ENABLED)
            self.images = subset_of(dataset_images(self.train_sets, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS), subset)
            self.val_images = subset_of(dataset_images([self.val_set], False), subset)
        self.parallel = self._in_parallel()

    def _in_parallel(self) -> torch.nn.Module:
        """As Detectron2 wraps a model where there are several processes."""
        if self.processes == 1:
            return self.model
        devices = [torch.cuda.current_device()] if self.cfg.MODEL.DEVICE == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(self.model, device_ids=devices, broadcast_buffers=False)

    def fit(self, run: Run | None) -> None:
        """Trains to the end, from the run's checkpoint on.

        Args:
            run: the record; None in processes other than the first.
        Raises:
            UserError: the loss is not finite. Interrupted: a signal asked to stop; the state is saved.
        """
        start, total = self._resume(run), self.cfg.SOLVER.MAX_ITER
        if self.trained:
            return
        if total - start >= ESTIMATE_FROM:
            self._estimate(start, run)
        events = TensorBoard(self.folder, self.folder.name, {}, start or None) if run is not None else None
        try:
            self._iterate(start, run, events)
        finally:
            if events is not None:
                events.close()
        self._set_precise_norms()
        self.trained = True
        if run is not None:
            self._save(run, total)

    def _iterate(self, start: int, run: Run | None, events: TensorBoard | None) -> None:
        from detectron2.utils.events import EventStorage

        batches, total = self._batches(start), self.cfg.SOLVER.MAX_ITER
        progress = Progress(run, start, total, self.cfg.SOLVER.IMS_PER_BATCH, self.say, events)
        self.model.train()
        with EventStorage(start), StopRequest(acts=run is not None) as stop:
            for iteration in range(start, total):
                losses = self._step(next(batches), iteration)
                rate = max(group["lr"] for group in self.optimizer.param_groups)
                progress.report("iteration", iteration + 1, losses, rate)
                requested = self._any_requested(stop.requested)
                if run is not None and (requested or stop.checkpoint_due(CHECKPOINT_MINUTES)):
                    self._save(run, iteration + 1)
                if requested:
                    self._leave(stop, run, f"saved after iteration {iteration + 1}; the same command continues there")

    def _batches(self, start: int) -> Any:
        return training_batches(self.cfg, self.images, start, self.workers, self.rank, self.processes)

    def _estimate(self, start: int, run: Run | None) -> None:
        from detectron2.data import DatasetMapper
        from detectron2.utils.events import EventStorage

        batch = next(self._batches(start))
        image = DatasetMapper(self.cfg, is_train=False)(self.val_images[0])
        weights = sum(parameter.numel() * 4 for parameter in self.model.parameters() if parameter.requires_grad)
        with EventStorage():
            estimate: Estimate = measure(
                self.model,
                lambda: self._backward(self._losses(batch)),
                lambda: self.model([image]),
                self.cfg.SOLVER.MAX_ITER - start,
                -(-len(self.val_images) // self.processes),
                weights * (2 if isinstance(self.optimizer, torch.optim.AdamW) else 1),
            )
        if run is not None:
            self.say(str(estimate))
            run.metrics["estimate"] = estimate.metrics

    def _step(self, batch: list[Any], iteration: int) -> dict[str, float]:
        torch.manual_seed(derive_seed(self.cfg.SEED, iteration, *([self.rank] if self.rank else [])))
        try:
            losses = self._losses(batch)
        except FloatingPointError as error:  # Detectron2's own check of its proposals
            raise UserError(f"not finite in iteration {iteration + 1}: {error} Try a smaller --lr") from error
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(sum(values.values())):
            worst = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise UserError(f"the loss is not finite in iteration {iteration + 1} ({worst}); try a smaller --lr")
        self.optimizer.zero_grad()
        self._backward(losses)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return values

    def _backward(self, losses: dict[str, torch.Tensor]) -> None:
        total: Any = sum(losses.values())
        self.scaler.scale(total).backward()

    def _losses(self, batch: list[Any]) -> dict[str, torch.Tensor]:
        """By name; under fp16 where the protocol has SOLVER.AMP, as Detectron2's AMPTrainer."""
        with torch.autocast("cuda", enabled=self.cfg.SOLVER.AMP.ENABLED):
            losses: dict[str, torch.Tensor] = self.parallel(batch)
        return losses

    def _any_requested(self, requested: bool) -> bool:
        """Whether any process was asked to stop: all stop together, or the others would wait for it for ever."""
        if self.processes == 1:
            return requested
        flag = torch.tensor(float(requested), device=self.model.device)
        torch.distributed.all_reduce(flag)
        return bool(flag > 0)

    def _leave(self, stop: StopRequest, run: Run | None, message: str) -> None:
        if run is None:
            raise Interrupted(message)
        stop.leave(f"{run.id}: {message}")

    def _set_precise_norms(self) -> None:
        """Running statistics of the final weights, over batches that follow the training's (TEST.PRECISE_BN)."""
        from detectron2.utils.events import EventStorage
        from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

        precise = self.cfg.TEST.PRECISE_BN
        if precise.ENABLED and get_bn_modules(self.model):
            batches = self._batches(self.cfg.SOLVER.MAX_ITER)
            torch.manual_seed(derive_seed(self.cfg.SEED, "precise"))
            self.model.train()
            with EventStorage(), quiet("fvcore"):
                update_bn_stats(self.model, batches, precise.NUM_ITER)

    def _resume(self, run: Run | None) -> int:
        state = resume.load(self.folder)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.trained = state["trained"]
        if not self.trained:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.scaler.load_state_dict(state.get("scaler", {}))
        if run is not None:
            run.rewind(state["iteration"])
            self.say(f"continuing after iteration {state['iteration']}")
        return int(state["iteration"])

    def _save(self, run: Run, iteration: int) -> None:
        """Of a trained model, the weights alone."""
        state: dict[str, Any] = {"iteration": iteration, "trained": self.trained, "model": self.model.state_dict()}
        if not self.trained:
            state |= {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
            state["scaler"] = self.scaler.state_dict()
        resume.save(run.folder, state)
        run.save()

    def evaluate(self, run: Run | None) -> Evaluation | None:
        """See `transfer.evaluation.evaluate`. None in processes other than the first."""
        progress = Progress(run, 0, -(-len(self.val_images) // self.processes), self.processes, self.say)
        with StopRequest(acts=run is not None) as stop:

            def after_each(done: int, total: int) -> None:
                progress.report("image", done)
                if self.processes == 1 and stop.requested:
                    self._leave(stop, run, "trained; the same command evaluates it")

            return evaluate(
                self.model,
                self.cfg,
                self.data,
                self.val_set,
                self.val_images,
                workers=self.workers,
                pictures=PICTURES,
                after_each=after_each,
            )


def _with_data(cfg: "CfgNode", train_sets: list[str]) -> "CfgNode":
    """A federated loss weighs classes by the images that the training sets have of them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = tuple(train_sets)
    cfg.freeze()
    return cfg


def dataset_images(names: list[str], filter_empty: bool) -> list[dict[str, Any]]:
    """Detectron2's dictionaries of registered sets, one after another."""
    from detectron2.data import get_detection_dataset_dicts

    images: list[dict[str, Any]] = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    return images
