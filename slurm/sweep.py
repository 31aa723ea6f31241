"""What a sweep is: recipes x grid x seeds, and the stages that every cell goes through; read strictly from YAML."""

import itertools
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from slurm.resource_requests import check_request, refuse_booleans
from slurm.stages import LEADERBOARD, STAGES, stage_options
from whitebench.errors import UserError, nearest
from whitebench.yaml import read_yaml

SWEEPS = Path(__file__).parent / "sweeps"
DEFAULT = "sample"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", re.ASCII)
"""Of a sweep or a stage: it becomes the name of a folder."""
RESERVED_NAMES = frozenset({"code", "jobs.jsonl"})
"""Other files in the folder of sweeps."""
ALONE = frozenset({"pretrain", "convert", LEADERBOARD})
"""Stages that a sweep has once: the others build on them by their names."""
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class StageSpec:
    """What a sweep says of a stage. In YAML a stage's own options are written next to these keys."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    recipes: tuple[str, ...] | None = None
    """Only cells of these recipes run the stage; None: all."""
    seeds: tuple[int, ...] | None = None
    """The stage is repeated with each of them (fine-tuning seeds of `detect`)."""
    needs: tuple[str, ...] | None = None
    """Stages that must be done before; None: as built in, or `pretrain` for a user's stage."""
    stage: str | None = None
    """The built-in stage that this is, with options of its own (a second protocol, say); None: that of its name."""
    function: str | None = None
    """`module:name` of a user's stage (or one that replaces a built-in stage): see `slurm.stages.USER_STAGE`."""
    options: dict[str, Any] = field(default_factory=dict)
    nodes: int = 1
    gpus: int | str | None = None
    """Per node: a number, or with their type as in `a100:4`; None: as the cluster's preset says. `per-process`, of
    `pretrain`: one for each process of the recipe, divided over the nodes."""
    cpus: int | None = None
    """Per process; None: as many as it has threads."""
    memory_gb: float | None = None
    """Per node."""
    hours: float | None = None
    """Time limit on a cluster; a run that needs longer is saved and queued again. Also orders local jobs."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch for this stage; they replace the preset's, and null takes one out."""


@dataclass(frozen=True)
class Sweep:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str
    recipes: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted recipe keys to the values each takes; the cells are their product."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted recipe keys to a value, for every cell."""
    stages: dict[str, StageSpec] = field(default_factory=dict)
    cluster: str = "auto"


@dataclass(frozen=True)
class Cell:
    """One pretraining and what follows from it."""

    recipe: str
    seed: int
    overrides: dict[str, Any]
    """Dotted recipe keys to values: the sweep's, the grid point's and the seed."""
    point: dict[str, Any]
    """The grid point alone."""

    def __str__(self) -> str:
        return " ".join([self.recipe, f"seed={self.seed}", *(f"{key}={value}" for key, value in self.point.items())])


def sweep_path(name: str) -> Path:
    """The file of the sweep `name`: of `slurm/sweeps`, or a path to a YAML file.

    Raises:
        UserError: there is none; the nearest names are given.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else SWEEPS / f"{name}.yaml"
    if not path.is_file() and not path.is_absolute() and (SWEEPS.parent / path).is_file():
        path = SWEEPS.parent / path  # sweeps/sample.yaml, from any folder
    if not path.is_file():
        names = [file.stem for file in SWEEPS.glob("*.yaml")]
        raise UserError(f"unknown sweep '{name}'{nearest(path.stem, names)}")
    return path


def load_sweep(name: str, changes: list[str], overrides: list[str]) -> Sweep:
    """The sweep `name`, changed by 'key=value' texts: `changes` to the sweep, `overrides` to the recipe of every cell.

    Raises:
        UserError: one line for the first fault, with the nearest valid key or name.
    """
    from whitebench.config import parse_override, set_dotted, validated

    path = sweep_path(name)
    raw = read_sweep(path)
    raw.setdefault("overrides", {})
    recipes_of_file = raw.get("recipes")
    for key, value in map(parse_override, changes):
        set_dotted(raw, key, value)
    raw["overrides"] = {**_mapping(raw["overrides"], path, "overrides"), **dict(map(parse_override, overrides))}
    stages = {"pretrain": {}, **_mapping(raw.get("stages"), path, "stages")}
    raw["stages"] = {stage: _stage(stage, spec, path) for stage, spec in stages.items()}
    for key, seeds in [
        ("seeds", raw.get("seeds")),
        *((f"stages.{s}.seeds", v.get("seeds")) for s, v in raw["stages"].items()),
    ]:
        if isinstance(seeds, list) and any(isinstance(seed, bool | float | str) for seed in seeds):
            raise UserError(f"{path}: {key}: seeds are whole numbers, not {seeds}")
    _narrow(raw, recipes_of_file)
    sweep: Sweep = validated(Sweep, raw, where=str(path))
    _check(sweep, path)
    return sweep


def cells(sweep: Sweep) -> list[Cell]:
    """All cells of one seed come before those of the next, so that a whole leaderboard is complete early."""
    keys = list(sweep.grid)
    points = [dict(zip(keys, values)) for values in itertools.product(*sweep.grid.values())]
    return [
        Cell(recipe, seed, {**sweep.overrides, **point, "seed": seed}, point)
        for seed in sweep.seeds
        for recipe in sweep.recipes
        for point in points
    ]


def read_sweep(path: Path) -> dict[str, Any]:
    """The file's content, checked only to be a mapping; without a `name` in it the file's name is taken."""
    return {"name": path.stem, **_mapping(read_yaml(path), path, "a sweep")}


def _mapping(value: Any, path: Path, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what}: must be a mapping of keys, not {value!r}")
    return {str(key): item for key, item in value.items()}


def _stage(name: str, raw: Any, path: Path) -> dict[str, Any]:
    """Separates the keys of `StageSpec` from the stage's own `options`, which YAML has at one level."""
    spec = _mapping(raw, path, f"stages.{name}")
    stage = str(spec.get("stage") or name)
    if stage not in STAGES and "function" not in spec:
        key = f"stages.{name}.stage: unknown stage '{stage}'" if "stage" in spec else f"stages.{name}: unknown stage"
        raise UserError(f"{path}: {key}{nearest(stage, STAGES)}")
    if "stage" in spec and ("function" in spec or (stage != name and (name in STAGES or stage in ALONE))):
        raise UserError(f"{path}: stages.{name}.stage: {_why_not_a_variant(name, stage, spec)}")
    general = {f.name for f in fields(StageSpec)}
    specific = set() if spec.get("function") else stage_options(stage)
    for key in spec:
        if key not in general | specific:
            raise UserError(f"{path}: stages.{name}.{key}: unknown key{nearest(key, general | specific)}")
    refuse_booleans(spec, f"{path}: stages.{name}.")
    options = _mapping(spec.pop("options", None), path, f"stages.{name}.options")
    flat = {key: spec.pop(key) for key in list(spec) if key not in general}
    return {**spec, "options": {**options, **flat}}


