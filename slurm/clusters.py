"""Presets: what is particular to a cluster or a host. Facts about clusters are in YAML files, none in the source."""

import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from slurm.resource_requests import check_request, merged_options, refuse_booleans
from slurm.slurm_command import ask, is_installed
from whitebench.errors import UserError, nearest, printable
from whitebench.yaml import read_yaml

PRESETS = Path(__file__).parent / "clusters"
FOLDERS = ("WHITEBENCH_RUNS", "WHITEBENCH_DATA")


@dataclass(frozen=True)
class Share:
    """What jobs of a stage ask for, where a sweep does not say."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int | str | None = None
    """Per node: a number, or with their type as in `a100:4`."""
    cpus: int | None = None
    """Per process; None: as many as it has threads."""
    memory_gb: float | None = None
    """Per node."""
    memory_per_gpu_gb: float | None = None
    """Of jobs that have GPUs, in place of `memory_gb`."""
    hours: float | None = None
    """Time limit of a job. A run that needs longer is saved shortly before and queued again."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Any further options of sbatch, e.g. {nice: 100, exclusive: true}."""


@dataclass(frozen=True)
class Preset(Share):
    kind: Literal["slurm", "local", "debug"] = "slurm"
    stages: dict[str, Share] = field(default_factory=dict)
    """Exceptions for stages, e.g. {knn: {partition: short}}."""
    setup: tuple[str, ...] = ()
    """Shell lines before a job starts: module load ..., source .../activate."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the launcher and its jobs: WHITEBENCH_RUNS, WHITEBENCH_DATA, ..."""
    signal_delay_s: int = 120
    """A job is warned this long before its limit, so that it can save; more than a step and a checkpoint take."""
    throttle: int = 256
    """Tasks of an array that may run at the same time."""
    scratch: str | None = None
    """A folder on each node's own disk, to which a dataset is copied once; may hold the node's variables."""
    slots: int | None = None
    """Local: cores that jobs may use together; None: all of this machine."""
    max_jobs: int | None = None
    """Jobs that you may have in SLURM's queue; None: as far as SLURM's accounting says."""

    def share(self, stage: str) -> Share:
        """The stage's exceptions, completed by what holds for all stages."""
        stage_share = self.stages.get(stage, Share())
        names = [entry.name for entry in fields(Share) if entry.name != "sbatch"]
        inherited = {name: getattr(self, name) for name in names if getattr(stage_share, name) is None}
        if stage_share.memory_gb is not None:
            inherited.pop("memory_per_gpu_gb", None)
        return replace(stage_share, **inherited, sbatch=merged_options(self.sbatch, stage_share.sbatch))


def load_preset(name: str, dry_run: bool = False) -> Preset:
    """The preset `name`; "auto" is `slurm` where SLURM is installed, else `local`.

    Raises:
        UserError: there is none of that name, a key or value in it is wrong, or SLURM does not answer. A dry run needs
            no SLURM on this machine; one that is there must answer.
    """
    from whitebench.config import validated

    path, raw = read_preset(name)
    if isinstance(raw.get("environment"), dict):
        raw["environment"] = _environment(raw["environment"], path)
    for key, section in [("", raw), *_sections(raw)]:
        refuse_booleans(section, f"{path}: {key}")
    preset: Preset = validated(Preset, raw, where=str(path))
    _check(preset, path)
    if preset.kind == "slurm" and not is_installed():
        if not dry_run:
            raise UserError(
                f"--cluster {name}: no SLURM here (sbatch not found); on this machine alone: --cluster local"
            )
    elif preset.kind == "slurm":
        require_answer(name)
    return preset


def require_answer(name: str) -> None:
    """Raises `SlurmUnavailable` where the controller does not answer."""
    try:
        ask("sinfo", "-h", "-o", "%P")
    except UserError as error:
        raise type(error)(f"--cluster {name}: {error}; to run on this machine alone: --cluster local") from error


def enter_environment(name: str) -> None:
    """Sets the preset's variables in this process. They decide where runs and data are, for `--status` also."""
    path, raw = read_preset(name)
    environment = raw.get("environment") or {}
    if isinstance(environment, dict):
        os.environ.update(_environment(environment, path))
    for variable in FOLDERS:
        value = os.environ.get(variable, "")
        if value.startswith("~") or "$" in value:
            raise UserError(f"{variable}={value}: not a folder; the shell did not expand it")


def read_preset(name: str) -> tuple[Path, dict[str, Any]]:
    """The preset's file and content, not yet checked."""
    if name == "auto":
        name = "slurm" if is_installed() else "local"
    path = _find(name)
    raw = read_yaml(path) or {}
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a preset is a mapping of keys")
    return path, {str(key): value for key, value in raw.items()}


def expand(text: str, where: str) -> str:
    """`~` and variables replaced by what they stand for, in each part of a list of paths.

    Raises:
        UserError: a variable is not set, or no such user exists: it would become a folder of that very name.
    """
    expanded = ":".join(os.path.expanduser(part) for part in os.path.expandvars(text).split(":"))
    unset = re.search(r"\$(\w+|\{[^}]*\})", expanded)
    if unset:
        raise UserError(f"{where}: the variable {unset[0]} is not set")
    if any(part.startswith("~") for part in expanded.split(":")):
        raise UserError(f"{where}: '{text}': no such user")
    return expanded


def _environment(raw: dict[Any, Any], path: Path) -> dict[str, str]:
    for key, value in raw.items():
        where = f"{path}: environment.{printable(str(key))}"
        if not re.fullmatch(r"[A-Za-z_]\w*", str(key), re.ASCII):
            raise UserError(f"{where}: not the name of a variable")
        if value is None or isinstance(value, dict | list):
            raise UserError(f"{where}: must be a text, not {value!r}")
    return {str(key): expand(str(value), f"{path}: environment.{key}") for key, value in raw.items()}


def _sections(raw: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    stages = raw.get("stages")
    entries = stages.items() if isinstance(stages, dict) else ()
    return [(f"stages.{name}.", share) for name, share in entries if isinstance(share, dict)]


def _check(preset: Preset, path: Path) -> None:
    """What types cannot say."""
    check_request(preset, f"{path}: ")
    for name, share in preset.stages.items():
        check_request(share, f"{path}: stages.{name}.")


def _find(name: str) -> Path:
    """The user's folder ($WHITEBENCH_CLUSTERS) takes precedence over the project's; a path is taken as it is."""
    if name.endswith((".yaml", ".yml")):
        path = Path(expand(name, "--cluster"))
        if path.is_file():
            return path
        raise UserError(f"--cluster {name}: file not found")
    user_folder = os.environ.get("WHITEBENCH_CLUSTERS")
    folders = [Path(user_folder)] if user_folder else []
    for folder in [*folders, PRESETS]:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    names = {path.stem for folder in [*folders, PRESETS] for path in folder.glob("*.yaml")}
    raise UserError(f"unknown cluster '{name}'{nearest(name, {'auto', *names})}")
