"""Fine-tunes and evaluates: Detectron2's model, optimizer, schedule, mapper and evaluator in a plain loop.

A stopped run goes on from its checkpoint and ends with the same model as one that never stopped (on a CPU).
"""

import contextlib
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pretrain import resume
from pretrain.progress import StopRequest
from pretrain.repeatable import derive_seed, make_repeatable
from results.command import UserError
from results.record import Run
from transfer.batches import training_batches
from transfer.coco_data import CocoSet, register
from transfer.convert import Converted, load_proven
from transfer.detectron import quiet

if TYPE_CHECKING:
    from detectron2.config import CfgNode

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SIZES = {"APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, math.inf)}
"""COCO's areas of small, medium and large objects, square pixels."""
TASKS = {"bbox": "box", "segm": "mask"}
LOG_SECONDS, CHECKPOINT_MINUTES = 10.0, 10.0


class FineTuning:
    """A Detectron2 model that starts from a converted backbone.

    Args:
        d2_file: holds `content`; what Detectron2 itself loads.
        optimizer: see `transfer.protocol.Protocol`.
        say: takes lines of progress.
    """

    def __init__(
        self,
        cfg: "CfgNode",
        content: Converted,
        d2_file: Path,
        coco: CocoSet,
        optimizer: str = "sgd",
        threads: int = 1,
        workers: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        from detectron2.modeling import build_model
        from detectron2.solver import build_lr_scheduler

        make_repeatable(threads)
        if cfg.MODEL.DEVICE != "cpu":  # torchvision's deterministic RoIAlign is slow there and needs huge memory
            torch.use_deterministic_algorithms(False)
        torch.manual_seed(derive_seed(cfg.SEED, "heads"))
        self.cfg, self.coco, self.workers, self.say = cfg, coco, workers, say
        self.trained = False
        with quiet("detectron2", "fvcore"):
            self.model = build_model(cfg)
            self.proof = load_proven(self.model, d2_file, content)
            self.optimizer = _optimizer(optimizer, cfg, self.model)
            self.scheduler = build_lr_scheduler(cfg, self.optimizer)
            self.train_set, self.val_set = register(coco)
            self.images = self._training_images()

    def _training_images(self) -> list[dict[str, Any]]:
        from detectron2.data import get_detection_dataset_dicts

        filter_empty = self.cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        images: list[dict[str, Any]] = get_detection_dataset_dicts([self.train_set], filter_empty=filter_empty)
        return images

    def fit(self, run: Run) -> None:
        """Trains to the end, from where the run's checkpoint stands.

        Raises:
            UserError: the loss is not finite. Interrupted: a signal asked to stop; the place is saved.
        """
        from detectron2.utils.events import EventStorage

        start, total = self._resume(run), self.cfg.SOLVER.MAX_ITER
        if self.trained:
            return
        batches = training_batches(self.cfg, self.images, start, self.workers)
        progress = _Progress(run, start, total, self.cfg.SOLVER.IMS_PER_BATCH, self.say)
        self.model.train()
        with EventStorage(start), StopRequest(acts=True) as stop:
            for iteration in range(start, total):
                losses = self._step(next(batches), iteration)
                progress.tell("iteration", iteration + 1, losses, self.optimizer.param_groups[0]["lr"])
                if stop.requested or stop.checkpoint_due(CHECKPOINT_MINUTES):
                    self._save(run, iteration + 1)
                if stop.requested:
                    stop.leave(f"{run.id}: saved after iteration {iteration + 1}; the same command goes on from there")
        self._set_precise_norms()
        self.trained = True
        self._save(run, total)

    def _step(self, batch: list[Any], iteration: int) -> dict[str, float]:
        torch.manual_seed(derive_seed(self.cfg.SEED, iteration))
        try:
            losses = self.model(batch)
        except FloatingPointError as error:  # Detectron2's own check of its proposals
            raise UserError(f"not finite in iteration {iteration + 1}: {error} Try a smaller --lr") from error
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(sum(values.values())):
            worst = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise UserError(f"the loss is not finite in iteration {iteration + 1} ({worst}); try a smaller --lr")
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        self.scheduler.step()
        return values

    def _set_precise_norms(self) -> None:
        """Running statistics of the final weights, over batches that follow the training's (TEST.PRECISE_BN)."""
        from detectron2.utils.events import EventStorage
        from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

        precise = self.cfg.TEST.PRECISE_BN
        if precise.ENABLED and get_bn_modules(self.model):
            batches = training_batches(self.cfg, self.images, self.cfg.SOLVER.MAX_ITER, self.workers)
            torch.manual_seed(derive_seed(self.cfg.SEED, "precise"))
            self.model.train()
            with EventStorage(), quiet("fvcore"):
                update_bn_stats(self.model, batches, precise.NUM_ITER)

    def _resume(self, run: Run) -> int:
        state = resume.load(run.folder)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.trained = state["trained"]
        if not self.trained:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
        run.rewind(state["iteration"])
        self.say(f"going on after iteration {state['iteration']}")
        return int(state["iteration"])

    def _save(self, run: Run, iteration: int) -> None:
        """Of a trained model, the weights alone."""
        state: dict[str, Any] = {"iteration": iteration, "trained": self.trained, "model": self.model.state_dict()}
        if not self.trained:
            state |= {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        resume.save(run.folder, state)
        run.save()

    def evaluate(self, run: Run) -> dict[str, float | None]:
        """COCO's metrics on val2017 in per cent: box_AP, box_AP50, ..., mask_APl; None where there is nothing to find.

        A model that detects nothing at all has AP 0, also where Detectron2 says NaN.
        """
        from detectron2.evaluation import COCOEvaluator

        with quiet("detectron2", "fvcore"):
            evaluator = COCOEvaluator(self.val_set, tuple(TASKS), distributed=False, use_fast_impl=False)
            self._detect(evaluator, run)
            with contextlib.redirect_stdout(io.StringIO()):
                found = evaluator.evaluate()
        values = {(task, name): found[task][name] for task in TASKS for name in METRICS}
        if all(math.isnan(value) for value in values.values()):
            areas = [item["area"] for item in evaluator._coco_api.dataset["annotations"]]
            values = {key: 0.0 if _occurs(key[1], areas) else math.nan for key in values}
        return {f"{TASKS[task]}_{name}": None if math.isnan(v) else v for (task, name), v in values.items()}

    @torch.no_grad()
    def _detect(self, evaluator: Any, run: Run) -> None:
        """Shows the model each image of val2017, and its detections to `evaluator`."""
        from detectron2.data import build_detection_test_loader

        loader = build_detection_test_loader(self.cfg, self.val_set, num_workers=self.workers)
        progress = _Progress(run, 0, len(loader), 1, self.say)
        torch.manual_seed(derive_seed(self.cfg.SEED, "evaluation"))
        self.model.eval()
        evaluator.reset()
        with StopRequest(acts=True) as stop:
            for done, images in enumerate(loader, 1):
                evaluator.process(images, self.model(images))
                progress.tell("image", done)
                if stop.requested:
                    stop.leave(f"{run.id}: trained; the same command evaluates it")


def _optimizer(name: str, cfg: "CfgNode", model: torch.nn.Module) -> torch.optim.Optimizer:
    from detectron2.solver import build_optimizer, get_default_optimizer_params

    if name == "sgd":
        sgd: torch.optim.Optimizer = build_optimizer(cfg, model)
        return sgd
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(model, weight_decay_norm=solver.WEIGHT_DECAY_NORM)
    return torch.optim.AdamW(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)


def _occurs(metric: str, areas: list[float]) -> bool:
    """Whether there are objects that the metric is about."""
    low, high = SIZES.get(metric, (0, math.inf))
    return any(low <= area < high for area in areas)


class _Progress:
    """A line to the user every so many seconds, and for the last of `total`; in training also to `metrics.jsonl`."""

    def __init__(self, run: Run, start: int, total: int, batch: int, say: Callable[[str], None]) -> None:
        self.run, self.start, self.total, self.batch, self.say = run, start, total, batch, say
        self.began = self.told = time.monotonic()

    def tell(self, unit: str, done: int, losses: dict[str, float] | None = None, lr: float = 0.0) -> None:
        """`done` units (iterations, images) of the total are done."""
        now = time.monotonic()
        if now - self.told < LOG_SECONDS and done < self.total:
            return
        self.told = now
        rate = (done - self.start) / max(now - self.began, 1e-9)
        left, speed, loss = (self.total - done) / rate, rate * self.batch, ""
        if losses is not None:
            values = {"loss": sum(losses.values()), **losses, "lr": lr, "images_per_s": speed, "eta_s": round(left)}
            self.run.log(step=done, steps=self.total, **values)
            loss = f"  loss {values['loss']:.3f}"
        minutes, seconds = divmod(round(left), 60)
        self.say(f"{unit} {done}/{self.total}{loss}  {speed:.1f} images/s  {minutes}:{seconds:02d} left")
