"""Forward and backward of the whitening losses, against their straightforward forms in the same run.

python benchmarks/losses.py [--device cpu|cuda] [--rounds 5] [--only TEXT] [--full]
                            [--threads N] [--busy]

Straightforward: `losses_plain.py`. Where that form has nothing to save, the peer is the floor: the matrix products that
forward and backward cannot do without. Rounds alternate between the two; what counts is the ratio of the medians. Where
both are the same function, their values and gradients are compared, too, in float64. Memory: the peak above the inputs,
of one forward and backward pass (CPU: by torch's profiler).
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import losses_plain as plain
from pretrain.losses.sliced import random_directions
from pretrain.methods.barlow_twins import barlow_twins_loss
from pretrain.methods.corinfomax import corinfomax_loss, initial_state
from pretrain.methods.cwrgp import cwrgp_loss
from pretrain.methods.dcl import dcl_loss
from pretrain.methods.emp_ssl import emp_ssl_loss
from pretrain.methods.frossl import frossl_loss
from pretrain.methods.intl import intl_loss
from pretrain.methods.ivne import ivne_loss
from pretrain.methods.lejepa import lejepa_loss
from pretrain.methods.matrix_ssl import matrix_ssl_loss
from pretrain.methods.mec import mec_loss
from pretrain.methods.mmcr import mmcr_loss
from pretrain.methods.simdino import simdino_loss
from pretrain.methods.tico import tico_loss
from pretrain.methods.tregs import tregs_loss
from pretrain.methods.vibcreg import vibcreg_loss
from pretrain.methods.vicreg import vicreg_loss
from pretrain.methods.visreg import visreg_loss
from pretrain.methods.wmse import wmse_loss

Loss = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class Case:
    name: str
    images: int
    channels: int
    views: int
    suite: Loss
    peer: Loss | None
    """None: the peer is the floor of `products`."""
    products: int = 0
    """Unavoidable products [N, N] x [N, D] per view, forward and backward."""
    heavy: bool = False
    """Whether the peer takes minutes on a CPU: measured with --full only."""
    equal: bool = True
    """Whether both are the same function (not of other random draws)."""


def slices(views: list[Tensor], count: int) -> Tensor:
    """Always the same."""
    return random_directions(views[0].shape[1], count, torch.Generator().manual_seed(2)).to(views[0])


def covariance(views: list[Tensor]) -> Tensor:
    width = views[0].shape[1]
    return torch.eye(width, dtype=views[0].dtype, device=views[0].device) / width


def detached(views: list[Tensor]) -> list[Tensor]:
    """In place of a teacher's outputs."""
    return [view.detach() for view in views]


def simdino(views: list[Tensor]) -> Tensor:
    return simdino_loss(views, detached(views), smooth=False)


def mec(views: list[Tensor], scale: float) -> Tensor:
    return mec_loss(views, detached(views), scale)


def matrix_ssl(views: list[Tensor]) -> Tensor:
    return matrix_ssl_loss(views, detached(views))


def corinfomax(views: list[Tensor]) -> Tensor:
    state = initial_state(views[0].shape[1])
    return corinfomax_loss(views, type(state)(*(part.to(views[0].device) for part in state))).loss


def tico(views: list[Tensor]) -> Tensor:
    return tico_loss(views[0], views[1], covariance(views)).loss


