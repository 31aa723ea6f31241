"""Step 1 of `gpu.py`: whether everything computes on the device what it computes on a CPU.

Each function takes the device ("cuda", "cpu") and returns plain JSON with `passed` and what was measured.
"""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pretrain.data.batch import Batch
from pretrain.method import Method
from pretrain.recipe import load
from pretrain.repeatable import make_repeatable
from pretrain.training_step import TrainingStep
from tests.support import method_cases as cases

FLOAT64, FLOAT32 = 1e-8, 2e-2
"""Largest difference of values and gradients that passes, relative to the largest gradient."""
METHODS_IN_DDP = ("cwrgp", "intl", "simclr", "vicreg")


def losses(device: str, tiny: bool) -> dict[str, Any]:
    """Value and gradients of every loss, in float64 and float32, against float64 on the CPU."""
    differences = {name: _difference(name, device) for name in _some(cases.LOSSES, tiny)}
    failed = [name for name, (f64, f32) in differences.items() if not (f64 <= FLOAT64 and f32 <= FLOAT32)]
    return {
        "passed": not failed,
        "failed": failed,
        "largest": {
            kind: max(pair[n] for pair in differences.values()) for n, kind in enumerate(("float64", "float32"))
        },
        "differences": {name: [f"{f64:.1e}", f"{f32:.1e}"] for name, (f64, f32) in differences.items()},
    }


def _difference(name: str, device: str) -> tuple[float, float]:
    reference = _value_and_gradients(name, "cpu", torch.float64)
    off = [_relative(_value_and_gradients(name, device, dtype), reference) for dtype in (torch.float64, torch.float32)]
    return off[0], off[1]


def _value_and_gradients(name: str, device: str, dtype: torch.dtype) -> list[Tensor]:
    views = [view.to(device, dtype).requires_grad_() for view in cases.embeddings(16, 96)]
    with _inputs_on(device, dtype), torch.device(device):
        value = cases.LOSSES[name](views)
        gradients = torch.autograd.grad(value, views, allow_unused=True)
    return [value.detach().cpu().double(), *(g.cpu().double() for g in gradients if g is not None)]


@contextmanager
def _inputs_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Meanwhile the fixed inputs of the losses are on the device, the same numbers as on the CPU."""
    fixed = {name: getattr(cases, name) for name in ("OTHERS", "SAME", "directions", "orders")}

    def drawn_on_cpu(draw: Any) -> Any:
        def moved(views: list[Tensor]) -> Any:
            with torch.device("cpu"):
                drawn = draw([view.detach().cpu() for view in views])
            if isinstance(drawn, list):
                return [one.to(device) for one in drawn]
            return drawn.to(device, dtype)

        return moved

    try:
        cases.OTHERS, cases.SAME = cases.OTHERS.to(device, dtype), cases.SAME.to(device)
        cases.directions, cases.orders = drawn_on_cpu(fixed["directions"]), drawn_on_cpu(fixed["orders"])
        yield
    finally:
        for name, value in fixed.items():
            setattr(cases, name, value)


def _relative(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Infinity where something is not finite."""
    scale = max(1e-4, *(float(gradient.abs().max()) for gradient in expected[1:]))  # SupCon's can vanish
    off = [float((a - b).abs().max()) for a, b in zip(actual, expected, strict=True)]
    worst = max(off[0] / max(abs(float(expected[0])), 1e-12), *(one / scale for one in off[1:]))
    return worst if all(bool(one.isfinite().all()) for one in actual) else float("inf")


def methods(device: str, tiny: bool) -> dict[str, Any]:
    """Every method one step in bf16 and in fp16: finite loss and gradients, near the loss without autocast."""
    rows, failed = {}, []
    for case in _some({case.id: case for case in cases.CASES}, tiny).values():
        plain, _ = _autocast_step(case, device, None)
        for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            loss, finite = _autocast_step(case, device, dtype)
            rows[f"{case.id} {name}"] = [plain, loss]
            if not finite or abs(loss - plain) > 0.1 * max(1.0, abs(plain)):
                failed.append(f"{case.id} {name}")
    return {"passed": not failed, "failed": failed, "losses": rows}


def _autocast_step(case: cases.Case, device: str, dtype: torch.dtype | None) -> tuple[float, bool]:
    method = case.build(torch.float32).to(device).train()
    batch = moved(case.batch(torch.float32), device)
    torch.manual_seed(0)
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        loss = method(batch).loss
    loss.backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    return float(loss.detach()), bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients)


def moved(batch: Batch, device: str) -> Batch:
    return Batch([view.to(device) for view in batch.views], batch.index.to(device), batch.label.to(device))


def ddp(device: str, tiny: bool) -> dict[str, Any]:
    """DDP of one process (nccl on CUDA, gloo on a CPU) gives the gradients of no DDP."""
    backend = "nccl" if device == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            by_id = {case.id: case for case in cases.CASES}
            off = {name: _ddp_difference(by_id[name], device) for name in METHODS_IN_DDP}
        finally:
            torch.distributed.destroy_process_group()
    return {"passed": max(off.values()) < 1e-5, "backend": backend, "differences": off}


