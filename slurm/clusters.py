"""Presets: what is particular to a place where jobs run. Facts about clusters are in YAML files, none in the source."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from whitebench.errors import UserError, nearest
from whitebench.yaml import read_yaml

PRESETS = Path(__file__).parent / "clusters"
KINDS = ("slurm", "local", "debug")


@dataclass(frozen=True)
class Share:
    """What jobs of a stage ask for, where a sweep does not say."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int | None = None
    """Per node."""
    cpus: int | None = None
    """Per process; None: as many as it has threads."""
    memory_gb: float | None = None
    """Per node."""
    memory_per_gpu_gb: float | None = None
    """Of jobs that have GPUs, in place of `memory_gb`."""
    hours: float | None = None
    """Time limit of a job. A run that needs longer is saved shortly before and queued again."""


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
    """A job is told so long before its limit that it must save itself; more than a step and a checkpoint take."""
    throttle: int = 256
    """Tasks of an array that may run at the same time."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Any further options of sbatch, e.g. {nice: 100, exclusive: true}."""
    scratch: str | None = None
    """A folder on each node's own disk, to which a dataset is copied once; the node's variables may stand in it."""
    slots: int | None = None
    """Local: cores that jobs may use together; None: all of this machine."""

    def share(self, stage: str) -> Share:
        """The stage's exceptions, filled up with what holds for all stages."""
        own = self.stages.get(stage, Share())
        inherited = {name: getattr(self, name) for name in Share.__dataclass_fields__ if getattr(own, name) is None}
        if own.memory_gb is not None:
            inherited.pop("memory_per_gpu_gb", None)
        return replace(own, **inherited)


def load_preset(name: str, dry_run: bool = False) -> Preset:
    """The preset `name`; "auto" is `slurm` where SLURM answers, else `local`. A dry run needs no SLURM that answers.

    Raises:
        UserError: there is none of that name, or a key or value in it is wrong.
    """
    from whitebench.config import validated

    path, raw = read_preset(name)
    if isinstance(raw.get("environment"), dict):
        raw["environment"] = {key: os.path.expandvars(str(value)) for key, value in raw["environment"].items()}
    preset: Preset = validated(Preset, raw, where=str(path))
    if preset.kind == "slurm" and not dry_run and not slurm_answers():
        raise UserError(f"--cluster {name}: SLURM does not answer here (sinfo); on this machine alone: --cluster local")
    return preset


def enter_environment(name: str) -> None:
    """Sets the preset's variables in this process. They decide where runs and data are, for `--status` also."""
    _, raw = read_preset(name)
    environment = raw.get("environment") or {}
    if isinstance(environment, dict):
        os.environ.update({key: os.path.expandvars(str(value)) for key, value in environment.items()})


def read_preset(name: str) -> tuple[Path, dict[str, Any]]:
    """The preset's file and content, not yet checked."""
    if name == "auto":
        name = "slurm" if slurm_answers() else "local"
    path = _find(name)
    raw = read_yaml(path) or {}
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a preset is a mapping of keys")
    return path, raw


def slurm_answers() -> bool:
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return False
    try:
        return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _find(name: str) -> Path:
    """One's own folder ($WHITEBENCH_CLUSTERS) goes before the suite's; a path is taken as it is."""
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise UserError(f"--cluster {name}: no such file")
    own = os.environ.get("WHITEBENCH_CLUSTERS")
    folders = [Path(own)] if own else []
    for folder in [*folders, PRESETS]:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = {path.stem for folder in [*folders, PRESETS] for path in folder.glob("*.yaml")}
    raise UserError(f"unknown cluster '{name}'{nearest(name, {'auto', *known})}")
