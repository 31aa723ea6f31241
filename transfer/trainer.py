"""Fine-tunes and evaluates: Detectron2's model, optimizer, schedule, mapper and evaluator in a plain loop.

A stopped run goes on from its checkpoint and ends with the same model as one that never stopped (on a CPU). In several
processes each has its share of every batch; the first one keeps the record.
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
from transfer.data import DetectionSet, part_of, register
from transfer.detectron import quiet
from transfer.estimate import Estimate, measure
from transfer.evaluation import Evaluation, evaluate
from transfer.progress import Events, Progress
from whitebench.errors import Interrupted, UserError
from whitebench.records import Run

if TYPE_CHECKING:
    from detectron2.config import CfgNode

CHECKPOINT_MINUTES = 10.0
PICTURES = 8
WORTH_AN_ESTIMATE = 20
"""Iterations: with fewer, measuring costs as much as training."""


class FineTuning:
    """A Detectron2 model that starts from a converted backbone.

    Args:
        d2_file: holds `content`; what Detectron2 itself loads.
        optimizer: see `transfer.protocol.Protocol`.
        subset: only so many images to train with, and to judge by.
        say: takes lines of progress.
    """

    def __init__(
        self,
        cfg: "CfgNode",
        content: Converted,
        d2_file: Path,
        data: DetectionSet,
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
        self.cfg, self.data, self.workers, self.say = cfg, data, workers, say
        self.rank, self.processes = comm.get_rank(), comm.get_world_size()
        self.trained = False
        with quiet("detectron2", "fvcore"):
            self.model = build_model(cfg)
            self.proof = load_proven(self.model, d2_file, content)
            self.optimizer = _optimizer(optimizer, cfg, self.model)
            self.scheduler = build_lr_scheduler(cfg, self.optimizer)
            self.train_sets, self.val_set = register(data)
            self.images = part_of(dataset_images(self.train_sets, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS), subset)
            self.val_images = part_of(dataset_images([self.val_set], False), subset)
        self.parallel = self._in_parallel()

    def _in_parallel(self) -> torch.nn.Module:
        """As Detectron2 wraps a model where there are several processes."""
        if self.processes == 1:
            return self.model
        devices = [torch.cuda.current_device()] if self.cfg.MODEL.DEVICE == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(self.model, device_ids=devices, broadcast_buffers=False)

    def fit(self, folder: Path, run: Run | None) -> None:
        """Trains to the end, from where the run's checkpoint stands.

        Args:
            run: the record, in `folder`; None in processes other than the first.
        Raises:
            UserError: the loss is not finite. Interrupted: a signal asked to stop; the place is saved.
        """
        from detectron2.utils.events import EventStorage

        start, total = self._resume(folder, run), self.cfg.SOLVER.MAX_ITER
        if self.trained:
            return
        if total - start >= WORTH_AN_ESTIMATE:
            self._estimate(start, run)
        batches = self._batches(start)
        events = Events(folder, start) if run is not None else None
        progress = Progress(run, start, total, self.cfg.SOLVER.IMS_PER_BATCH, self.say, events)
        self.model.train()
        with EventStorage(start), StopRequest(acts=run is not None) as stop:
            for iteration in range(start, total):
                losses = self._step(next(batches), iteration)
                progress.tell("iteration", iteration + 1, losses, self.optimizer.param_groups[0]["lr"])
                asked = self._any_asked(stop.requested)
                if run is not None and (asked or stop.checkpoint_due(CHECKPOINT_MINUTES)):
                    self._save(run, iteration + 1)
                if asked:
                    self._leave(
                        stop, run, f"saved after iteration {iteration + 1}; the same command goes on from there"
                    )
        self._set_precise_norms()
        self.trained = True
        if run is not None:
            self._save(run, total)
        if events is not None:
            events.close()

    def _batches(self, start: int) -> Any:
        return training_batches(self.cfg, self.images, start, self.workers, self.rank, self.processes)

    def _estimate(self, start: int, run: Run | None) -> None:
        from detectron2.data import DatasetMapper
        from detectron2.utils.events import EventStorage

        batch = next(self._batches(start))
        image = DatasetMapper(self.cfg, is_train=False)(self.val_images[0])
        weights = sum(parameter.numel() * 4 for parameter in self.model.parameters())
        with EventStorage():
            found: Estimate = measure(
                self.model,
                lambda: sum(self.parallel(batch).values()).backward(),
                lambda: self.model([image]),
                self.cfg.SOLVER.MAX_ITER - start,
                -(-len(self.val_images) // self.processes),
                weights * (2 if isinstance(self.optimizer, torch.optim.AdamW) else 1),
            )
        if run is not None:
            self.say(str(found))
            run.metrics["estimate"] = found.metrics

    def _step(self, batch: list[Any], iteration: int) -> dict[str, float]:
        torch.manual_seed(derive_seed(self.cfg.SEED, iteration, *([self.rank] if self.rank else [])))
        try:
            losses = self.parallel(batch)
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

    def _any_asked(self, requested: bool) -> bool:
        """Whether any process was asked to stop: all leave together, or those left behind would wait for ever."""
        if self.processes == 1:
            return requested
        flag = torch.tensor(float(requested), device=self.model.device)
        torch.distributed.all_reduce(flag)
        return bool(flag > 0)

    def _leave(self, stop: StopRequest, run: Run | None, place: str) -> None:
        if run is None:
            raise Interrupted(place)
        stop.leave(f"{run.id}: {place}")

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

    def _resume(self, folder: Path, run: Run | None) -> int:
        state = resume.load(folder)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.trained = state["trained"]
        if not self.trained:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
        if run is not None:
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

    def evaluate(self, folder: Path, run: Run | None) -> Evaluation | None:
        """See `transfer.evaluation.evaluate`. None in processes other than the first."""
        progress = Progress(run, 0, -(-len(self.val_images) // self.processes), self.processes, self.say)
        with StopRequest(acts=run is not None) as stop:

            def each(done: int, total: int) -> None:
                progress.tell("image", done)
                if self.processes == 1 and stop.requested:
                    self._leave(stop, run, "trained; the same command evaluates it")

            return evaluate(
                self.model, self.cfg, self.data, self.val_set, self.val_images, folder, self.workers, PICTURES, each
            )


def dataset_images(names: list[str], filter_empty: bool) -> list[dict[str, Any]]:
    """Detectron2's dictionaries of registered sets, one after another."""
    from detectron2.data import get_detection_dataset_dicts

    images: list[dict[str, Any]] = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    return images


def _optimizer(name: str, cfg: "CfgNode", model: torch.nn.Module) -> torch.optim.Optimizer:
    from detectron2.solver import build_optimizer, get_default_optimizer_params

    if name == "sgd":
        sgd: torch.optim.Optimizer = build_optimizer(cfg, model)
        return sgd
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(model, weight_decay_norm=solver.WEIGHT_DECAY_NORM)
    return torch.optim.AdamW(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