CASES = [
    Case(
        "CW-RGP N=128 D=1024 g=2 V=4", 128, 1024, 4,
        lambda v: cwrgp_loss(v, 2, permutations=plain.orders(v)),
        lambda v: plain.plain_cwrgp(v, 2, 128),
    ),
    Case(
        "CW-RGP batch 256 N=64 D=512 g=4 V=4", 256, 512, 4,
        lambda v: cwrgp_loss(v, 4, permutations=plain.orders(v), window=64),
        lambda v: plain.plain_cwrgp(v, 4, 64),
        equal=False,
    ),
    Case("INTL channel N=256 D=8192 V=2", 256, 8192, 2, intl_loss, None, products=5),
    Case("INTL channel N=256 D=8192 V=6", 256, 8192, 6, intl_loss, None, products=5),
    Case(
        "INTL batch axis N=256 D=2048 V=2", 256, 2048, 2,
        lambda v: intl_loss(v, axis="batch"), lambda v: plain.plain_intl(v, "batch"),
    ),
    Case(
        "INTL batch axis N=256 D=8192 V=2", 256, 8192, 2,
        lambda v: intl_loss(v, axis="batch"), lambda v: plain.plain_intl(v, "batch"), heavy=True,
    ),
    Case(
        "W-MSE batch 256 N=128 D=64 V=2 (Cholesky)", 256, 64, 2,
        lambda v: wmse_loss(v, window=128), lambda v: plain.plain_wmse(v, 128), equal=False,
    ),
    Case("Barlow Twins N=256 D=8192", 256, 8192, 2, barlow_twins_loss, plain.plain_barlow),
    Case("VICReg N=256 D=8192", 256, 8192, 2, vicreg_loss, plain.plain_vicreg),
    Case(
        "LeJEPA N=1024 D=512 K=4096", 1024, 512, 2,
        lambda v: lejepa_loss(v, slices(v, 4096)), lambda v: plain.plain_lejepa(v, slices(v, 4096)), heavy=True,
    ),
    Case(
        "LeJEPA N=256 D=128 K=1024", 256, 128, 2,
        lambda v: lejepa_loss(v, slices(v, 1024)), lambda v: plain.plain_lejepa(v, slices(v, 1024)),
    ),
    Case(
        "VISReg N=256 D=256 K=4096", 256, 256, 2,
        lambda v: visreg_loss(v, slices(v, 4096)), lambda v: plain.plain_visreg(v, slices(v, 4096)),
    ),
    Case("MMCR N=256 D=8192", 256, 8192, 2, mmcr_loss, plain.plain_mmcr),
    Case("MMCR N=1024 D=512", 1024, 512, 2, mmcr_loss, plain.plain_mmcr),
    Case("I-VNE+ N=256 D=2048", 256, 2048, 2, ivne_loss, plain.plain_ivne),
    Case("SimDINO N=256 D=2048", 256, 2048, 2, simdino, plain.plain_simdino),
    Case("SimDINO N=256 D=8192", 256, 8192, 2, simdino, plain.plain_simdino, heavy=True),
    Case("EMP-SSL N=256 D=2048", 256, 2048, 2, emp_ssl_loss, plain.plain_emp_ssl),
    Case("MEC N=1024 D=2048", 1024, 2048, 2, lambda v: mec(v, 32.0), lambda v: plain.plain_mec(v, 32.0)),
    Case("MEC N=1024 D=256", 1024, 256, 2, lambda v: mec(v, 256.0), lambda v: plain.plain_mec(v, 256.0)),
    Case("Matrix-SSL N=256 D=2048", 256, 2048, 2, matrix_ssl, plain.plain_matrix_ssl),
    Case("FroSSL N=256 D=8192", 256, 8192, 2, frossl_loss, plain.plain_frossl),
    Case("VIbCReg N=256 D=8192", 256, 8192, 2, vibcreg_loss, plain.plain_vibcreg),
    Case("CorInfoMax N=1024 D=512", 1024, 512, 2, corinfomax, plain.plain_corinfomax),
    Case("TiCo N=1024 D=2048", 1024, 2048, 2, tico, lambda v: plain.plain_tico(v, covariance(v))),
    Case("T-REGS N=1024 D=1024", 1024, 1024, 2, tregs_loss, plain.plain_tregs),
    Case("DCL N=1024 D=1024", 1024, 1024, 2, dcl_loss, plain.plain_dcl),
]  # fmt: skip


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


def floor(case: Case, device: str) -> Callable[[], None]:
    square = torch.randn(case.images, case.images, device=device)
    wide = torch.randn(case.images, case.channels, device=device)
    tall = wide.T.contiguous()

    def work() -> None:
        for _ in range(case.views):
            for index in range(case.products):
                _ = square @ wide if index % 2 else wide @ tall

    return work


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
    assert case.peer is not None
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
    titles = f"{'ours':>10}{'peer':>10}{'peer/ours':>11}{'ours':>10}{'peer':>10}"
    print(f"{'':44}{titles}  peer; largest difference in float64", flush=True)
    for case in CASES:
        if options.only in case.name and (options.full or device == "cuda" or not case.heavy):
            report(case, device, options.rounds, clock)


def report(case: Case, device: str, rounds: int, clock: Callable[[], float]) -> None:
    views = inputs(case, device, torch.float32)
    suite = step(case.suite, views)
    peer = step(case.peer, views) if case.peer else floor(case, device)
    same = f"{largest_difference(case, device):.1e}" if case.peer and case.equal and not case.heavy else "-"
    for work in (suite, peer):
        work()
    pairs = [(timed(suite, device, clock), timed(peer, device, clock)) for _ in range(rounds)]
    a, b = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
    what = "straightforward" if case.peer else f"floor of {case.products} products per view"
    memory = "".join(f"{peak_memory(work, device):7.0f} MB" for work in (suite, peer))
    print(f"{case.name:44}{a:8.1f} ms{b:8.1f} ms{b / a:10.2f} {memory}   {what}; {same}", flush=True)


if __name__ == "__main__":
    main()
