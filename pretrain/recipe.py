"""What a pretraining run is: nested dataclasses, loaded strictly from a recipe's YAML and dotted overrides.

What determines the pretrained weights is in `Recipe.identity()`. The sections named in `DESCRIPTIVE` are not: what a
run is called, what is watched, how it is evaluated afterwards, how this machine does it.
"""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from whitebench.config import parse_override, set_dotted, strict, validated
from whitebench.errors import UserError, nearest
from whitebench.hashing import added, canonical
from whitebench.records import data_root
from whitebench.yaml import read_yaml

RECIPES = Path(__file__).parent / "recipes"
Range = tuple[float, float]
DESCRIPTIVE = ("name", "paper", "evaluation", "monitor", "machine")
"""Sections of a recipe that do not determine the pretrained weights."""


@strict
class Paper:
    """Where a recipe comes from, and what its source reports."""

    title: str = ""
    source: str = ""
    reported: dict[str, float] = field(default_factory=dict)
    """Metric to the published value, in per cent as papers give it."""
    tolerance: dict[str, float] = field(default_factory=dict)
    """Metric to the distance within which we call it reproduced."""
    reconstruction: bool = False
    """True where the paper's exact method or settings are not known: tables then say so."""


@strict
class Views:
    """A group of views that are cut alike."""

    size: int
    """Side of the square crop, pixels."""
    count: int = 1
    scale: Range = (0.2, 1.0)
    """Share of the image's area that a crop covers, drawn uniformly."""
    ratio: Range = (3 / 4, 4 / 3)
    """Width over height of the crop before it is made square, drawn log-uniformly."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    flip_p: float = 0.5


@strict
class Colour:
    """Photometric augmentation, in the order jitter, mix, gray, blur, solarize, invert. A list has a value a view."""

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of brightness, contrast, saturation, hue, as torchvision's ColorJitter; applied in random order."""
    jitter_p: float | list[float] = 0.0
    mix_p: float | list[float] = 0.0
    """Each output channel becomes a random convex mixture of the input's (for the sample; in no paper)."""
    gray_p: float | list[float] = 0.0
    blur_p: float | list[float] = 0.0
    blur_sigma: Range = (0.1, 2.0)
    """Pixels."""
    solarize_p: float | list[float] = 0.0
    solarize_threshold: int = 128
    invert_p: float | list[float] = 0.0
    before_crop: bool = added(False)
    """All of it on the whole image, before a view is cut from it: then contrast turns about the image's mean, not the
    crop's. Needs loader=device, or placement=loader."""


Placement = Literal["loader", "accelerator"]
"""Where colour augmentation runs."""


@strict
class Data:
    dataset: str
    """A folder of $WHITEBENCH_DATA, written by `python -m pretrain.data`."""
    views: tuple[Views, ...]
    colour: Colour = field(default_factory=Colour)
    loader: Literal["ffcv", "folder", "device"] = "ffcv"
    placement: Literal["auto", "loader", "accelerator"] = "auto"
    """Where photometric augmentation runs; auto is the accelerator for `device`, and for `ffcv` and `folder` what
    `python -m pretrain.data measure` has found for these views, or else the loader."""
    shuffle_window: int | None = added(None)
    """Images are shuffled among so many (see `draws.shuffled_in_windows`), for a beton larger than memory; None is
    among all."""


@strict
class Network:
    backbone: str = "resnet50"
    stem: Literal["imagenet", "cifar", "cifar-pad2", "small"] = "imagenet"
    """imagenet: 7x7 stride 2 and max-pooling; cifar: 3x3, no pooling; cifar-pad2: the same, padded by 2 (INTL's);
    small: 3x3 and max-pooling (STL-10, Tiny-ImageNet)."""
    projector: tuple[int, ...] = ()
    """Widths of its linear layers; batch norm and ReLU between them. Empty: no projector."""
    projector_bias: bool = True
    """Of the hidden linear layers (the last always has one)."""
    projector_last_norm: Literal["none", "affine", "plain"] = "none"
    """Batch norm after the last layer: none, with or without its affine part."""
    projector_norm: bool = added(True)
    """Whether the hidden layers have batch norm (MoCo's and DINO's have not)."""
    projector_activation: Literal["relu", "gelu"] = added("relu")
    zero_init_residual: bool = False
    sync_bn: bool = True
    """With several processes: batch norm over all of them."""


