"""What a sweep is: recipes x grid x seeds, and the stages that every cell goes through; read strictly from YAML."""

import itertools
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from slurm.stages import STAGES, known_options
from whitebench.errors import UserError, nearest
from whitebench.yaml import read_yaml

SWEEPS = Path(__file__).parent / "sweeps"
DEFAULT = "sample"


@dataclass(frozen=True)
class StageSpec:
    """What a sweep says of a stage. In YAML a stage's own options stand beside these keys."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    recipes: tuple[str, ...] | None = None
    """Only cells of these recipes run the stage; None: all."""
    seeds: tuple[int, ...] | None = None
    """The stage is repeated with each of them (fine-tuning seeds of `detect`)."""
    needs: tuple[str, ...] | None = None
    """Stages that must be done before; None: as built in, or `pretrain` for a stage of one's own."""
    function: str | None = None
    """`module:name` of a stage of one's own (or one that stands in for a built-in): see `slurm.stages.OwnStage`."""
    options: dict[str, Any] = field(default_factory=dict)
    nodes: int = 1
    gpus: int | None = None
    """Per node; None: as the cluster's preset says."""
    cpus: int | None = None
    """Per process; None: as many as it has threads."""
    memory_gb: float | None = None
    """Per node."""
    hours: float | None = None
    """Time limit on a cluster; a run that needs longer is saved and queued again. Also orders local jobs."""


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
    if not path.is_file():
        names = [known.stem for known in SWEEPS.glob("*.yaml")]
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
    written = raw.get("recipes")
    for key, value in map(parse_override, changes):
        set_dotted(raw, key, value)
    raw["overrides"] = {**_mapping(raw["overrides"], path, "overrides"), **dict(map(parse_override, overrides))}
    stages = {"pretrain": {}, **_mapping(raw.get("stages"), path, "stages")}
    raw["stages"] = {stage: _stage(stage, spec, path) for stage, spec in stages.items()}
    _narrow(raw, written)
    sweep: Sweep = validated(Sweep, raw, where=str(path))
    _check(sweep, path)
    return sweep


def cells(sweep: Sweep) -> list[Cell]:
    """One seed of everything comes before the next seed, so that a whole leaderboard stands early."""
    keys = list(sweep.grid)
    points = [dict(zip(keys, values)) for values in itertools.product(*sweep.grid.values())]
    return [
        Cell(recipe, seed, {**sweep.overrides, **point, "seed": seed}, point)
        for seed in sweep.seeds
        for recipe in sweep.recipes
        for point in points
    ]


def read_sweep(path: Path) -> dict[str, Any]:
    """The file's content, not yet checked but for its being a mapping; the name is the file's where it says none."""
    return {"name": path.stem, **_mapping(read_yaml(path), path, "a sweep")}


def _mapping(value: Any, path: Path, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what}: must be a mapping of keys, not {value!r}")
    return {str(key): item for key, item in value.items()}


def _stage(name: str, raw: Any, path: Path) -> dict[str, Any]:
    """Splits what stands beside each other in YAML into `StageSpec` keys and the stage's own `options`."""
    spec = _mapping(raw, path, f"stages.{name}")
    if name not in STAGES and "function" not in spec:
        raise UserError(f"{path}: stages.{name}: unknown stage{nearest(name, STAGES)}")
    general = {f.name for f in fields(StageSpec)}
    own = set() if spec.get("function") else known_options(name)
    for key in spec:
        if key not in general | own:
            raise UserError(f"{path}: stages.{name}.{key}: unknown key{nearest(key, general | own)}")
    options = _mapping(spec.pop("options", None), path, f"stages.{name}.options")
    flat = {key: spec.pop(key) for key in list(spec) if key not in general}
    return {**spec, "options": {**options, **flat}}


def _narrow(raw: dict[str, Any], written: Any) -> None:
    """Recipes of the file that a change has taken out of the sweep leave its stages, too."""
    if not isinstance(written, list) or not isinstance(raw.get("recipes"), list):
        return
    dropped = [recipe for recipe in written if recipe not in raw["recipes"]]
    for spec in raw["stages"].values():
        if isinstance(spec.get("recipes"), list):
            spec["recipes"] = [recipe for recipe in spec["recipes"] if recipe not in dropped]


def _check(sweep: Sweep, path: Path) -> None:
    """What types cannot say."""
    from pretrain.recipe import recipe_names

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
            raise UserError(f"{path}: '{key}' is no override of a sweep; for seeds say seeds: [0, 1] or --seeds 0,1")
    for name, spec in sweep.stages.items():
        _check_stage(sweep, name, spec, f"{path}: stages.{name}")


def _check_stage(sweep: Sweep, name: str, spec: StageSpec, where: str) -> None:
    for recipe in spec.recipes or ():
        if recipe not in sweep.recipes:
            raise UserError(f"{where}.recipes: '{recipe}' is not in the sweep{nearest(recipe, sweep.recipes)}")
    if spec.seeds is not None:
        _seeds(spec.seeds, f"{where}.seeds")
        if not spec.function and not STAGES[name].seeded:
            seeded = [stage for stage, known in STAGES.items() if known.seeded]
            raise UserError(f"{where}.seeds: only {', '.join(seeded)} can be repeated with seeds of their own")
    for need in spec.needs or ():
        if need not in sweep.stages and need not in STAGES:
            raise UserError(f"{where}.needs: unknown stage '{need}'{nearest(need, {*sweep.stages, *STAGES})}")
    for key in ("nodes", "cpus", "gpus", "memory_gb", "hours"):
        value = getattr(spec, key)
        if value is not None and (value < 0 or (value == 0 and key != "gpus")):
            raise UserError(f"{where}.{key}: must be more than 0, not {value}")


def _seeds(seeds: tuple[int, ...], where: str) -> None:
    if not seeds:
        raise UserError(f"{where}: at least one is needed")
    if min(seeds) < 0:
        raise UserError(f"{where}: seeds are not negative")
    _distinct(seeds, where)


def _distinct(values: tuple[Any, ...] | list[Any], where: str) -> None:
    twice = [value for i, value in enumerate(values) if value in list(values)[:i]]
    if twice:
        raise UserError(f"{where}: {twice[0]!r} stands there twice")
