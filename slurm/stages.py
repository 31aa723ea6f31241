"""What the jobs of a sweep do: for each stage its id before anything has run, and the function that runs it.

A job is given a `Task`, which is plain data. All progress lives in run folders, none in the task, so that a task may be
stopped, queued again and run anywhere, any number of times.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whitebench.errors import UserError
from whitebench.files import BACKBONE
from whitebench.hashing import run_id
from whitebench.records import Record, Run, runs_root, stage_folder

if TYPE_CHECKING:
    from pretrain.evaluate.target import Options as EvaluationOptions
    from pretrain.evaluate.target import Target
    from pretrain.recipe import Recipe
    from transfer.records import Options as DetectionOptions

LEADERBOARD = "leaderboard"


@dataclass(frozen=True, slots=True)
class Task:
    """One stage of one cell."""

    stage: str
    recipe: str
    overrides: dict[str, Any] = field(default_factory=dict)
    """Of the recipe, dotted, the seed among them."""
    device: str = "cpu"
    parents: dict[str, str] = field(default_factory=dict)
    """Stage to id, of all that this task builds on, directly or not; of a repeated stage `<stage>:<seed>`."""
    seed: int | None = None
    """Of this stage's own randomness; the pretraining's is in `overrides`."""
    options: dict[str, Any] = field(default_factory=dict)
    function: str | None = None
    cell: dict[str, Any] = field(default_factory=dict)
    """What the record says of the cell."""
    setting: str = ""
    """Hash of the recipe as it was planned, but for its seed."""
    id: str = ""
    """As planned; the run must come out with the same."""

    @property
    def folder(self) -> Path:
        return runs_root() / "sweeps" / self.id if self.stage == LEADERBOARD else stage_folder(self.stage, self.id)

    @property
    def backbone(self) -> Path:
        """What the pretraining of this cell leaves."""
        return stage_folder("pretrain", self.parents["pretrain"]) / BACKBONE

    @property
    def kept_backbone(self) -> Path | None:
        """What the pretraining keeps for this task before its end; None where the task is of its last backbone."""
        from pretrain.evaluate.kept import kept_name

        epoch = self.options.get("epoch") if self.stage in OPTIONS_OF else None
        return self.backbone.with_name(kept_name(epoch)) if isinstance(epoch, int) else None


@dataclass(frozen=True)
class Stage:
    """How a stage is named and run."""

    needs: tuple[str, ...]
    plan: Callable[[Task, "Recipe"], str] | None
    """The id of the record that `run` will leave; None where the stage belongs to no cell."""
    run: Callable[[Task], Record | None]
    """None where this process is not the one that keeps the record (rank > 0)."""
    options: Callable[[], set[str]] = set
    """Names of the options that a sweep may set."""
    seeded: bool = False
    """Whether a sweep may repeat it with seeds of its own."""
    serves: bool = False
    """Whether it runs only for the stages that need it."""


def stage_options(stage: str) -> set[str]:
    return STAGES[stage].options()


def find_stage(task: Task) -> Stage:
    return USER_STAGE if task.function else STAGES[task.stage]


def run_task(task: Task) -> Record | None:
    """Runs the stage, or returns at once where it is done.

    Raises:
        UserError: also where the run comes out under another id than planned, i.e. something that determines the result
            is not the same here (another dataset under the same name, say).
    """
    record = find_stage(task).run(task)
    if record is not None and record.id != task.id:
        raise UserError(
            f"planned as {task.id}, but here it is {record.id}: data or settings differ between the machine that "
            "launched and this one; launch again"
        )
    return record


def load_recipe(task: Task) -> "Recipe":
    from pretrain.recipe import load

    return load(task.recipe, task.overrides)


def resolve(function: str) -> Callable[..., Any]:
    """`module:name` -> the function; the working directory is searched, too."""
    module_name, _, name = function.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        imported = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # anything may happen while a user's module is imported
        why = f"{type(error).__name__}: {error}" if not isinstance(error, ImportError | AttributeError) else error
        raise UserError(f"function: '{function}' cannot be imported ({why}); it must read module:name") from error
    if not callable(imported):
        raise UserError(f"function: '{function}' is not a function")
    return imported


def _launch(task: Task) -> dict[str, Any]:
    """What a record says of the launch: the sweep and the overrides, which the built-in stages do not get otherwise."""
    return {key: task.cell[key] for key in ("sweep", "overrides")}


def _plan_pretrain(task: Task, recipe: "Recipe") -> str:
    from pretrain.run_identity import pretrain_id

    return pretrain_id(recipe)


def _run_pretrain(task: Task) -> Record | None:
    from pretrain.train import train

    return train(load_recipe(task), _launch(task))


def _plan_evaluation(task: Task, recipe: "Recipe") -> str:
    from pretrain.evaluate.stage import plan

    return plan(task.stage, *_evaluation(task, recipe))


def _run_evaluation(task: Task) -> Record | None:
    from pretrain.evaluate.stage import run

    target, options = _evaluation(task, load_recipe(task))
    return run(task.stage, task.kept_backbone or task.backbone, target, options, _launch(task))


def _evaluation(task: Task, recipe: "Recipe") -> "tuple[Target, EvaluationOptions]":
    """What is evaluated, and the options: the sweep's, else the recipe's."""
    from pretrain.evaluate.target import Options, Target
    from whitebench.config import validated

    own = dict(task.options)
    dataset, epoch = own.pop("dataset", None), own.pop("epoch", None)
    options = {
        "protocol": getattr(recipe.evaluation, task.stage),
        "threads": recipe.threads,
        "loader": "folder" if recipe.data.loader == "folder" else "ffcv",
        "seed": task.seed or 0,
        "device": task.device,
        **({"probe": recipe.evaluation.linear} if task.stage == "robust" else {}),
        **own,
    }
    for key, value, kind in (("dataset", dataset, str), ("epoch", epoch, int)):
        if value is not None and not isinstance(value, kind):
            raise UserError(f"stages.{task.stage}.{key}: {value!r} is not a {'name' if kind is str else 'number'}")
    target = Target.of_recipe(recipe, task.parents["pretrain"], dataset, epoch)
    return target, validated(Options, options, where=f"stages.{task.stage}")


OPTIONS_OF = {
    "linear": {"features"},
    "knn": {"features"},
    "semi": {"list"},
    "finetune": {"list"},
    "fewshot": {"shots"},
    "voc07": set[str](),
    "retrieval": set[str](),
    "robust": {"probe", "shift"},
}
"""Stage of evaluation -> options that are its own."""


def _evaluation_options(stage: str) -> set[str]:
    return {
        "protocol",
        "threads",
        "workers",
        "loader",
        "world_size",
        "dataset",
        "datasets",
        "epoch",
        *OPTIONS_OF[stage],
    }


def _plan_convert(task: Task, recipe: "Recipe") -> str:
    from transfer.records import convert_id

    return convert_id(task.parents["pretrain"])


def _run_convert(task: Task) -> Record:
    from transfer.stages import convert_stage

    return convert_stage(task.backbone, cell=_launch(task))


def _plan_detect(task: Task, recipe: "Recipe") -> str:
    from transfer.records import detect_id

    options, parent = _detection(task), task.parents["pretrain"]
    return detect_id(parent, options, config=_detect_config(options))


@lru_cache(maxsize=256)
def _detect_config(options: "DetectionOptions") -> dict[str, Any]:
    """Config of a fine-tuning of any parent: the same for all cells of a sweep, of which there may be 10,000."""
    from transfer.records import detect_config

    return detect_config("", options)


def forget_plans() -> None:
    """To be called before a sweep is planned: data sets may have changed since the one before."""
    _detect_config.cache_clear()


def _run_detect(task: Task) -> Record:
    from transfer.stages import detect_stage

    return detect_stage(stage_folder("convert", task.parents["convert"]), _detection(task), cell=_launch(task))


def _detection(task: Task) -> "DetectionOptions":
    from transfer.records import Options
    from whitebench.config import validated

    options = {"seed": task.seed or 0, "device": task.device, **task.options}
    checked: DetectionOptions = validated(Options, options, where="stages.detect")
    return checked


def _detection_options() -> set[str]:
    from transfer.records import Options

    return {f.name for f in fields(Options)} - {"seed", "device"}


def _run_leaderboard(task: Task) -> None:
    from results.aggregate import main

    main(["--out", str(task.options["out"])] if "out" in task.options else [])


def _plan_user_stage(task: Task, recipe: "Recipe") -> str:
    resolve(task.function or "")
    return run_id(recipe.label, _user_stage_config(task))


def _run_user_stage(task: Task) -> Record:
    """Runs the user's `function(run, parents, options)` in a record of its own.

    `run` is the `whitebench.records.Run`, `parents` the folders of the stages before it.
    """
    parents = {stage: stage_folder(stage.partition(":")[0], parent) for stage, parent in task.parents.items()}
    label = task.id.rpartition("-")[0]
    with Run(task.stage, label, _user_stage_config(task), cell=task.cell, parents=list(task.parents.values())) as run:
        if not run.already_done:
            resolve(task.function or "")(run, parents, task.options)
    return run.record


def _user_stage_config(task: Task) -> dict[str, Any]:
    return {
        "function": task.function,
        "setting": task.setting,
        "pretrain_seed": task.cell["seed"],
        "parents": task.parents,
        "options": task.options,
        "seed": task.seed,
    }


SEEDED = ("linear", "semi", "finetune", "fewshot", "robust")
"""Evaluations with random draws of their own."""


def _evaluation_stage(name: str) -> Stage:
    needs = ("linear",) if name == "robust" else ("pretrain",)
    options = partial(_evaluation_options, name)
    return Stage(needs, _plan_evaluation, _run_evaluation, options, seeded=name in SEEDED)


STAGES: dict[str, Stage] = {
    "pretrain": Stage((), _plan_pretrain, _run_pretrain),
    **{stage: _evaluation_stage(stage) for stage in OPTIONS_OF},
    "convert": Stage(("pretrain",), _plan_convert, _run_convert, serves=True),
    "detect": Stage(("convert",), _plan_detect, _run_detect, _detection_options, seeded=True),
    LEADERBOARD: Stage((), None, _run_leaderboard, lambda: {"out"}),
}
USER_STAGE = Stage(("pretrain",), _plan_user_stage, _run_user_stage)
