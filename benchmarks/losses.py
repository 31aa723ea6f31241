"""Forward and backward of the whitening losses, against their straightforward forms in the same run.

python benchmarks/losses.py [--device cpu|cuda] [--rounds 5] [--only TEXT] [--full]
                            [--threads N] [--busy] [--no-check]

Plain: the straightforward forms of `losses_plain.py`. Floor: the products and decompositions that forward and backward
cannot do without (`losses_floors.py`), where plain forms have little to save. Rounds alternate between the sides; what
counts is the ratio of the medians. Where both forms are the same function, their values and gradients are compared,
too, in float64. Memory: the peak above the inputs, of one forward and backward pass (CPU: by torch's profiler).
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.losses_cases import Case, Loss, cases
from benchmarks.losses_floors import work_of

SLOW = 1.0
"""Seconds of a pass beyond which one pass is measured, not several."""


# --- measuring --------------------------------------------------------------------------------------------------------


def inputs(case: Case, device: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(case.images, case.channels, generator=generator, dtype=torch.float64)
    noise = [
        torch.randn(case.images, case.channels, generator=generator, dtype=torch.float64) for _ in range(case.views)
    ]
    return [(clean + 0.5 * one).to(device, dtype).requires_grad_() for one in noise]


def timed(work: Callable[[], None], device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def step(loss: Loss, views: list[Tensor]) -> Callable[[], None]:
    return lambda: (torch.autograd.grad(loss(views), views, allow_unused=True), None)[1]


def peak_memory(work: Callable[[], None], device: str) -> float:
    """MB above what is held before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    assert seen.profiler is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def largest_difference(case: Case, device: str) -> float:
    """Of values and gradients in float64, relative to the largest gradient."""
    views = inputs(case, device, torch.float64)
    suite, peer = case.suite(views), case.peer(views)
    both = [torch.autograd.grad(loss, views, allow_unused=True) for loss in (suite, peer)]  # a target's view has none
    off = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*both, strict=True) if b is not None]
    return max(abs(float(suite.detach() / peer.detach()) - 1), *off)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="of each side, alternating (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--no-check", action="store_true", help="without the comparison in float64")
    parser.add_argument("--full", action="store_true", help="also peers that take minutes on a CPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--busy", action="store_true", help="processor time in place of wall-clock: on a busy machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.busy else time.perf_counter
    device = options.device
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds, float32")
    print(f"{'processor time' if options.busy else 'wall-clock'}, load {os.getloadavg()[0]:.1f}")
    titles = f"{'ours':>11}{'plain':>11}{'plain/ours':>11}{'floor':>11}{'ours/floor':>11}{'ours':>10}{'plain':>10}"
    print(f"{'':36}{titles}  largest difference in float64; the floor", flush=True)
    for case in cases():
        if options.only in case.title and (options.full or device == "cuda" or not case.heavy):
            report(case, device, options.rounds, clock, check=not options.no_check)


def report(case: Case, device: str, rounds: int, clock: Callable[[], float], check: bool) -> None:
    views = inputs(case, device, torch.float32)
    sides = [step(case.suite, views), step(case.peer, views)]
    if case.floor:
        sides.append(work_of(case.floor, device))
    times = [1000 * seconds for seconds in measured(sides, device, rounds, clock)]
    line = f"{case.title:36}{times[0]:8.1f} ms{times[1]:8.1f} ms{times[1] / times[0]:11.2f}"
    line += f"{times[2]:8.1f} ms{times[0] / times[2]:11.2f}" if case.floor else " " * 22
    line += "".join(f"{peak_memory(work, device):7.0f} MB" for work in sides[:2])
    same = f"{largest_difference(case, device):.1e}" if check and case.equal and not case.heavy else "-"
    print(f"{line}  {same}{'; ' + case.floor.text if case.floor else ''}", flush=True)


def measured(sides: list[Callable[[], None]], device: str, rounds: int, clock: Callable[[], float]) -> list[float]:
    """Seconds of each side: the median of rounds that alternate between them, after a first pass.

    Of a side that takes longer than SLOW the first pass counts.
    """
    first = [timed(work, device, clock) for work in sides]
    quick = [index for index, seconds in enumerate(first) if seconds < SLOW]
    passes = [[timed(sides[index], device, clock) for index in quick] for _ in range(rounds)]
    medians = [statistics.median(side) for side in zip(*passes, strict=True)] if passes else []
    return [medians[quick.index(index)] if index in quick else seconds for index, seconds in enumerate(first)]


if __name__ == "__main__":
    main()
