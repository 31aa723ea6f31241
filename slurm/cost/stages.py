"""What the stages after a pretraining cost: linear probe, k-NN, fine-tuning on few labels, and detection."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from slurm.cost.constants import Card, constants
from slurm.cost.estimate import energy_kwh
from slurm.cost.hardware import Hardware
from slurm.cost.quantity import Quantity, largest
from slurm.cost.reading import dataset_of, reading_of
from slurm.cost.step import step_time
from slurm.cost.work import work_of
from whitebench.errors import UserError

if TYPE_CHECKING:
    from pretrain.recipe import Recipe

EVALUATION_BATCH = 256


def linear_hours(recipe: "Recipe", hardware: Hardware, options: dict[str, Any], images: int | None) -> Quantity:
    """A probe that sees new crops passes through the network in every epoch, else once."""
    from pretrain.evaluate.protocol_kinds import Linear
    from pretrain.evaluate.protocols import find_protocol

    protocol = find_protocol("linear", options.get("protocol") or recipe.evaluation.linear)
    assert isinstance(protocol, Linear)
    epochs = int(options.get("epochs") or protocol.epochs) if protocol.augment else 1
    dataset = dataset_of(recipe, hardware, images)
    seen = epochs * (dataset.train + dataset.validation)
    return _passes(recipe, hardware, images, trained=False) * (seen / 3600)


def knn_hours(recipe: "Recipe", hardware: Hardware, options: dict[str, Any], images: int | None) -> Quantity:
    """One pass over both splits; the search itself is quick beside it."""
    dataset = dataset_of(recipe, hardware, images)
    return _passes(recipe, hardware, images, trained=False) * ((dataset.train + dataset.validation) / 3600)


def semi_hours(recipe: "Recipe", hardware: Hardware, options: dict[str, Any], images: int | None) -> Quantity:
    from pretrain.evaluate.protocol_kinds import Semi
    from pretrain.evaluate.protocols import find_protocol

    protocol = find_protocol("semi", options.get("protocol") or recipe.evaluation.semi)
    assert isinstance(protocol, Semi)
    dataset = dataset_of(recipe, hardware, images)
    epochs = int(options.get("epochs") or protocol.epochs)
    training = _passes(recipe, hardware, images, trained=True) * (dataset.train * protocol.percent / 100 * epochs)
    validation = _passes(recipe, hardware, images, trained=False) * (dataset.validation * epochs)
    return (training + validation) * (1 / 3600)


def detect_hours(hardware: Hardware, options: dict[str, Any]) -> Quantity:
    """From Detectron2's own table for 8 V100, by iterations, batch, number of GPUs and memory bandwidth."""
    from transfer.protocol import load_protocol, resolve

    constant = constants()
    protocol = load_protocol(str(options.get("protocol", "sample")))
    settings = resolve(protocol, iterations=options.get("iterations"), batch=options.get("batch"))
    if hardware.card is None:
        one = constant("detection.cpu_seconds") * (settings.batch / 4 * (settings.image_size / 96) ** 2 / 3600)
        return one * float(settings.iterations)
    family = detection_family(protocol.base)
    iteration = constant(f"detection.seconds.{family}") * (settings.batch / 16 * 8 / hardware.processes)
    evaluation = constant("detection.images") * constant(f"detection.evaluation_seconds.{family}") / hardware.processes
    size = (settings.image_size / 800) ** 2
    return (iteration * settings.iterations + evaluation) * (size / 3600) / _over_v100(hardware.card)


@dataclass(frozen=True)
class DetectionPlan:
    protocol: str
    hardware: Hardware
    hours: Quantity
    memory_gb: Quantity | None
    """Per GPU, by Detectron2's table for 2 images per GPU; None on a CPU."""

    @property
    def gpu_hours(self) -> Quantity:
        return self.hours * (self.hardware.processes if self.hardware.card else 0)

    def as_json(self) -> dict[str, Any]:
        kwh = energy_kwh(self.gpu_hours, self.hardware)
        return {
            "protocol": self.protocol,
            "hardware": str(self.hardware),
            "hours": self.hours.as_list(),
            "gpu_hours": self.gpu_hours.as_list(),
            "kwh": kwh.as_list() if kwh else None,
            "memory_gb": self.memory_gb.as_list() if self.memory_gb else None,
        }


def plan_of_detection(protocol: str, hardware: Hardware) -> DetectionPlan:
    """One fine-tuning and its evaluation.

    Raises:
        UserError: an unknown protocol, a batch that does not divide over the GPUs, or too little memory.
    """
    from transfer.protocol import load_protocol, resolve

    loaded = load_protocol(protocol)
    batch = resolve(loaded).batch
    if batch % hardware.processes:
        raise UserError(f"{protocol}: a batch of {batch} does not divide over {hardware.processes} GPUs")
    memory = None
    if hardware.card:
        of_two = constants()(f"detection.memory_gb.{detection_family(loaded.base)}")
        memory = of_two * (batch / hardware.processes / 2)
        if memory.low > hardware.card.memory_gb:
            raise UserError(
                f"{protocol}: {batch // hardware.processes} images per GPU need {memory} GB, and a "
                f"{hardware.card.title} has {hardware.card.memory_gb:g}; use more GPUs"
            )
    return DetectionPlan(protocol, hardware, detect_hours(hardware, {"protocol": protocol}), memory)


def detection_family(base: str) -> str:
    """c4 or fpn, by the name of Detectron2's config."""
    return "c4" if "C4" in base or "DC5" in base else "fpn"


def _over_v100(card: Card) -> Quantity:
    """Speed of a detector over that on a V100."""
    constant = constants()
    ratio, share = card.bandwidth / constant.card("v100").bandwidth, constant("detection.card_share")
    return Quantity(ratio**share.value, *sorted((ratio**share.low, ratio**share.high)))


def _passes(recipe: "Recipe", hardware: Hardware, images: int | None, trained: bool) -> Quantity:
    """Seconds per image of the backbone alone on one view, or of its reading where that takes longer."""
    plain = backbone_alone(recipe)
    work = work_of(plain, EVALUATION_BATCH)
    computing = step_time(plain, work, replace(hardware, gpus=1, nodes=1), EVALUATION_BATCH).total
    if not trained:
        computing = computing * constants()("step.forward_only")
    reading = reading_of(plain, hardware, dataset_of(plain, hardware, images))
    cores = float(hardware.cores or recipe.machine.workers)
    return largest(computing * (1 / EVALUATION_BATCH), reading.cpu_ms * (1 / 1000 / cores)) * (
        1 / max(1, hardware.processes)
    )


def backbone_alone(recipe: "Recipe") -> "Recipe":
    """The recipe's backbone as a classifier of one view of the evaluation's size, in float32 as evaluations run."""
    from pretrain.method import find_method
    from pretrain.recipe_sections import Colour, Views

    crop = recipe.evaluation_crop
    return replace(
        recipe,
        method=find_method("supervised").Config(classes=1000),
        data=replace(recipe.data, views=(Views(size=crop),), colour=Colour(), loader="ffcv"),
        network=replace(recipe.network, projector=(), whitening="none"),
        precision="fp32",
    )
