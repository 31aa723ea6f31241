"""Plans as text for people."""

from slurm.cost.estimate import Estimate, energy_kwh
from slurm.cost.quantity import Quantity
from slurm.cost.stages import DetectionPlan
from slurm.cost.sweep import Row, SweepCost


def estimate_text(plan: Estimate) -> str:
    recipe = plan.recipe
    sizes = recipe.view_sizes
    views = " + ".join(f"{sizes.count(size)} x {size}" for size in dict.fromkeys(sizes))
    gflops = plan.work.flops / 1e9
    lines = [
        f"{recipe.name} on {plan.hardware}",
        f"  {recipe.network.backbone}, views {views}, batch {recipe.batch} ({plan.local_batch} per "
        f"{'GPU' if plan.hardware.card else 'process'}), {recipe.precision}, {recipe.schedule.epochs} epochs of "
        f"{plan.dataset.train:,} images; {gflops:,.1f} GFLOP per image, {plan.work.parameters / 1e6:,.1f} M parameters",
        "",
        f"  images/s        {plan.images_per_s}",
        f"  hours           {plan.hours}",
    ]
    if plan.hardware.card:
        lines += [
            f"  GPU-hours       {plan.gpu_hours}",
            f"  energy, kWh     {plan.kwh}, of the cards alone",
            f"  memory, GB      {plan.memory_gb} per GPU, of {plan.hardware.card.memory_gb:g}",
            f"  CPU cores       {plan.cores_per_gpu} per GPU keep up with the step (the plan has {_cores(plan):g})",
        ]
    lines += [f"  bottleneck      {plan.bottleneck}", "", *_bottlenecks(plan)]
    lines += [f"  note: {note}" for note in plan.notes]
    return "\n".join([*lines, "", *SMALL_PRINT])


def detection_text(plan: DetectionPlan) -> str:
    lines = [f"detection {plan.protocol} on {plan.hardware}", "", f"  hours           {plan.hours}"]
    if plan.hardware.card:
        lines += [
            f"  GPU-hours       {plan.gpu_hours}",
            f"  energy, kWh     {energy_kwh(plan.gpu_hours, plan.hardware)}, of the cards alone",
            f"  memory, GB      {plan.memory_gb} per GPU, of {plan.hardware.card.memory_gb:g}",
        ]
    return "\n".join([*lines, "", *SMALL_PRINT])


SMALL_PRINT = (
    "In brackets: the interval. Constants with their sources: benchmarks/constants.yaml; plans beside measured and",
    "published times: benchmarks/plan_check.py.",
)


def _cores(plan: Estimate) -> float:
    cores = plan.hardware.cores
    return plan.recipe.machine.workers if cores is None else cores / plan.hardware.gpus


def _bottlenecks(plan: Estimate) -> list[str]:
    lines = ["  ms per step"]
    for name, seconds in plan.seconds.items():
        value = f"{seconds * 1000}" if seconds.value else "-"
        lines.append(f"    {name:12}  {value}{'   <-' if name == plan.bottleneck else ''}")
    return lines


def sweep_text(cost: SweepCost) -> str:
    card = cost.hardware.card.title if cost.hardware.card else "CPU"
    notes = dict.fromkeys(note for row in cost.rows if row.detail for note in row.detail.notes)
    lines = [f"sweep {cost.name} on {card}, estimated", "", *sweep_rows(cost), *_cores_needed(cost)]
    return "\n".join([*lines, *(f"  note: {note}" for note in notes), "", *SMALL_PRINT])


def sweep_rows(cost: SweepCost, most: int | None = None) -> list[str]:
    """A table of at most so many rows, the sum, and what is not in it."""
    heads = ("recipe", "stage", "jobs", "GPUs", "hours each", "GPU-hours", "bottleneck")
    table_rows = cost.rows if most is None else cost.rows[:most]
    rows = [heads, *(_cells(row) for row in table_rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines += [f"  ... and {len(cost.rows) - len(table_rows)} more rows"] if len(table_rows) < len(cost.rows) else []
    return [*lines, "", f"  {summary(cost)}", *(f"  not estimated: {text}" for text in (*cost.unknown, *cost.errors))]


def _cores_needed(cost: SweepCost) -> list[str]:
    cores = [row.detail.cores_per_gpu for row in cost.rows if row.detail and row.gpus]
    if not cores:
        return []
    return [f"  CPU cores per GPU that pretraining needs, at most: {max(cores, key=lambda needed: needed.value)}"]


def summary(cost: SweepCost) -> str:
    """One line."""
    if cost.hardware.card is None:
        hours: Quantity = Quantity.exact(0.0)
        for row in cost.rows:
            hours = hours + (row.hours or Quantity.exact(0.0)) * float(row.jobs)
        return f"in all {hours} hours of jobs on a CPU"
    days = cost.gpu_hours * (1 / 24 / 8)
    jobs = sum(row.jobs for row in cost.rows)
    return f"in all {jobs} jobs, {cost.gpu_hours} GPU-hours ({days} days of 8 GPUs), {cost.kwh} kWh"


def _cells(row: Row) -> tuple[str, ...]:
    hours = str(row.hours) if row.hours else "?"
    bottleneck = row.detail.bottleneck if row.detail else ""
    return (row.recipe, row.stage, str(row.jobs), str(row.gpus), hours, str(row.gpu_hours), bottleneck)