def _ddp_difference(case: cases.Case, device: str) -> float:
    def gradients(wrapped: bool) -> list[Tensor]:
        method = case.build(torch.float32).to(device).train()
        torch.manual_seed(0)
        model = DistributedDataParallel(method) if wrapped else method
        model(moved(case.batch(torch.float32), device)).loss.backward()
        return [p.grad for p in method.parameters() if p.grad is not None]

    pairs = zip(gradients(True), gradients(False), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)


def resumption(device: str, tiny: bool) -> dict[str, Any]:
    """Whether six steps, six again, and three with three more after loading the state give the same bits.

    And which operations torch knows to have no deterministic form on the device, over one step of every method.
    """
    make_repeatable(1)
    recipes = ("simclr",) if tiny else ("simclr", "intl", "cwrgp", "moco", "resa")
    equal = {}
    for name in recipes:
        for precision in ("fp32", "bf16"):
            whole, again = (_trained(name, precision, device, tiny, stop=None) for _ in range(2))
            resumed = _trained(name, precision, device, tiny, stop=3)
            equal[f"{name} {precision}"] = {"repeated": _same(whole, again), "resumed": _same(whole, resumed)}
    return {
        "passed": all(all(row.values()) for row in equal.values()),
        "equal": equal,
        "nondeterministic": _nondeterministic_operations(device, tiny),
    }


def _trained(name: str, precision: str, device: str, tiny: bool, stop: int | None) -> dict[str, Tensor]:
    """The method's state after six steps, with a save and a load after `stop`."""
    batch = 16 if tiny else 128
    overrides = {
        "precision": precision,
        "batch": batch,
        "world_size": 1,
        "schedule.epochs": 2,
        "schedule.warmup_epochs": 0,
    }
    overrides |= {"schedule.warmup_iterations": 0, "schedule.steps": []}
    overrides |= {"method.groups": 2, "method.window": 16} if name == "cwrgp" else {}
    overrides |= {"data.views.0.size": 16} if tiny else {}
    recipe = load(f"sample/{name}", overrides)
    step = _new_step(recipe, device)
    for number in range(6):
        if number == stop:
            state = _copied(step.state_dict())
            step = _new_step(recipe, device)
            step.load_state_dict(state)
        step(_random_batch(recipe, number, device), number)
    return {key: value.cpu() for key, value in step.method.state_dict().items()}


def _new_step(recipe: Any, device: str) -> TrainingStep:
    from pretrain.method import find_method
    from pretrain.networks import build_encoder

    torch.manual_seed(0)
    method: Method[Any] = find_method(recipe.method_name)(build_encoder(recipe.network), recipe.method)
    if recipe.channels_last:
        method.to(memory_format=torch.channels_last)
    return TrainingStep(method.to(device).train(), recipe, torch.device(device), steps_per_epoch=3)


def _random_batch(recipe: Any, number: int, device: str) -> Batch:
    generator = torch.Generator().manual_seed(number)
    views = [torch.randn(recipe.batch, 3, size, size, generator=generator) for size in recipe.view_sizes]
    index = torch.arange(recipe.batch)
    return moved(Batch(views, index, index % 10), device)


def _copied(state: Any) -> Any:
    """As a checkpoint would hold it: later steps do not change it."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _nondeterministic_operations(device: str, tiny: bool) -> list[str]:
    operations: dict[str, None] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for case in _some({case.id: case for case in cases.CASES}, tiny).values():
            _autocast_step(case, device, torch.bfloat16)
    for warning in caught:
        text = str(warning.message)
        if "deterministic" in text:
            operations[text.split(" does not have")[0].strip()[:120]] = None
    return sorted(operations)


def _some(everything: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """All, or every sixth."""
    return {name: value for number, (name, value) in enumerate(everything.items()) if not tiny or number % 6 == 0}


def training(device: str, tiny: bool) -> dict[str, Any]:
    """A training ends, leaves its backbone, and is evaluated: what a user's first run on a GPU does, in seconds."""
    from benchmarks.gpu_speed import dataset
    from pretrain.evaluate.stage import run
    from pretrain.evaluate.target import Options, Target
    from pretrain.train import train
    from whitebench.files import BACKBONE
    from whitebench.records import stage_folder

    dataset("gpu-check", None, 256, 32)
    overrides = {"data.dataset": "gpu-check", "data.loader": "device", "device": device, "schedule.epochs": 2}
    rows = {}
    for name in ("simclr",) if tiny else ("simclr", "cwrgp", "moco", "vicreg"):
        recipe = load(f"sample/{name}", overrides | {"precision": "fp32" if device == "cpu" else "bf16"})
        record = train(recipe)
        assert record is not None, "this process is the main one"
        target, backbone = Target.of_recipe(recipe, record.id), stage_folder("pretrain", record.id) / BACKBONE
        for stage, protocol in (("linear", recipe.evaluation.linear), ("knn", recipe.evaluation.knn)):
            evaluated = run(stage, backbone, target, Options(protocol, device=device, loader="folder"))
            rows[f"{name} {stage}"] = None if evaluated is None else evaluated.metrics["top1"]
    return {"passed": all(top1 is not None for top1 in rows.values()), "top1": rows}


CHECKS = {"losses": losses, "methods": methods, "ddp": ddp, "resumption": resumption, "training": training}