@strict
class Optimizer:
    name: Literal["sgd", "adam", "lars", "larc"] = "sgd"
    """larc is lars that also scales the updates of parameters of one dimension."""
    lr: float = 0.05
    """Per `lr_batch` images of the global batch; not scaled where that is None."""
    lr_batch: int | None = 256
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_1d: bool = True
    """Whether biases and norms (parameters of one dimension) decay, too."""
    lr_1d: float | None = added(None)
    """Rate of these, like `lr`; None is the same rate."""


@strict
class Schedule:
    epochs: int = 100
    warmup_epochs: float = 0.0
    warmup_iterations: int = 0
    """Linear warm-up from 0, in epochs or iterations (one of them)."""
    kind: Literal["cosine", "cosine-by-epoch", "step", "constant"] = "cosine"
    """cosine: updated every step."""
    final_lr: float = 0.0
    """Where cosine ends, as a share of the base rate."""
    steps: tuple[int, ...] = ()
    """Epochs at which `step` multiplies the rate by `gamma`; negative ones count from the end."""
    gamma: float = 0.1


@strict
class Monitor:
    """What is watched during training. It changes no weight and is not part of a run's identity."""

    knn_every: int = 0
    """Epochs between online k-NN evaluations (20 neighbours, cosine); 0 means none."""
    knn_images: int = 5000
    """At most so many training images serve as neighbours."""
    spectra_every: int | None = None
    """Epochs between looks at the spectra of the outputs (`pretrain.diagnostics`); None is about ten looks in all, 0
    none."""


@strict
class Evaluation:
    """How images are prepared for evaluation. Not part of the pretraining's identity, but of every evaluation's."""

    crop: int | None = None
    """Side of the centre crop, pixels; None is the first view's size."""
    resize: int | None = None
    """Short side before it; None is the crop for crops of up to 64 pixels, else 8/7 of it (256 for 224)."""
    linear: str = "features"
    """Protocol of the linear probe: a name of `pretrain.evaluate.protocols`."""
    knn: str = "cosine-20"
    """Protocol of the k-NN evaluation, likewise."""
    semi: str = "sample-10"
    """Protocol of the semi-supervised evaluation, likewise."""


@strict
class Machine:
    """How this machine does it. Changes no bit of the result and is not part of a run's identity."""

    workers: int = 1
    """Threads (ffcv) or processes (folder) that prepare views, per process."""
    checkpoint_minutes: float = 10.0
    """A checkpoint is written this often, and at the end of each epoch where the last is at least a minute old."""


@strict
class Recipe:
    """A pretraining run. See `pretrain/recipes/` for the published ones."""

    name: str
    method: Any
    """{name: a file of `pretrain/methods`, and the keys of its Config}; resolved to that Config by `load`."""
    data: Data
    paper: Paper = field(default_factory=Paper)
    network: Network = field(default_factory=Network)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    batch: int = 256
    """Images a step, over all processes."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network's forward pass; losses are always computed in float32."""
    world_size: int = 1
    """Processes (one a GPU); the global batch is divided among them."""
    threads: int = 1
    """Intra-op threads of a process: with another number a CPU gives other bits."""
    channels_last: bool = True
    compile: bool = False
    evaluation: Evaluation = field(default_factory=Evaluation)
    monitor: Monitor = field(default_factory=Monitor)
    machine: Machine = field(default_factory=Machine)

    def identity(self) -> dict[str, Any]:
        """What determines the result, as plain JSON."""
        plain = canonical(self)
        plain["method"] = {"name": self.method_name, **plain["method"]}
        return {key: value for key, value in plain.items() if key not in DESCRIPTIVE}

    @property
    def method_name(self) -> str:
        return type(self.method).__module__.rpartition(".")[2]

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
    return sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml"))