def _why_not_a_variant(name: str, stage: str, spec: dict[str, Any]) -> str:
    if "function" in spec:
        return "a stage has a function of its own or is a built-in stage, not both"
    if name in STAGES:
        return f"'{name}' is a built-in stage itself; choose another name, e.g. {stage}-2"
    return f"a cell has one {stage}"


def _narrow(raw: dict[str, Any], recipes_of_file: Any) -> None:
    """Takes recipes that a change has removed from the sweep out of its stages, too."""
    if not isinstance(recipes_of_file, list) or not isinstance(raw.get("recipes"), list):
        return
    dropped = [recipe for recipe in recipes_of_file if recipe not in raw["recipes"]]
    for spec in raw["stages"].values():
        if isinstance(spec.get("recipes"), list):
            spec["recipes"] = [recipe for recipe in spec["recipes"] if recipe not in dropped]


def _check(sweep: Sweep, path: Path) -> None:
    """Checks what types cannot express."""
    from pretrain.recipe import recipe_names

    if not NAME.fullmatch(sweep.name) or sweep.name in RESERVED_NAMES:
        raise UserError(f"{path}: name: '{sweep.name}' cannot be a folder's name; letters, digits and _ . + - can")
    if not sweep.recipes:
        raise UserError(f"{path}: recipes: at least one is needed")
    for recipe in sweep.recipes:
        if not recipe.endswith((".yaml", ".yml")) and recipe not in recipe_names():
            raise UserError(f"{path}: recipes: unknown recipe '{recipe}'{nearest(recipe, recipe_names())}")
    _distinct(sweep.recipes, f"{path}: recipes")
    _seeds(sweep.seeds, f"{path}: seeds")
    for key, values in sweep.grid.items():
        if not values:
            raise UserError(f"{path}: grid.{key}: the list is empty, so there would be no cells")
        _distinct(values, f"{path}: grid.{key}")
    for key in ("seed", "name"):
        if key in sweep.grid or key in sweep.overrides:
            raise UserError(f"{path}: a sweep cannot override '{key}'; for seeds say seeds: [0, 1] or --seeds 0,1")
    for name, spec in sweep.stages.items():
        _check_stage(sweep, name, spec, f"{path}: stages.{name}")


def _check_stage(sweep: Sweep, name: str, spec: StageSpec, where: str) -> None:
    if not NAME.fullmatch(name) or name == "sweeps":
        raise UserError(f"{where}: '{name}' cannot be a folder's name; letters, digits and _ . + - can")
    for recipe in spec.recipes or ():
        if recipe not in sweep.recipes:
            raise UserError(f"{where}.recipes: '{recipe}' is not in the sweep{nearest(recipe, sweep.recipes)}")
    if spec.seeds is not None:
        _seeds(spec.seeds, f"{where}.seeds")
        if not spec.function and not STAGES[spec.stage or name].seeded:
            seeded = [stage for stage, definition in STAGES.items() if definition.seeded]
            raise UserError(f"{where}.seeds: only {', '.join(seeded)} can be repeated with seeds of their own")
    for need in spec.needs or ():
        if need not in sweep.stages and need not in STAGES:
            raise UserError(f"{where}.needs: unknown stage '{need}'{nearest(need, {*sweep.stages, *STAGES})}")
    check_request(spec, f"{where}.")


def _seeds(seeds: tuple[int, ...], where: str) -> None:
    if not seeds:
        raise UserError(f"{where}: at least one is needed")
    if min(seeds) < 0:
        raise UserError(f"{where}: seeds are not negative")
    if max(seeds) > LARGEST_SEED:
        raise UserError(f"{where}: {max(seeds)} is too large for a seed; the largest is {LARGEST_SEED}")
    _distinct(seeds, where)


def _distinct(values: tuple[Any, ...] | list[Any], where: str) -> None:
    repeated = [value for i, value in enumerate(values) if value in list(values)[:i]]
    if repeated:
        raise UserError(f"{where}: {repeated[0]!r} is listed twice")
