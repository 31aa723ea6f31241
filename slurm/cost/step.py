"""Seconds and memory of one training step on one card, and of its gradients on the network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurm.cost.constants import Card, constants
from slurm.cost.hardware import Hardware
from slurm.cost.quantity import Quantity, largest
from slurm.cost.work import Work

if TYPE_CHECKING:
    from pretrain.recipe import Recipe


@dataclass(frozen=True)
class StepTime:
    """Seconds."""

    compute: Quantity
    """Of one card, alone."""
    network: Quantity
    """What the other cards add: gradients that the backward pass does not hide, and synchronised norms."""

    @property
    def total(self) -> Quantity:
        return self.compute + self.network


def step_time(recipe: "Recipe", work: Work, hardware: Hardware, local_batch: int) -> StepTime:
    if hardware.card is None:
        rate = constants()("cpu.gflops_per_core") * (1e9 * (hardware.cores or recipe.threads))
        compute = Quantity.exact(work.flops * local_batch) / rate
        return StepTime(compute, Quantity.exact(0.0))
    compute = _compute(recipe, work, hardware.card, local_batch)
    waiting = _node_efficiency(min(hardware.gpus, 8)).inverse() - 1.0
    within = compute.value * waiting.value, compute.low * waiting.low, compute.high * waiting.high
    between = _between_nodes(work, hardware) - constants()("scaling.overlap") * compute
    return StepTime(compute, Quantity(*within) + _sync_bn(recipe, work, hardware) + between)


def _compute(recipe: "Recipe", work: Work, card: Card, local_batch: int) -> Quantity:
    """The slowest of memory traffic, products, and the host that starts kernels; and then the loss and the update."""
    constant, half = constants(), recipe.precision != "fp32"
    share = constant.choice("step.activation_share", _family(recipe.network.backbone))
    if not half:
        share = share * constant("step.single_precision_factor")
    kept_bytes = work.kept_bytes * (0.5 if half else 1.0)
    traffic = Quantity.exact(local_batch * kept_bytes / (card.bandwidth * 1e9)) / share
    peak = card.half_tflops if half else card.single_tflops
    trained = work.encoder_flops * 3 / (3 + work.target_share)
    products = Quantity.exact(local_batch * trained / (peak * 1e12)) / constant("step.peak_share")
    encoder = largest(traffic, products) * (constant("step.forward_only") * work.target_share + 1.0)
    other = Quantity.exact(local_batch * work.other_flops / (card.single_tflops * 1e12))
    other = other / constant("step.loss_peak_share") + Quantity.exact(0.0)
    update = constant("step.update_bytes") * (work.parameters / (card.bandwidth * 1e9))
    host = constant("step.launch_us") * (work.operations / 1e6)
    return largest(encoder + other + update, host)


def _family(backbone: str) -> str:
    name = backbone.removeprefix("timm:")
    return "vit" if name.startswith(("vit", "deit")) else name


def _node_efficiency(gpus: int) -> Quantity:
    """1 for one GPU, the published figure for 8, in between by doublings."""
    loss = Quantity.exact(1.0) - constants()("scaling.node")
    doublings = (gpus.bit_length() - 1) / 3
    return Quantity(1 - loss.value * doublings, 1 - loss.high * doublings, 1 - loss.low * doublings)


def _sync_bn(recipe: "Recipe", work: Work, hardware: Hardware) -> Quantity:
    if hardware.processes == 1 or not recipe.network.sync_bn:
        return Quantity.exact(0.0)
    return constants()("scaling.sync_bn_us") * (3 * work.norms / 1e6)


def _between_nodes(work: Work, hardware: Hardware) -> Quantity:
    """Of a ring over nodes: each sends and receives the gradients nearly twice."""
    if hardware.nodes == 1:
        return Quantity.exact(0.0)
    sent = 2 * (hardware.nodes - 1) / hardware.nodes * 4 * work.trained
    return Quantity.exact(sent / (hardware.network_gbit * 1e9 / 8)) / constants()("scaling.link_share")


def memory_gb(recipe: "Recipe", work: Work, local_batch: int) -> Quantity:
    """Of one card: weights, gradients, optimizer, views, and activations kept for the backward pass."""
    constant, half = constants(), recipe.precision != "fp32"
    states = 2 if recipe.optimizer.name.startswith("adam") else 1
    fixed = 4 * (work.parameters + (1 + states) * work.trained)
    views = 3 * sum(size * size for size in recipe.view_sizes) * (1 + 4)
    activations = work.kept_bytes * (0.5 if half else 1.0) + work.other_bytes + views
    return constant("memory.overhead") * ((fixed + local_batch * activations) / 1e9) + constant("memory.context_gb")
