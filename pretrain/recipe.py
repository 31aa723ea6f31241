"""What a pretraining run is: nested dataclasses, loaded strictly from a recipe's YAML and dotted overrides.

What determines the pretrained weights is in `Recipe.identity()`. The sections named in `DESCRIPTIVE` are not: what a
run is called, what is monitored, how it is evaluated afterwards, how this machine runs it.
"""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pretrain.architectures import check_backbone, check_sizes, timm_architecture
from pretrain.recipe_files import RECIPES
from pretrain.recipe_sections import Data, Evaluation, Machine, Monitor, Network, Optimizer, Paper, Schedule
from whitebench.config import parse_overrides, set_dotted, strict, validated
from whitebench.errors import UserError
from whitebench.hashing import added, canonical
from whitebench.inheritance import SUFFIXES
from whitebench.ranges import (
    Line,
    PositiveInt,
    Seed,
)

DESCRIPTIVE = ("name", "file", "paper", "evaluation", "monitor", "machine")
"""Sections of a recipe that do not determine the pretrained weights."""


@strict
class Recipe:
    """A pretraining run. See `pretrain/recipes/` for the published ones."""

    name: Annotated[Line, Field(pattern="[^/]$")]
    """Of the recipe: its name in the suite, or its file's name without folder and suffix."""
    method: Any
    """{name: a file of `pretrain/methods`, and the keys of its Config}; resolved to that Config by `load`."""
    data: Data
    file: Line | None = added(None)
    """Set by `load`: the path of a recipe that is not one of the suite's."""
    paper: Paper = field(default_factory=Paper)
    network: Network = field(default_factory=Network)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    batch: PositiveInt = 256
    """Images per step, over all processes."""
    seed: Seed = 0
    """Of the initial weights and of every random draw."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if there is a GPU."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network's forward pass; losses are always computed in float32."""
    world_size: PositiveInt = 1
    """Processes, one per GPU; the global batch is divided among them."""
    threads: PositiveInt = 1
    """Intra-op threads of a process: with another number a CPU gives other bits."""
    channels_last: bool = True
    """Memory layout of the network: faster on GPUs and with most CPU kernels; other bits."""
    compile: bool = False
    """Compile the backbone with torch.compile; other bits."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    monitor: Monitor = field(default_factory=Monitor)
    machine: Machine = field(default_factory=Machine)

    def identity(self) -> dict[str, Any]:
        """What determines the result, as plain JSON."""
        plain = canonical(self)
        plain["method"] = {"name": self.method_name, **plain["method"]}
        return {key: value for key, value in plain.items() if key not in DESCRIPTIVE}

    @property
    def argument(self) -> str:
        """What commands are given to run it: a path, or its name in the suite."""
        return self.file or self.name

    @property
    def method_name(self) -> str:
        return type(self.method).__module__.rpartition(".")[2]

    @property
    def processes(self) -> int:
        """How many train, each on an equal part of the global batch."""
        return self.machine.processes or self.world_size

    @property
    def label(self) -> str:
        """For run ids: `<recipe's own name>-s<seed>`."""
        return f"{self.name.rpartition('/')[2]}-s{self.seed}"

    @property
    def evaluation_crop(self) -> int:
        """Side of the centre crop that evaluation sees, pixels."""
        return self.evaluation.crop or self.data.views[0].size

    @property
    def evaluation_resize(self) -> int:
        """Short side to which evaluation resizes before it crops, pixels."""
        crop = self.evaluation_crop
        return self.evaluation.resize or (crop if crop <= 64 else round(crop * 8 / 7))

    @property
    def view_sizes(self) -> list[int]:
        """Side of each view, pixels, in the order of a batch's views."""
        return [group.size for group in self.data.views for _ in range(group.count)]


def recipe_names() -> list[str]:
    return RECIPES.names()


def load(name: str, overrides: Sequence[str] | dict[str, Any] = ()) -> Recipe:
    """The recipe `name` (of `pretrain/recipes`, or a path to a YAML file) with `key.sub=value` overrides, validated.

    Raises:
        UserError: unknown recipe, method or key (naming the nearest), a wrong type, a value out of its range, settings
            that contradict each other.
    """
    raw = RECIPES.read(name)
    if name.endswith(SUFFIXES):
        raw["file"] = name
        raw.setdefault("name", Path(name).stem)
    raw.setdefault("name", name)
    for key, value in (overrides if isinstance(overrides, dict) else parse_overrides(overrides)).items():
        set_dotted(raw, key, value)
    return recipe_of(raw, where=name)


