"""Continuing a training with another number of processes (GPUs) than it was planned with.

`world_size` belongs to a run's identity, since batch statistics can depend on how the global batch is divided. Where
they do not (batch norm over all processes, and a loss of the joint batch), `machine.processes` trains the same run on
fewer or more GPUs: the same global batch, images and random draws, equal up to rounding. The record says so.
"""

from typing import Any

from pretrain.method import Method
from pretrain.recipe import Recipe
from whitebench.errors import UserError
from whitebench.hashing import canonical
from whitebench.records import Run, read_record, runs_root


def check_processes(recipe: Recipe, method: type[Method[Any]]) -> None:
    """Raises `UserError` if the result depends on the number of processes, and another than planned is asked for."""
    if recipe.processes == recipe.world_size:
        return
    if not recipe.network.sync_bn:
        raise UserError(f"machine.processes={recipe.processes}: batch norms are per process (network.sync_bn=false)")
    if not method.joint_batch(recipe.method):
        raise UserError(
            f"machine.processes={recipe.processes}: what {recipe.method_name} computes of a process's own "
            f"{recipe.batch // recipe.world_size} images would be of another number of them; it would train something "
            f"else (planned: world_size={recipe.world_size})"
        )


def record_processes(run: Run, recipe: Recipe, step: int) -> None:
    """Notes in the record with how many processes the training continues from `step`, where that changes."""
    starts = run.record.data.setdefault("processes", [])
    starts[:] = [start for start in starts if start["step"] < step]
    if (starts[-1]["processes"] if starts else recipe.world_size) != recipe.processes:
        starts.append({"step": step, "processes": recipe.processes})
    if not starts:
        del run.record.data["processes"]
        return
    parts = ", ".join(f"{start['processes']} from step {start['step']}" for start in starts)
    run.metrics["deviations"] = [f"processes: {parts}, planned {recipe.world_size}"]


def unfinished_with_other_world_size(recipe: Recipe, config: dict[str, Any]) -> str | None:
    """A line about a run that differs from this one in `world_size` alone and has not ended; None if there is none."""
    plain = canonical(config)
    for folder in sorted((runs_root() / "pretrain").glob(f"{recipe.label}-*")):
        try:
            record = read_record(folder)
        except UserError:  # of another run: not this one's concern
            continue
        if record is None or record.status == "done" or record.config == plain:
            continue
        size = record.config.get("world_size")
        if {**record.config, "world_size": recipe.world_size} == plain:
            return (
                f"{record.id}: unfinished run of this recipe with world_size={size}; to continue it here: "
                f"world_size={size} machine.processes={recipe.world_size}"
            )
    return None
