"""What a pretraining costs on given hardware, and what holds it back."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from slurm.cost.constants import constants
from slurm.cost.hardware import Hardware
from slurm.cost.quantity import Quantity, largest
from slurm.cost.reading import Dataset, Reading, dataset_of, reading_of
from slurm.cost.step import StepTime, memory_gb, step_time
from slurm.cost.work import Work, meta_method, work_of
from whitebench.errors import UserError

if TYPE_CHECKING:
    from pretrain.recipe import Recipe


@dataclass(frozen=True)
class Estimate:
    """Of a pretraining; rates are of all its GPUs together."""

    recipe: "Recipe"
    hardware: Hardware
    dataset: Dataset
    work: Work
    reading: Reading
    step: StepTime
    local_batch: int
    seconds: dict[str, Quantity]
    """Per step: decode (with crops) and colour, one after the other; beside them step and network; beside both disk."""
    images_per_s: Quantity
    hours: Quantity
    memory_gb: Quantity
    cores_per_gpu: Quantity
    """That the loader needs to keep up with the step."""
    notes: tuple[str, ...]

    @property
    def bottleneck(self) -> str:
        """The larger part of what takes longest: the loader's work, the step with its network, or the disk."""
        groups = (("decode", "colour"), ("step", "network"), ("disk",))
        slowest = max(groups, key=lambda group: sum(self.seconds[name].value for name in group))
        return max(slowest, key=lambda name: self.seconds[name].value)

    @property
    def gpu_hours(self) -> Quantity:
        return self.hours * (self.hardware.processes if self.hardware.card else 0)

    @property
    def kwh(self) -> Quantity | None:
        """Of the cards alone; None on a CPU."""
        return energy_kwh(self.gpu_hours, self.hardware)

    def as_json(self) -> dict[str, Any]:
        quantities = {
            "images_per_s": self.images_per_s,
            "hours": self.hours,
            "gpu_hours": self.gpu_hours,
            "kwh": self.kwh,
            "memory_gb": self.memory_gb,
            "cores_per_gpu": self.cores_per_gpu,
        }
        return {
            "recipe": self.recipe.name,
            "hardware": str(self.hardware),
            "bottleneck": self.bottleneck,
            **{name: quantity.as_list() if quantity else None for name, quantity in quantities.items()},
            "ms_per_step": {name: (quantity * 1000).as_list() for name, quantity in self.seconds.items()},
            "notes": list(self.notes),
        }


def energy_kwh(gpu_hours: Quantity, hardware: Hardware) -> Quantity | None:
    if hardware.card is None:
        return None
    return gpu_hours * constants()("energy.watts_share") * (hardware.card.watts / 1000)