def load(name: str, overrides: Sequence[str] | dict[str, Any] = ()) -> Recipe:
    """The recipe `name` (of `pretrain/recipes`, or a path to a YAML file) with `key.sub=value` overrides, validated.

    Raises:
        UserError: unknown recipe, method or key (naming the nearest), a wrong type, an inconsistent setting.
    """
    raw = _inherited(_read(name), name)
    raw.setdefault("name", name.removesuffix(".yaml"))
    if not isinstance(overrides, dict):
        overrides = dict(parse_override(text) for text in overrides)
    for key, value in overrides.items():
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
    settings = {key: value for key, value in section.items() if key != "name"}
    method: Any = validated(find_method(section["name"]).Config, settings, where=f"{where}: method", separator=".")
    recipe = validated(Recipe, {**raw, "method": method}, where=where)
    _check(recipe, where)
    return recipe


def _read(name: str) -> dict[str, Any]:
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    try:
        raw = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(f"unknown recipe '{name}'{nearest(name, recipe_names())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections")
    return raw


def _inherited(raw: dict[str, Any], name: str, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """`raw` laid over the recipe that it `extends`, key by key in each section; a method takes the other's place."""
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if base in (*heirs, name):
        raise UserError(f"{name}: extends: recipes extend each other in a circle: {' -> '.join((*heirs, name, base))}")
    merged = _inherited(_read(base), base, (*heirs, name))
    merged.pop("name", None)
    for key, value in raw.items():
        own = merged.get(key)
        merged[key] = (
            {**own, **value} if isinstance(own, dict) and isinstance(value, dict) and key != "method" else value
        )
    return merged


def _check(recipe: Recipe, where: str) -> None:
    """What types cannot say."""
    if not recipe.data.views:
        raise UserError(f"{where}: data.views: at least one group is needed")
    if recipe.batch % recipe.world_size:
        raise UserError(f"{where}: batch: {recipe.batch} is not divisible by world_size={recipe.world_size}")
    if recipe.schedule.warmup_epochs and recipe.schedule.warmup_iterations:
        raise UserError(f"{where}: schedule: warm up by epochs or by iterations, not both")
    _check_steps(recipe.schedule, where)
    for key in ("batch", "world_size", "threads"):
        if getattr(recipe, key) < 1:
            raise UserError(f"{where}: {key}: must be at least 1, not {getattr(recipe, key)}")
    views = len(recipe.view_sizes)
    for key in ("jitter_p", "mix_p", "gray_p", "blur_p", "solarize_p", "invert_p"):
        value = getattr(recipe.data.colour, key)
        if isinstance(value, list) and len(value) != views:
            raise UserError(f"{where}: data.colour.{key}: {len(value)} values for {views} views")
        if any(not 0 <= p <= 1 for p in (value if isinstance(value, list) else [value])):
            raise UserError(f"{where}: data.colour.{key}: a probability lies between 0 and 1, not {value}")
    for i, group in enumerate(recipe.data.views):
        if group.size < 1 or group.count < 1 or not 0 < group.scale[0] <= group.scale[1] <= 1:
            raise UserError(f"{where}: data.views.{i}: size and count are at least 1, 0 < scale[0] <= scale[1] <= 1")


def _check_steps(schedule: Schedule, where: str) -> None:
    """Steps counted from the end of a training that was shortened can lie before its start."""
    early = [step for step in schedule.steps if step < 0 and step + schedule.epochs <= 0]
    if schedule.kind == "step" and early and schedule.epochs:
        raise UserError(
            f"{where}: schedule.steps: {early[0]} from the end of {schedule.epochs} epochs is before their start, so "
            "that the rate would be reduced throughout; set schedule.steps for these epochs, e.g. [-2,-1]"
        )


def dataset_folder(dataset: str) -> Path:
    return data_root() / dataset