def recipe_of(raw: dict[str, Any], where: str) -> Recipe:
    """The recipe that plain content describes (of a file, of a record's config), its method by the method's own Config.

    Raises:
        UserError: see `load`.
    """
    from pretrain.method import find_method

    section = raw.get("method")
    if not isinstance(section, dict) or "name" not in section:
        raise UserError(f"{where}: method: needs a name, e.g. method.name=intl")
    kind = find_method(section["name"])
    settings = {key: value for key, value in section.items() if key != "name"}
    method: Any = validated(kind.Config, settings, where=f"{where}: method", separator=".")
    schedule = raw.get("schedule", {})
    if isinstance(schedule, dict):
        schedule = {"counting": kind.counting, **schedule}
    recipe = validated(Recipe, {**raw, "method": method, "schedule": schedule}, where=where)
    _check_batch(recipe, where)
    _check_colour(recipe, where)
    _check_evaluation(recipe, where)
    _check_network(recipe, where)
    _check_optimizer(recipe.optimizer, where)
    if kind.trains:
        _check_schedule(recipe.schedule, kind.begins_after(method), where)
    return recipe


def _check_batch(recipe: Recipe, where: str) -> None:
    if recipe.batch % recipe.world_size:
        raise UserError(f"{where}: batch: {recipe.batch} is not divisible by world_size={recipe.world_size}")
    if recipe.batch % recipe.processes:
        raise UserError(f"{where}: batch: {recipe.batch} is not divisible by machine.processes={recipe.processes}")


def _check_colour(recipe: Recipe, where: str) -> None:
    views = len(recipe.view_sizes)
    for key in ("jitter_p", "mix_p", "gray_p", "blur_p", "solarize_p", "invert_p"):
        value = getattr(recipe.data.colour, key)
        if isinstance(value, list) and len(value) != views:
            raise UserError(f"{where}: data.colour.{key}: {len(value)} values for {views} views")


def _check_evaluation(recipe: Recipe, where: str) -> None:
    crop, resize = recipe.evaluation_crop, recipe.evaluation_resize
    if resize < crop:
        raise UserError(f"{where}: evaluation.resize: {resize} is smaller than the crop of {crop} pixels")


FOR_TIMM = ("pooling", "drop_path", "heads", "positions", "frozen_patch_embedding", "vit_init")
"""Settings of the network that torchvision's ResNets do not have."""


def _check_network(recipe: Recipe, where: str) -> None:
    network, defaults = recipe.network, Network()
    try:
        check_backbone(network.backbone)
    except UserError as error:
        raise UserError(f"{where}: network.backbone: {error}") from error
    if timm_architecture(network.backbone) is None:
        for key in FOR_TIMM:
            if getattr(network, key) != getattr(defaults, key):
                raise UserError(f"{where}: network.{key}: a {network.backbone} has no such setting")
    elif network.stem != defaults.stem or network.stem_init != defaults.stem_init:
        key = "stem" if network.stem != defaults.stem else "stem_init"
        raise UserError(f"{where}: network.{key}: only of torchvision's ResNets, not of {network.backbone}")
    sizes = {f"data.views.{number}.size": group.size for number, group in enumerate(recipe.data.views)}
    check_sizes(network.backbone, {f"{where}: {key}": size for key, size in sizes.items()})
    check_sizes(network.backbone, {f"{where}: evaluation.crop": recipe.evaluation_crop})


def _check_optimizer(optimizer: Optimizer, where: str) -> None:
    if optimizer.nesterov and optimizer.name in ("adam", "adamw"):
        raise UserError(f"{where}: optimizer.nesterov: {optimizer.name} has no such form; choose sgd, lars or larc")
    if optimizer.nesterov and not optimizer.momentum:
        raise UserError(f"{where}: optimizer.nesterov: needs momentum above 0 (optimizer.momentum)")
    if optimizer.trust is not None and optimizer.name in ("sgd", "adam", "adamw"):
        raise UserError(f"{where}: optimizer.trust: {optimizer.name} does not scale its updates; choose lars or larc")


def _check_schedule(schedule: Schedule, begins_after: dict[str, float], where: str) -> None:
    """Settings that were made for a longer training can make a shortened one another method, or train nothing.

    Args:
        begins_after: keys of the method with the number of epochs after which a part of it begins.
    """
    epochs = schedule.epochs
    if epochs < 1:
        raise UserError(f"{where}: schedule.epochs: at least 1, not {epochs} (the method 'random' is not trained)")
    if schedule.warmup_epochs and schedule.warmup_iterations:
        raise UserError(f"{where}: schedule: warm up by epochs or by iterations, not both")
    if schedule.warmup_epochs > epochs:
        raise UserError(
            f"{where}: schedule.warmup_epochs: {schedule.warmup_epochs:g} of {epochs} epochs, so that the full rate is "
            "never reached; set schedule.warmup_epochs for these epochs"
        )
    for key, value in begins_after.items():
        if value >= epochs:
            raise UserError(
                f"{where}: method.{key}: {value:g} of {epochs} epochs, so that a part of the method is never trained; "
                f"set method.{key} to less than {epochs}"
            )
    early = [step for step in schedule.steps if step < 0 and step + epochs <= 0]
    if schedule.kind == "step" and early:
        raise UserError(
            f"{where}: schedule.steps: {early[0]} from the end of {epochs} epochs is before their start, so that the "
            "rate would be reduced throughout; set schedule.steps for these epochs, e.g. [-2,-1]"
        )