def estimate(recipe: "Recipe", hardware: Hardware, images: int | None = None) -> Estimate:
    """Plans a pretraining.

    Args:
        images: of the training set, in place of its own number.
    Raises:
        UserError: the batch does not divide over the GPUs, or their memory cannot hold it.
    """
    local_batch = _local_batch(recipe, hardware)
    dataset = dataset_of(recipe, hardware, images)
    steps = max(1, dataset.train // recipe.batch) * recipe.schedule.epochs
    work, reading = work_of(recipe, local_batch), reading_of(recipe, hardware, dataset)
    step = step_time(recipe, work, hardware, local_batch)
    needed = memory_gb(recipe, work, local_batch)
    if hardware.card:
        _check_memory(needed, work, recipe, hardware, local_batch)
    seconds = _seconds(recipe, reading, step, hardware, dataset, local_batch)
    slowest = largest(seconds["decode"] + seconds["colour"], step.total, seconds["disk"])
    trained = work.trained > 0 and recipe.schedule.epochs > 0 and step.total.value > 0
    return Estimate(
        recipe=recipe,
        hardware=hardware,
        dataset=dataset,
        work=work,
        reading=reading,
        step=step,
        local_batch=local_batch,
        seconds=seconds,
        images_per_s=Quantity.exact(float(recipe.batch)) / slowest if trained else Quantity.exact(0.0),
        hours=slowest * (steps / 3600) if trained else Quantity.exact(0.0),
        memory_gb=needed,
        cores_per_gpu=(reading.cpu_ms * (local_batch / 1000) / step.total).ceiling()
        if trained
        else Quantity.exact(0.0),
        notes=_notes(recipe, hardware, work, dataset, needed, local_batch),
    )


def _cores_per_gpu(reading: Reading, step: StepTime, local_batch: int) -> Quantity:
    return (reading.cpu_ms * (local_batch / 1000) / step.total).ceiling()


def _local_batch(recipe: "Recipe", hardware: Hardware) -> int:
    processes = hardware.processes
    if recipe.batch % processes:
        divisors = [n for n in range(1, recipe.batch + 1) if recipe.batch % n == 0]
        close = sorted(sorted(divisors, key=lambda n: abs(n - processes))[:3])
        raise UserError(
            f"{recipe.name}: a batch of {recipe.batch} does not divide over {processes} GPUs "
            f"({hardware.nodes} nodes x {hardware.gpus}); try {', '.join(map(str, close))}, or batch=..."
        )
    return recipe.batch // processes


def _seconds(
    recipe: "Recipe", reading: Reading, step: StepTime, hardware: Hardware, dataset: Dataset, local_batch: int
) -> dict[str, Quantity]:
    if hardware.card is None:  # the loader and the network share the cores
        cores = float(hardware.cores or recipe.machine.workers)
    else:
        cores = float(recipe.machine.workers) if hardware.cores is None else hardware.cores / hardware.gpus
    on_cores = Quantity.exact(local_batch / 1000 / cores) / constants()("reading.batch_wait")
    fits = dataset.gigabytes <= 0.8 * hardware.memory_gb
    megabytes = Quantity.exact(local_batch * hardware.gpus * reading.kilobytes / 1000)
    return {
        "decode": (reading.decode_ms + reading.crop_ms) * on_cores,
        "colour": reading.colour_ms * on_cores,
        "step": step.compute,
        "network": step.network,
        "disk": Quantity.exact(0.0) if fits else megabytes / hardware.disk_rate,
    }


def _check_memory(needed: Quantity, work: Work, recipe: "Recipe", hardware: Hardware, local_batch: int) -> None:
    assert hardware.card is not None
    available = hardware.card.memory_gb
    if needed.low <= available:
        return
    fixed = memory_gb(recipe, work, 0)
    per_image = (needed.value - fixed.value) / local_batch
    fitting = int((available - fixed.value) / per_image)
    hint = "a larger card, or another network" if fitting < 1 else f"about {fitting} images per GPU fit"
    if fitting >= 1 and recipe.batch // fitting > hardware.processes:
        hint += f": {-(-recipe.batch // fitting)} GPUs or more for a batch of {recipe.batch}"
    raise UserError(
        f"{recipe.name}: {local_batch} images per GPU need {needed} GB, and a {hardware.card.title} has "
        f"{available:g}; {hint}"
    )


def _notes(
    recipe: "Recipe", hardware: Hardware, work: Work, dataset: Dataset, needed: Quantity, local_batch: int
) -> tuple[str, ...]:
    from pretrain.method import find_method
    from pretrain.processes import check_processes

    notes = []
    try:
        joint = find_method(recipe.method_name).joint_batch(recipe.method)
        meta_method(recipe).check(recipe.batch if joint else local_batch, len(recipe.view_sizes))
    except UserError as error:
        notes.append(f"it cannot be trained so, with {local_batch} images per GPU: {error}")
    if hardware.card and needed.value > hardware.card.memory_gb:
        notes.append(f"it may not fit: {needed} GB of {hardware.card.memory_gb:g}; fewer images per GPU, or more GPUs")
    if hardware.card and hardware.processes != recipe.world_size:
        try:
            other = replace(recipe, machine=replace(recipe.machine, processes=hardware.processes))
            check_processes(other, find_method(recipe.method_name))
        except UserError as error:
            notes.append(f"world_size={hardware.processes} is another run than world_size={recipe.world_size}: {error}")
    if not work.complete:
        notes.append("the loss works on the host or needs data: it is counted in part")
    if recipe.data.loader != "device" and not dataset.is_known:
        notes.append(f"'{dataset.name}' is not here: {dataset.train:,} images of {dataset.kilobytes:g} KB are assumed")
    if recipe.data.placement == "accelerator" and recipe.data.loader != "device":
        notes.append("colour on the accelerator has not been measured and is not counted")
    return tuple(notes)
